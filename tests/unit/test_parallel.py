"""What ranks tell each other; and schemes that compare rollouts see those of all ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from atrl import parallel
from atrl.credit.base import CreditScheme, normalise_batch
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.entropy import EntropyCredit
from atrl.credit.oracle import OracleCredit
from atrl.credit.product import ProductCredit
from atrl.types import CreditOutput, Evidence, Experience, MaskedView
from tests.unit.ranks import run_ranks


def exchange() -> dict:
    """On each rank: rank 0 has two rows of three columns, rank 1 one row of four."""
    rank = parallel.rank()
    rows = torch.arange(6.0).view(2, 3) if rank == 0 else torch.full((1, 4), 9.0)
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[1.0 + rank, 5.0]])
    if rank == 0:  # the other rank's rollouts did not touch the bias
        layer.bias.grad = torch.tensor([7.0])
    frozen, untouched = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))
    parallel.add_gradients([*layer.parameters(), frozen, untouched])
    parallel.add_gradients([untouched])
    return {
        "share": list(parallel.share(list(range(5)))),
        "sums": parallel.sums([1.0, rank]),
        "gather": parallel.gather({"rank": rank}),
        "gather_to_first": parallel.gather_to_first({"rank": rank}),
        "rows": parallel.gather_rows(rows).tolist(),
        "mask": parallel.gather_rows((rows > 2).float()).tolist(),
        "weight": layer.weight.grad.tolist(),
        "bias": layer.bias.grad.tolist(),
        "frozen": frozen.grad,
        "untouched": untouched.grad,  # by any rank: AdamW would move it on zeros
    }


def test_two_ranks():
    first, second = run_ranks(exchange)
    assert first.pop("share") == [0, 1] and second.pop("share") == [2, 3, 4]
    assert first.pop("gather_to_first") == [{"rank": 0}, {"rank": 1}] and second.pop("gather_to_first") is None
    assert first == second
    assert first["sums"] == [2.0, 1.0] and first["gather"] == [{"rank": 0}, {"rank": 1}]
    assert first["rows"] == [[0, 1, 2, 0], [3, 4, 5, 0], [9, 9, 9, 9]]
    assert first["weight"] == [[3.0, 10.0]] and first["bias"] == [7.0] and first["frozen"] is None
    assert first["untouched"] is None


def test_whoever_has_left_the_group_is_alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    parallel.leave_group()
    assert not torch.distributed.is_initialized()
    parallel.leave_group()  # again, or without ever having had a group


def test_alone_nothing_happens():
    tensor = torch.rand(2, 3)
    assert parallel.rank() == 0 and parallel.world_size() == 1
    assert parallel.share([1, 2, 3]) == [1, 2, 3] and parallel.sums([1, 2]) == [1.0, 2.0]
    assert parallel.gather("x") == parallel.gather_to_first("x") == ["x"]
    assert parallel.gather_rows(tensor) is tensor
    layer = nn.Linear(1, 1)
    parallel.add_gradients(layer.parameters())
    assert layer.weight.grad is None


@dataclass(frozen=True)
class AgainstTheBatch(CreditScheme):
    """Each token's entropy times its masked divergence times the number of its paragraph from 1, over the mean of that
    in the batch; the key's last digit as scale."""

    name = "against_the_batch"
    normalised_over = "batch"

    @property
    def scope(self):
        return "batch"

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        mask = batch.response_mask
        scores = evidence.entropy * evidence.masked.divergence * (1 + batch.paragraphs)
        assert torch.equal(batch.paragraphs < 0, ~mask)
        scale = torch.tensor([float(key[-1]) for key in batch.keys])
        weights = normalise_batch(scores, mask)
        return CreditOutput(weights, anchors=weights > 1, density=scores * mask, trajectory_scale=scale)


def rollouts(rows: slice, width: int) -> tuple[Experience, Evidence]:
    """Some of four rollouts of 2, 5, 3 and 4 tokens, padded to `width`."""
    generator = torch.Generator().manual_seed(0)
    entropy, divergence = torch.rand(4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    mask = torch.arange(5)[None] < torch.tensor([2, 5, 3, 4])[:, None]
    entropy, divergence, mask = ((t * mask)[rows, :width] for t in (entropy, divergence, mask))
    ids = torch.zeros(len(mask), width + 1, dtype=torch.long)
    keys = [f"0/p/{row}" for row in range(4)][rows]
    paragraphs = torch.where(mask, torch.arange(mask.shape[1]) // 2, -1)
    batch = Experience(
        ids, ids, mask.bool(), [{}] * len(mask), torch.zeros(mask.shape), keys=keys, paragraphs=paragraphs
    )
    return batch, Evidence(entropy, entropy, {}, MaskedView(divergence, divergence))


def assign_share() -> CreditOutput:
    """Rank 0 holds the first rollout alone, padded to its own two tokens."""
    own = rollouts(slice(0, 1), 2) if parallel.rank() == 0 else rollouts(slice(1, 4), 5)
    return BoundCredit(AgainstTheBatch(), None, PictureScale((), ()), None).assign(own[0], [own[1]], [list])


def test_a_scheme_that_compares_rollouts_begins_on_no_piece_of_the_batch():
    bound = BoundCredit(AgainstTheBatch(), None, PictureScale((), ()), None)
    assert bound.begin(*rollouts(slice(0, 1), 2))() == []


def test_a_scheme_that_compares_rollouts_sees_those_of_all_ranks():
    whole = AgainstTheBatch().assign(*rollouts(slice(0, 4), 5))
    first, second = run_ranks(assign_share)
    assert torch.equal(first.weights, whole.weights[:1, :2]) and torch.equal(second.weights, whole.weights[1:])
    assert torch.equal(first.anchors, whole.anchors[:1, :2]) and torch.equal(second.density, whole.density[1:])
    assert torch.equal(torch.cat([first.trajectory_scale, second.trajectory_scale]), whole.trajectory_scale)


@dataclass(frozen=True, kw_only=True)
class ComparingOracle(OracleCredit):
    """Goes by the reading tokens of all ranks, where the oracle asks each for its own."""

    scope = "batch"


def assign_oracles() -> list[CreditOutput]:
    """Rank 1's problem has no reading rule."""
    batch, evidence = rollouts(slice(0, 2), 5) if parallel.rank() == 0 else rollouts(slice(2, 4), 5)
    if parallel.rank() == 0:
        batch = replace(batch, reading=torch.eye(5, dtype=torch.bool)[:2])
    schemes = ProductCredit(schemes=[OracleCredit(), EntropyCredit(within="batch")]), ComparingOracle()
    bounds = [BoundCredit(scheme, None, PictureScale((), ()), None) for scheme in schemes]
    return [bound.assign(batch, [evidence], [bound.begin(batch, evidence)]) for bound in bounds]


def test_what_was_read_is_known_on_all_ranks():
    for first, second in zip(*run_ranks(assign_oracles), strict=True):
        assert first.anchors.nonzero().tolist() == [[0, 0], [1, 1]] and not second.anchors.any()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_everything_once(world, monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: world)
    items = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        share = parallel.share(list(range(10)))
        assert 10 // world <= len(share) <= -(-10 // world)
        items += share
    assert items == list(range(10))
