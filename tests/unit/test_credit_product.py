"""Schemes multiplied."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from credit_evidence import ROWS, batch_of, evidence_of

from atrl.callbacks.anchor_credit import weight_statistics
from atrl.credit.anchor_only import AnchorOnlyCredit
from atrl.credit.atrl import AtrlCredit
from atrl.credit.base import CreditScheme, PictureMask, normalise
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.entropy import EntropyCredit
from atrl.credit.hidden_cosine import HiddenCosineCredit
from atrl.credit.oracle import OracleCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.product import ProductCredit
from atrl.credit.random import RandomCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.credit.uniform import UniformCredit
from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.credit.vppo import VppoCredit
from atrl.preflight import check_reads
from atrl.types import CreditOutput, Evidence, MaskedView
from tests.unit.ranks import run_ranks


@dataclass(frozen=True, kw_only=True)
class Fixed(CreditScheme):
    """Hands out what it was given."""

    weights: tuple[tuple[float, ...], ...]
    scale: tuple[float, ...] | None = None
    whole: bool = False

    name = "fixed"

    @property
    def normalised_over(self):
        return "batch" if self.whole else "response"

    def assign(self, batch, evidence):
        weights = torch.tensor(self.weights)
        scale = None if self.scale is None else torch.tensor(self.scale)
        return CreditOutput(weights, trajectory_scale=scale)


HALVES = Fixed(weights=((0.5, 1.5), (1.0, 1.0)), scale=(2.0, 0.5))
BATCH = batch_of([(2, 1), (2, 1)])


def test_weights_multiply_and_are_scaled_again():
    """(0.25, 2.25) over their mean 1.25; (1, 1)."""
    output = ProductCredit(schemes=[HALVES, HALVES]).assign(BATCH, None)
    torch.testing.assert_close(output.weights, torch.tensor([[0.2, 1.8], [1.0, 1.0]]))
    assert output.trajectory_scale.tolist() == [4.0, 0.25]
    assert ProductCredit(schemes=[HALVES, UniformCredit()]).assign(BATCH, None).trajectory_scale.tolist() == [2, 0.5]
    assert ProductCredit(schemes=[UniformCredit()]).assign(BATCH, None).trajectory_scale is None


def test_a_response_that_one_scheme_leaves_out_of_the_batch_stays_out():
    """(1, 3) and nothing: four tokens' credit over a sum of 4."""
    whole = Fixed(weights=((2.0, 2.0), (0.0, 0.0)), whole=True)
    output = ProductCredit(schemes=[HALVES, whole]).assign(BATCH, None)
    assert output.weights.tolist() == [[1, 3], [0, 0]]


def test_hard_schemes_that_agree_on_nothing_leave_the_response_even():
    hard = [Fixed(weights=((2.0, 0.0), (1.0, 1.0))), Fixed(weights=((0.0, 2.0), (2.0, 0.0)))]
    assert ProductCredit(schemes=hard).assign(BATCH, None).weights.tolist() == [[1, 1], [2, 0]]


def test_real_schemes_multiply():
    parts = [AtrlCredit(), EntropyCredit(ratio=0.5), RandomCredit()]
    scheme = ProductCredit(schemes=parts)
    batch, evidence = batch_of(ROWS), evidence_of(scheme, ROWS)
    outputs = [part.assign(batch, evidence) for part in parts]
    output = scheme.assign(batch, evidence)
    expected = normalise(outputs[0].weights * outputs[1].weights * outputs[2].weights, batch.response_mask)
    torch.testing.assert_close(output.weights, expected)
    assert torch.equal(output.anchors, outputs[0].anchors) and torch.equal(output.density, outputs[0].density)
    shared = ProductCredit(schemes=[UniformCredit(), EntropyCredit()]).assign(batch, evidence)
    assert torch.equal(shared.anchors, EntropyCredit().assign(batch, evidence).anchors)


@dataclass(frozen=True, kw_only=True)
class Marked(CreditScheme):
    """Even weights; marks the tokens, or ranks them, by what it was given."""

    anchors: tuple[bool, ...] | None = None
    density: tuple[float, ...] | None = None

    name = "marked"

    def assign(self, batch, evidence):
        marks, scores = (None if given is None else torch.tensor([given] * 2) for given in (self.anchors, self.density))
        return CreditOutput(batch.response_mask.float(), anchors=marks, density=scores)


BOTH = Marked(anchors=(True, False), density=(0.9, 0.1))
MARKS, SCORES, NEITHER = Marked(anchors=(False, True)), Marked(density=(0.3, 0.7)), Marked()


@pytest.mark.parametrize(
    ("schemes", "shown"),
    [
        ([MARKS, BOTH], MARKS),  # and no density beside them
        ([BOTH, MARKS], BOTH),
        ([SCORES, MARKS], MARKS),
        ([SCORES, NEITHER, BOTH], BOTH),
        ([NEITHER, SCORES], SCORES),
        ([SCORES, Marked(density=(0.5, 0.2))], SCORES),
        ([NEITHER, NEITHER], NEITHER),
        ([ProductCredit(schemes=[NEITHER, MARKS]), BOTH], MARKS),
    ],
)
def test_anchors_and_density_are_those_of_one_scheme(schemes, shown):
    output = ProductCredit(schemes=schemes).assign(BATCH, None)
    found = [None if part is None else tuple(part[0].tolist()) for part in (output.anchors, output.density)]
    assert found[0] == shown.anchors and found[1] == (shown.density and pytest.approx(shown.density))


def test_metrics_of_the_oracle_times_another_are_the_oracles():
    """It ranks no tokens, so that there is no area under a curve to speak of."""
    batch, evidence = batch_of(ROWS), evidence_of(EntropyCredit(), ROWS)
    schemes = (OracleCredit(), ProductCredit(schemes=[OracleCredit(), EntropyCredit()]))
    found = [weight_statistics(s.assign(batch, evidence), batch.response_mask, batch.reading) for s in schemes]
    assert found[1].keys() == found[0].keys() and "credit/anchor_auc" not in found[1]
    assert found[1]["credit/anchor_recall"] == found[0]["credit/anchor_recall"] == 1


def test_what_it_asks_for_is_what_they_ask_for():
    scheme = ProductCredit(
        schemes=[TokenLevelCredit(), AnchorOnlyCredit(), AtrlCredit(edges="both"), VppoCredit(mask_ratio=0.6)]
    )
    assert scheme.requests == (*TokenLevelCredit().requests, *AtrlCredit(edges="both").requests)
    assert scheme.picture_mask == PictureMask(ratio=0.6)
    assert (scheme.scope, scheme.normalised_over) == ("batch", "response")
    assert not (scheme.has_auxiliary_loss or scheme.needs_masked_gradient or scheme.is_uniform)
    with_loss = ProductCredit(schemes=[PapoCredit(), UniformCredit()])
    assert with_loss.has_auxiliary_loss and with_loss.needs_masked_gradient and with_loss.is_uniform
    assert with_loss.scope == "response"
    assert not ProductCredit(schemes=[UniformCredit(), EntropyCredit()]).is_uniform
    assert ProductCredit(schemes=[HiddenCosineCredit(), UniformCredit()]).needs_whole_rows
    assert not scheme.needs_whole_rows


class ByLength(UniformCredit):
    """A rollout's scale is its length."""

    def assign(self, batch, evidence):
        lengths = batch.response_mask.sum(dim=1).float()
        return replace(super().assign(batch, evidence), trajectory_scale=lengths)


NESTED = ProductCredit(
    schemes=[
        ProductCredit(schemes=[AtrlCredit(edges="attention"), HiddenCosineCredit(), VppoCredit()]),
        EntropyCredit(within="batch", ratio=0.3),
        ProductCredit(schemes=[RandomCredit(), EntropyCredit(ratio=0.9)]),  # alone, as one
    ]
)
PRODUCTS = [
    NESTED,
    ProductCredit(schemes=[VppoCredit(), AtrlCredit()]),
    ProductCredit(schemes=[AtrlCredit(), EntropyCredit(within="batch")]),
    ProductCredit(schemes=[ByLength(), AtrlCredit(), HiddenCosineCredit(), EntropyCredit(within="batch")]),
]


def in_pieces(scheme: ProductCredit, size: int, rows: list[tuple[int, int]], width: int) -> CreditOutput:
    """What a step assigns to `rows`, `size` at a time, each piece padded for itself."""
    bound = BoundCredit(scheme, None, PictureScale((), ()), None)
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    evidence = [evidence_of(scheme, piece) for piece in pieces]
    begun = [bound.begin(batch_of(piece), seen) for piece, seen in zip(pieces, evidence, strict=True)]
    return bound.assign(batch_of(rows, padding=width - max(rows)[0]), evidence, begun)


def as_rank(number: int) -> CreditOutput:
    """Rank 0 holds two of the rollouts, rank 1 the four others."""
    from atrl import parallel

    rows, size = (ROWS[:2], 1) if parallel.rank() == 0 else (ROWS[2:], 3)
    return in_pieces(PRODUCTS[number], size, rows, max(rows)[0])


def assert_same(output: CreditOutput, expected: CreditOutput) -> None:
    for name in ("weights", "anchors", "density", "trajectory_scale"):
        own, other = getattr(output, name), getattr(expected, name)
        assert (own is None) == (other is None), name
        if own is not None:  # the last bits of a sum depend on how many zeros were added
            torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("scheme", PRODUCTS, ids=["nested", "vppo_atrl", "entropy_atrl", "four"])
@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_what_reads_layers_is_weighed_piece_by_piece_and_compared_over_the_batch(scheme, size):
    whole = scheme.assign(batch_of(ROWS), evidence_of(scheme, ROWS))
    assert_same(in_pieces(scheme, size, ROWS, max(ROWS)[0]), whole)
    assert (whole.weights - batch_of(ROWS).response_mask.float()).abs().max() > 0.5


@pytest.mark.parametrize("number", range(len(PRODUCTS)))
def test_ranks_multiply_what_one_process_does(number):
    whole = PRODUCTS[number].assign(batch_of(ROWS), evidence_of(PRODUCTS[number], ROWS))
    first, second = run_ranks(as_rank, number)
    assert_same(first, whole.rows(slice(0, 2), 40))
    assert_same(second, whole.rows(slice(2, 6), 17))


def test_the_parts_that_need_no_other_rollout():
    first, entropy, last = NESTED.schemes
    assert NESTED.alone == (*first.schemes[:2], last)
    assert entropy.alone == () and last.alone == (last,)


@dataclass(frozen=True, kw_only=True)
class ReadsAndCompares(UniformCredit):
    """What one scheme can't do."""

    name = "reads_and_compares"
    scope = "batch"
    requests = AtrlCredit().requests


@dataclass(frozen=True, kw_only=True)
class ComparingAnchors(AnchorOnlyCredit):
    """Reads what `AnchorOnlyCredit` does, and compares."""

    name = "comparing_anchors"
    scope = "batch"


def test_one_scheme_can_not_read_layers_and_compare_rollouts():
    check_reads(None)
    for scheme in [*PRODUCTS, AtrlCredit(), AtrlCredit(heads="auto"), VppoCredit()]:
        check_reads(scheme)
    check_reads(ProductCredit(schemes=[VppoCredit(), AtrlCredit(heads="auto")]))
    message = r"^credit=reads_and_compares compares rollouts and reads layers, .* multiply them \(.*ProductCredit\)$"
    with pytest.raises(ValueError, match=message):
        check_reads(ReadsAndCompares())
    for faulty in (ComparingAnchors(), ComparingAnchors(heads="auto")):  # also beside one that asks for the same
        with pytest.raises(ValueError, match=r"^credit=comparing_anchors compares rollouts"):
            check_reads(ProductCredit(schemes=[ProductCredit(schemes=[AnchorOnlyCredit()]), faulty]))


def test_factors_are_those_of_products_in_products():
    first, entropy, last = NESTED.schemes
    assert NESTED.factors == (*first.schemes, entropy, *last.schemes)
    assert entropy.factors == (entropy,)


def test_one_that_works_elsewhere_is_worth_waiting_for():
    class Elsewhere(UniformCredit):
        works_elsewhere = True

    assert ProductCredit(schemes=[UniformCredit(), Elsewhere()]).works_elsewhere
    assert not ProductCredit(schemes=[UniformCredit(), UniformCredit()]).works_elsewhere


def test_auxiliary_losses_add_up():
    parts = [PapoCredit(gamma=0.1, eta=0.0), UniformCredit(), PapoCredit(gamma=0.2, eta=0.5)]
    logprobs = torch.tensor([[-1.0, -2.0]])
    evidence = Evidence(logprobs, logprobs, {}, MaskedView(2 * logprobs, logprobs))
    expected = parts[0].auxiliary_loss(logprobs, evidence) + parts[2].auxiliary_loss(logprobs, evidence)
    torch.testing.assert_close(ProductCredit(schemes=parts).auxiliary_loss(logprobs, evidence), expected)


def test_all_are_opened_and_closed():
    """One that fails to open takes the others' processes with it."""
    log = []

    class Logged(UniformCredit):
        def open(self):
            log.append("open")
            if log.count("open") == 3:
                raise RuntimeError("no")

        def close(self):
            log.append("close")

    two = ProductCredit(schemes=[Logged(), Logged()])
    two.open()
    two.close()
    assert log == ["open", "open", "close", "close"]
    with pytest.raises(RuntimeError, match="no"):
        two.open()
    assert log[4:] == ["open", "close"]


def test_faulty_products_are_refused():
    with pytest.raises(ValueError, match=r"^credit\.schemes must name at least one scheme"):
        ProductCredit(schemes=[])
    with pytest.raises(ValueError, match=r"^credit\.schemes must agree on mask, .*, got 0\.5 .* and 0\.6 "):
        ProductCredit(schemes=[VppoCredit(), PapoCredit()])
    with pytest.raises(ValueError, match=r"got 0\.5 black \(seed 0\) and 0\.5 shuffled \(seed 0\): "):
        ProductCredit(schemes=[VppoCredit(), VisualDependencyCredit(mask="shuffled")])
