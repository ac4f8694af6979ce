"""Prompts that are run once for all of their responses: the same as with each of them, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from atrl.credit.attention import AttentionRequest
from atrl.credit.hidden import HiddenRequest, decoder_layers
from atrl.credit.probe import AttentionProbe
from atrl.credit.query_key import QueryKeyRequest
from atrl.data.prompts import PromptBuilder
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.models.prompt_states import distinct_prompts, prompts_alone, run_prompts
from atrl.types import Experience, Problem, Rollout, RolloutGroup
from tests.unit.attention import FULL
from tests.unit.families import FAMILIES
from tests.unit.ranks import run_ranks
from tests.unit.test_forward import Looks, bound
from tests.unit.vision import count_encodings

APART = ForwardPass(temperature=0.7, banned_ids=(3,), chunk=8)
ONCE = replace(APART, share_prompts=True)
PROBLEMS = (
    Problem(id="one", question="What is <image>?", answer="", images=(Image.new("RGB", (56, 28), "red"),)),
    Problem(id="none", question="What is in the picture, if there is a picture?", answer=""),
    Problem(id="two", question="<image> <image>", answer="", images=(Image.new("RGB", (28, 56), "blue"),) * 2),
)
LENGTHS = ((3, 9, 1), (4, 4, 2), (6, 12, 5))
"""Of the responses, by problem."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return PretrainedModel(path=str(folder)).load(Path())


@pytest.fixture
def loaded(processor, policy) -> LoadedModel:
    return LoadedModel(policy, processor, Path())


def batch_of(loaded: LoadedModel, problems=PROBLEMS, lengths=LENGTHS) -> Experience:
    """A group of random responses a problem."""
    builder, generator, groups = PromptBuilder(processor=loaded.processor), torch.Generator().manual_seed(0), []
    for problem, counts in zip(problems, lengths, strict=True):
        drawn = [torch.randint(5, 250, (count,), generator=generator).tolist() for count in counts]
        rollouts = [Rollout(ids, [-1.0] * len(ids), True) for ids in drawn]
        groups.append(RolloutGroup(builder.build(problem), rollouts, [""] * len(rollouts), policy_version=0))
    return build_experience(groups, pad_id=0)


def outcome(forward_pass: ForwardPass, model, batch: Experience) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies, and the gradient of a sum of the log-probs that weighs each differently."""
    model.zero_grad()
    logprobs, entropy = forward_pass.logprobs(model, batch)
    (logprobs * torch.linspace(-1, 2, logprobs.numel()).view_as(logprobs)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logprobs.detach(), entropy, gradient


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (found[2] - expected[2]).norm() < 1e-5 * expected[2].norm()


@contextmanager
def columns_of(model) -> Iterator[list[tuple[int, ...]]]:
    """The rows and columns of each pass through the first decoder layer."""
    seen: list[tuple[int, ...]] = []
    layer = decoder_layers(model)[0]
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[:2])))
    try:
        yield seen
    finally:
        hook.remove()


def test_the_same_logprobs_and_gradients_in_every_family(family: LoadedModel) -> None:
    """Prompts of several lengths, with and without pictures; responses of several lengths."""
    batch = batch_of(family)
    apart = outcome(APART, family.model, batch)
    assert apart[0].unique().numel() > batch.response_mask.sum() / 2 and apart[2].norm() > 0.1
    with columns_of(family.model) as seen:
        assert_same(outcome(ONCE, family.model, batch), apart)
    assert seen == [(3, batch.prompt_length - 1), (9, batch.response_length + 1)]


def test_activations_that_are_computed_again(family: LoadedModel) -> None:
    """Gradient checkpointing runs each block a second time, to the same bits."""
    batch = batch_of(family)
    family.model.train()
    expected = outcome(ONCE, family.model, batch)
    family.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with columns_of(family.model) as seen:
            found = outcome(ONCE, family.model, batch)
    finally:
        family.model.gradient_checkpointing_disable()
        family.model.eval()
    assert len(seen) == 4 and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    layers = decoder_layers(family.model)
    assert not any(layer._can_checkpoint_with_cache for layer in layers), "what others run must be as it was"


def test_without_gradients_and_of_some_rows(loaded: LoadedModel) -> None:
    """Rollouts of a group may be anywhere in a micro-batch, or alone in it."""
    batch = batch_of(loaded)
    with torch.no_grad():
        whole = APART.logprobs(loaded.model, batch)[0]
        for rows in ([0], [8, 0, 4, 7, 1], [3, 4, 5]):
            part = batch.rows(torch.tensor(rows))
            torch.testing.assert_close(ONCE.logprobs(loaded.model, part)[0], whole[rows], atol=1e-5, rtol=0)


def test_what_is_read_is_the_same(loaded: LoadedModel) -> None:
    """Attention on pictures and between tokens, queries against keys; and the pass over prompts alone is not read."""
    requests = (FULL, AttentionRequest(row="own"), QueryKeyRequest(detail=True))
    batch, found = batch_of(loaded), []
    credit = bound(loaded.model, Looks(reads=requests))
    for forward_pass in (APART, ONCE):
        with torch.no_grad():
            found.append(forward_pass(loaded.model, batch, credit, read=True).evidence.read)
    credit.probe.detach()
    apart, once = found
    for name in ("mass", "total", "peak", "image"):
        torch.testing.assert_close(getattr(once[FULL], name), getattr(apart[FULL], name), atol=1e-5, rtol=0)
    edges = [read[requests[1]].edges.strengths for read in found]
    torch.testing.assert_close(edges[1], edges[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(once[requests[2]].score, apart[requests[2]].score, atol=1e-5, rtol=0)
    assert apart[FULL].mass.max() > 0.01 and edges[0].max() > 0.01 and not prompts_alone()


def test_hidden_states_need_both_in_one_pass(loaded: LoadedModel) -> None:
    credit = bound(loaded.model, Looks(reads=(HiddenRequest(),)))
    batch = batch_of(loaded)
    with pytest.raises(AssertionError, match=r"looks reads hidden states.*must say needs_whole_rows = True"):
        ONCE(loaded.model, batch, credit, read=True)
    assert APART(loaded.model, batch, credit, read=True).evidence.read[HiddenRequest()].abs().max() > 0


def test_each_prompts_pictures_are_encoded_once(loaded: LoadedModel, monkeypatch) -> None:
    batch = batch_of(loaded)
    encoded = count_encodings(loaded.model, monkeypatch)
    ONCE.logprobs(loaded.model, batch)
    assert encoded == [sum(len(batch.pixels[row]["pixel_values"]) for row in (0, 6))]


def test_prompts_are_one_by_tokens_and_pictures() -> None:
    red, blue = {"pixel_values": torch.zeros(1)}, {"pixel_values": torch.zeros(1)}
    ids = torch.tensor([[1, 2], [1, 2], [1, 2], [1, 3], [1, 2], [1, 2]])
    first, source = distinct_prompts(ids, [red, red, blue, red, {}, {}])
    assert first == [0, 2, 3, 4] and source.tolist() == [0, 0, 1, 2, 3, 3]


def test_a_prompt_that_ends_in_a_picture_is_not_run_without_it(loaded: LoadedModel) -> None:
    batch = batch_of(loaded).rows(slice(0, 1))
    last = int((batch.input_ids[0] == loaded.model.config.image_token_id).nonzero()[-1])
    kept = [*range(last + 1), *range(batch.prompt_length, batch.input_ids.shape[1])]
    cut = replace(batch, input_ids=batch.input_ids[:, kept], attention_mask=batch.attention_mask[:, kept])
    with pytest.raises(AssertionError, match="must end in text"):
        run_prompts(loaded.model, cut)


def test_a_model_that_keeps_nothing_is_noticed(loaded: LoadedModel, monkeypatch) -> None:
    forward = decoder_layers(loaded.model)[1].forward

    def forgetful(*arguments, **options):
        return forward(*arguments, **options | {"past_key_values": None})

    monkeypatch.setattr(decoder_layers(loaded.model)[1], "forward", forgetful)
    with pytest.raises(AssertionError, match="left no keys and values"):
        ONCE.logprobs(loaded.model, batch_of(loaded))
    assert not prompts_alone()


def run_sharded(checkpoint: Path) -> list[tuple[Tensor, Tensor]]:
    """On each rank, log-probs and gradient norm of FSDP2's shards: a rank with pictures, and one without."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    loaded = PretrainedModel(path=str(checkpoint)).load(Path())
    mesh, policy = init_device_mesh("cpu", (dist.get_world_size(),)), loaded.model
    for layer in policy.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy.model.visual, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    dist.fsdp.register_fsdp_forward_method(policy, "get_image_features")
    own = slice(0, 2) if dist.get_rank() == 0 else slice(1, 2)
    batch, results = batch_of(loaded, PROBLEMS[own], LENGTHS[own]), []
    for forward_pass in (APART, ONCE):
        policy.zero_grad()
        logprobs, _ = forward_pass.logprobs(policy, batch)
        logprobs.square().sum().backward()
        gradients = [p.grad.full_tensor().flatten() for p in policy.parameters() if p.grad is not None]
        results.append((logprobs.detach(), torch.cat(gradients)))
    return results


def test_ranks_of_a_sharded_policy(checkpoint: Path) -> None:
    """Keys and values have gradients of their own, for which a block's parameters must be there."""
    for apart, once in run_ranks(run_sharded, checkpoint):
        torch.testing.assert_close(once[0], apart[0], atol=1e-5, rtol=0)
        assert (once[1] - apart[1]).norm() < 1e-5 * apart[1].norm() and apart[1].norm() > 0.1


def test_a_probe_reads_no_prompt(loaded: LoadedModel) -> None:
    """Its readers would take rows of prompts for rows of rollouts."""
    batch = batch_of(loaded)
    probe = AttentionProbe(loaded.model, [FULL])
    with probe.capture(batch) as recorder, torch.no_grad():
        run_prompts(loaded.model, batch)
    with pytest.raises(AssertionError, match="saw no layer"):
        recorder.results()
    probe.detach()
