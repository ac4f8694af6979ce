"""The real loop: what moves, what doesn't, and what must not depend on what."""

from __future__ import annotations

import copy
import csv
import importlib
import json
import weakref
from contextlib import nullcontext

import pytest
import torch
from lightning import Callback

from atrl.credit.bound import BoundCredit
from atrl.forward import ForwardPass
from atrl.module import PolicyModule
from tests.integration.conftest import needs_vllm

TRANSFORMERS = "rollout=transformers"


class Watch(Callback):
    """Keeps copies of the weights and the step records."""

    def __init__(self) -> None:
        self.start: dict[str, torch.Tensor] = {}
        self.reference_start: dict[str, torch.Tensor] = {}
        self.records = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = copy.deepcopy(pl_module.policy.state_dict())
        if pl_module.reference is not None:
            self.reference_start = copy.deepcopy(pl_module.reference.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.records.append(pl_module.last_step)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@needs_vllm
def test_real_loop_with_vllm(train) -> None:
    watch = Watch()
    run = train("algorithm.kl_coefficient=0.01", "trainer.max_steps=3", "optimizer.learning_rate=1e-3", watch=watch)
    module = run.trained.module

    assert run.parts.rollout.sampler.name == "vllm"
    # Every parameter is trained: language half, vision tower and embedding.
    assert moved(watch.start, module.policy.state_dict()) == set(watch.start)
    assert moved(watch.reference_start, module.reference.state_dict()) == set()
    versions = [group.policy_version for record in watch.records for group in record.groups]
    assert versions == [0] * 4 + [1] * 4 + [2] * 4
    for record in watch.records:
        mask = record.experience.response_mask
        gap = (record.logprobs - record.experience.sampler_logprobs)[mask].abs()
        # Weights of 1e-3 older would be off by far more: see the test below.
        assert float(gap.max()) < 1e-3
    # At the first step policy and reference are the same model, and later they are not.
    assert watch.records[0].metrics["loss/kl"] == pytest.approx(0.0, abs=1e-7)
    assert watch.records[2].metrics["loss/kl"] > 1e-6


@needs_vllm
def test_without_the_sync_the_log_probs_come_apart_and_the_run_says_so(train, monkeypatch, caplog) -> None:
    from atrl.rollout.bound import BoundRollouts

    options = ("trainer.max_steps=2", "optimizer.learning_rate=1e-3", "trainer.evaluate_samples=0")
    train(*options, "rollout.check_sync_every=1", name="honest")
    assert "from the trainer's" not in caplog.text
    monkeypatch.setattr(BoundRollouts, "update_weights", lambda self, parameters, version: list(parameters))
    train(*options, "rollout.check_sync_every=3", name="unchecked")  # but for the first step, which is right
    assert "from the trainer's" not in caplog.text
    watch = Watch()
    run = train(*options, "rollout.check_sync_every=2", watch=watch)
    (line,) = [record.getMessage() for record in caplog.records if "from the trainer's" in record.getMessage()]
    assert line.startswith("step 2, rollout=vllm: ") and "try rollout=transformers" in line
    with (run.folder / "metrics.csv").open() as file:
        first, second = (row for row in csv.DictReader(file) if row["rollout/sampler_trainer_kl"])
    assert float(first["rollout/sampler_trainer_kl"]) < 1e-9 < 1e-5 < float(second["rollout/sampler_trainer_kl"])
    record = watch.records[1]
    gap = (record.logprobs - record.experience.sampler_logprobs)[record.experience.response_mask].abs()
    assert float(gap.max()) > 1e-2


def test_the_sampler_rests_from_the_last_rollouts_to_the_sync(train, monkeypatch) -> None:
    from atrl.rollout.bound import BoundRollouts
    from atrl.rollout.watch import WatchedSampler

    called = []
    for name in ("generate", "rest", "update_weights"):
        plain = getattr(BoundRollouts, name)

        def record(self, *arguments, name=name, plain=plain, **options):
            called.append(name)
            return plain(self, *arguments, **options)

        monkeypatch.setattr(BoundRollouts, name, record)
    monkeypatch.setattr(WatchedSampler, "rest", lambda self: called.append("asleep"))
    train(TRANSFORMERS, "algorithm=dapo", "algorithm.dynamic_sampling.max_draws=2", "trainer.evaluate_samples=0")
    assert [name for name, last in zip(called, [None, *called], strict=False) if name != last] == [
        "generate", "rest", "asleep", "update_weights",
    ] * 2  # fmt: skip


def test_uniform_credit_is_bit_identical_to_none(train) -> None:
    with_uniform = train(TRANSFORMERS, "credit=uniform", name="uniform")
    without = train(TRANSFORMERS, "credit=none", name="none")
    assert without.trained.credit is None
    assert moved(with_uniform.trained.module.policy.state_dict(), without.trained.module.policy.state_dict()) == set()
    lines = [(run.folder / "rollouts.jsonl").read_text().splitlines() for run in (with_uniform, without)]
    assert lines[0] == [json.dumps(json.loads(line), ensure_ascii=False) for line in lines[1]]


def test_looking_at_masked_pictures_changes_nothing(train) -> None:
    """Even weights by a scheme that looks at them: their encodings and their pass leave the training's bits alone."""
    even = ("credit=visual_dependency", "credit.anchor_weight=1", "credit.rest_weight=1")
    looking = train(TRANSFORMERS, *even, name="looking")
    without = train(TRANSFORMERS, "credit=none", name="none")
    assert looking.trained.module.last_step.credit.density.any()
    assert moved(looking.trained.module.policy.state_dict(), without.trained.module.policy.state_dict()) == set()


def test_the_same_seed_repeats_a_run_and_another_does_not(train) -> None:
    first, second = (train(TRANSFORMERS, name=name) for name in ("first", "second"))
    other = train(TRANSFORMERS, "seed=1", name="other")
    assert moved(first.trained.module.policy.state_dict(), second.trained.module.policy.state_dict()) == set()
    assert (first.folder / "rollouts.jsonl").read_text() == (second.folder / "rollouts.jsonl").read_text()
    assert (first.folder / "rollouts.jsonl").read_text() != (other.folder / "rollouts.jsonl").read_text()


@pytest.mark.parametrize("aggregation", ["TokenMean", "SequenceMean", "ConstantLength"])
def test_the_micro_batch_size_changes_nothing_but_rounding(train, aggregation: str) -> None:
    whole, cut = Watch(), Watch()
    options = (
        TRANSFORMERS,
        "trainer.max_steps=1",
        f"algorithm.aggregation._target_=atrl.loss.aggregation.{aggregation}",
    )
    train(*options, "optimizer.micro_batch_size=16", name="whole", watch=whole)
    train(*options, "optimizer.micro_batch_size=3", name="cut", watch=cut)
    one, other = whole.records[0], cut.records[0]
    assert [group.texts for group in one.groups] == [group.texts for group in other.groups]
    torch.testing.assert_close(one.credit.weights, other.credit.weights, rtol=0, atol=1e-5)
    for name in ("loss/policy", "loss/gradient_norm"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("budget", [1, 400, 10**6])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_token_budget_changes_nothing_but_rounding(train, budget: int, updates: int) -> None:
    """Each rollout by itself, some at a time, all at once: what is recorded stays in the order of the batch."""
    even, cut = Watch(), Watch()
    options = (TRANSFORMERS, "trainer.max_steps=1", f"algorithm.updates_per_batch={updates}")
    train(*options, name="even", watch=even)
    run = train(*options, f"optimizer.micro_batch_tokens={budget}", name="cut", watch=cut)
    one, other = even.records[0], cut.records[0]
    module = run.trained.module
    order = module.split.order(other.experience)
    pieces = len(module.split.slices(other.experience.rows(order)))
    assert pieces == {1: 16, 10**6: 1}.get(budget, pieces) and (budget != 400 or 3 < pieces < 16)
    assert order.tolist() != list(range(16))
    assert [group.texts for group in one.groups] == [group.texts for group in other.groups]
    assert one.experience.keys == other.experience.keys
    for name in ("logprobs", "entropy", "losses"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.credit.weights, other.credit.weights, rtol=0, atol=1e-5)
    assert set(one.attention) == set(other.attention) == {0, 4, 8, 12}
    for row, image in one.attention.items():
        tokens = int(one.experience.response_mask[row].sum())
        torch.testing.assert_close(image[:tokens], other.attention[row][:tokens], rtol=0, atol=1e-5)
    for name in ("loss/policy", "loss/gradient_norm"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4, abs=1e-7)


def test_a_frozen_tower_sees_each_picture_once_a_step(train, monkeypatch) -> None:
    """Not for each of two micro-batches a group, scoring, reference and two updates. No bit of the run is different."""
    from atrl import module
    from atrl.models.families import vision_tower

    runs, passing = [], []
    scores = ForwardPass.scores

    def counting(*arguments, **options):  # while the sampler generates, the tower runs as well
        passing.append(1)
        found = scores(*arguments, **options)
        passing.clear()
        return found

    class Runs(Watch):
        def on_train_start(self, trainer, pl_module) -> None:
            super().on_train_start(trainer, pl_module)
            for model in (pl_module.policy, pl_module.reference):
                vision_tower(model).blocks[0].register_forward_hook(lambda *_: runs.extend(passing))

    monkeypatch.setattr(ForwardPass, "scores", counting)
    options = (
        *(TRANSFORMERS, "model.freeze_vision=true", "model.freeze_projector=true"),
        *("optimizer.micro_batch_size=2", "trainer.evaluate_samples=0"),
        *("algorithm.updates_per_batch=2", "algorithm.kl_coefficient=0.1"),
    )
    once, each = Runs(), Runs()
    remembered = train(*options, watch=once, name="once")
    assert len(runs) == 2 * 4  # steps × prompts
    runs.clear()
    monkeypatch.setattr(module, "frozen_vision_once", lambda *_: nullcontext())
    plain = train(*options, watch=each, name="each")
    assert len(runs) == 2 * 4 * 2 * 4  # × micro-batches of a prompt × passes: scoring, reference, two updates
    assert [record.metrics for record in once.records] == [record.metrics for record in each.records]
    assert moved(remembered.trained.module.policy.state_dict(), plain.trained.module.policy.state_dict()) == set()


def test_activations_that_are_computed_again_are_the_same(train) -> None:
    held, again = Watch(), Watch()
    train(TRANSFORMERS, watch=held, name="held")
    run = train(TRANSFORMERS, "trainer.activation_checkpointing=true", watch=again, name="again")
    assert run.trained.module.policy.is_gradient_checkpointing
    for one, other in zip(held.records, again.records, strict=True):
        assert one.metrics == other.metrics and torch.equal(one.credit.weights, other.credit.weights)


@pytest.mark.parametrize(
    "frozen", [("model/lora=language",), ("model.freeze_vision=true", "model.freeze_projector=true")]
)
def test_micro_batches_share_a_frozen_tower_with_activations_that_are_computed_again(train, frozen) -> None:
    """Two of them have the same picture, which goes through the tower once, without a graph."""
    held, again = Watch(), Watch()
    options = (TRANSFORMERS, *frozen, "optimizer.micro_batch_size=2", "trainer.evaluate_samples=0")
    train(*options, watch=held, name="held")
    train(*options, "trainer.activation_checkpointing=true", watch=again, name="again")
    assert [record.metrics for record in held.records] == [record.metrics for record in again.records]


def test_shuffled_advantages_say_nothing_of_their_rollouts(train) -> None:
    watch = Watch()
    train(
        TRANSFORMERS,
        "algorithm.advantage._target_=atrl.advantage.ShuffledAdvantage",
        "trainer.max_steps=1",
        watch=watch,
    )
    record = watch.records[0]
    rewards = torch.tensor([[reward.total for reward in group] for group in record.rewards])
    honest = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert not torch.allclose(record.advantages, honest)
    torch.testing.assert_close(record.advantages.flatten().sort().values, honest.flatten().sort().values)


def test_several_updates_a_batch_use_the_old_log_probs(train) -> None:
    watch = Watch()
    train(TRANSFORMERS, "algorithm.updates_per_batch=3", "optimizer.learning_rate=5e-3", watch=watch)
    old = watch.records[0].experience.old_logprobs
    torch.testing.assert_close(old, watch.records[0].logprobs, rtol=0, atol=1e-5)
    # Of six updates the third at step 1: down from 1 to 0.1 over the five after the warm-up, so 1 - 0.9·(2 - 1)/4.
    assert watch.records[0].metrics["loss/learning_rate"] == pytest.approx(5e-3 * (1 - 0.9 / 4))
    # After two large steps on the same batch some ratios have left the clip range.
    assert watch.records[1].metrics["loss/clip_share"] > 0


def policy_passes(record_of: Watch, monkeypatch, train, *overrides: str, **options) -> int:
    """How many forward passes of a policy the training steps took."""
    from atrl import forward

    calls = []
    original = forward.read_at_head
    monkeypatch.setattr(forward, "read_at_head", lambda *args, **how: calls.append(1) or original(*args, **how))
    train(TRANSFORMERS, *overrides, watch=record_of, **options)
    return len(calls)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ((), 4),  # two steps of two micro-batches: credit reads its attention from the training pass
        (("credit=none",), 4),
        (("algorithm.kl_coefficient=0.1",), 8),  # and the reference's own
        (("algorithm.updates_per_batch=2",), 12),  # old log-probs need a pass of their own, which credit shares
        (("algorithm/correction=token_truncate",), 4),  # weights are of the training pass and the sampler's log-probs
        (("algorithm/correction=token_truncate", "algorithm.updates_per_batch=2"), 12),
    ],
    ids=["atrl", "none", "reference", "updates", "correction", "correction of updates"],
)
def test_credit_costs_no_pass_of_its_own(train, monkeypatch, overrides, passes) -> None:
    counted = policy_passes(
        Watch(), monkeypatch, train, "optimizer.micro_batch_size=8", "trainer.evaluate_samples=0", *overrides
    )
    assert counted == passes


def test_no_layer_runs_for_credit_alone(train, monkeypatch) -> None:
    """As many passes of the language half in the updates with `atrl` as without credit, whatever called them."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    from atrl.timing import PhaseTimer

    counted, forward, make = {"atrl": 0, "none": 0}, Qwen2_5_VLTextModel.forward, PhaseTimer.__init__
    timers = []

    def counting(*arguments, **options):
        counted[scheme] += any(timer.open_phase in ("score", "credit", "update") for timer in timers)
        return forward(*arguments, **options)

    monkeypatch.setattr(PhaseTimer, "__init__", lambda timer: timers.append(timer) or make(timer))
    monkeypatch.setattr(Qwen2_5_VLTextModel, "forward", counting)
    for scheme in counted:
        train(TRANSFORMERS, f"credit={scheme}", "trainer.max_steps=1", "trainer.evaluate_samples=0", name=scheme)
    assert counted["atrl"] == counted["none"] > 0


@pytest.mark.parametrize(
    ("overrides", "counted"),
    [
        (("credit=vppo",), "credit"),  # it compares rollouts, and nothing else needs the pass
        (("credit=vppo", "algorithm.kl_coefficient=0.1"), "credit"),  # nor does the reference, which has its own
        (("credit=vppo", "algorithm.updates_per_batch=2"), "score"),
        (("credit=atrl", "algorithm.updates_per_batch=2"), "score"),
    ],
)
def test_a_scoring_pass_is_counted_as_theirs_who_need_it(train, monkeypatch, overrides, counted) -> None:
    seen, forward = [], ForwardPass.__call__

    def watching(self, *arguments, **options):
        seen.extend([self.timer.open_phase] if not torch.is_grad_enabled() else [])
        return forward(self, *arguments, **options)

    monkeypatch.setattr(ForwardPass, "__call__", watching)
    train(TRANSFORMERS, *overrides, "trainer.max_steps=1", "trainer.evaluate_samples=0")
    assert set(seen) == {counted}


def test_clusters_are_begun_while_scoring_goes_on(train, monkeypatch) -> None:
    """With several updates a batch: each of four micro-batches' before the next one is scored."""
    events: list[str] = []
    forward, begin = ForwardPass.__call__, BoundCredit.begin
    monkeypatch.setattr(ForwardPass, "__call__", lambda *args, **how: events.append("pass") or forward(*args, **how))
    monkeypatch.setattr(BoundCredit, "begin", lambda *args: events.append("begin") or begin(*args))
    updates = ("algorithm.updates_per_batch=2", "optimizer.micro_batch_size=4")
    train(TRANSFORMERS, *updates, "trainer.max_steps=1", "trainer.evaluate_samples=0")
    assert events == ["pass", "begin"] * 4 + ["pass"] * 8


@pytest.mark.parametrize("overrides", [(), ("credit=entropy_atrl", "+credit.schemes.1.within=batch")])
def test_what_a_scoring_pass_read_is_gone_by_the_update(train, monkeypatch, overrides) -> None:
    """Of a whole batch it would lie in memory beside the activations; four rollouts' maps are kept for the report."""
    read: list[weakref.ref] = []
    alive: list[int] = []
    forward, begin = ForwardPass.__call__, BoundCredit.begin

    def beginning(credit, piece, evidence):
        read.extend(weakref.ref(capture.image) for capture in evidence.read.values())
        return begin(credit, piece, evidence)

    def watching(*arguments, **options):
        if torch.is_grad_enabled():
            alive.append(sum(image() is not None for image in read))
        return forward(*arguments, **options)

    monkeypatch.setattr(BoundCredit, "begin", beginning)
    monkeypatch.setattr(ForwardPass, "__call__", watching)
    options = ("algorithm.updates_per_batch=2", "optimizer.micro_batch_size=4", "trainer.max_steps=1")
    watch = Watch()
    train(TRANSFORMERS, *options, *overrides, "trainer.evaluate_samples=0", watch=watch)
    assert len(read) == 4 and alive == [0] * 8
    assert set(watch.records[0].attention) == {0, 4, 8, 12}


@pytest.mark.parametrize(
    "overrides",
    [("credit.workers=2",), ("algorithm.updates_per_batch=2",), ("credit.workers=2", "optimizer.micro_batch_size=4")],
    ids=["workers", "scoring pass", "pipelined"],
)
def test_weights_are_the_same_wherever_they_are_worked_out(train, overrides) -> None:
    """In this process or in others, on the training pass or on a scoring pass, one micro-batch ahead or not."""
    here, elsewhere = Watch(), Watch()
    train(TRANSFORMERS, "credit.workers=0", "trainer.max_steps=1", name="here", watch=here)
    train(TRANSFORMERS, "credit.workers=0", "trainer.max_steps=1", *overrides, name="elsewhere", watch=elsewhere)
    one, other = here.records[0], elsewhere.records[0]
    assert torch.equal(one.credit.anchors, other.credit.anchors)
    torch.testing.assert_close(one.credit.weights, other.credit.weights, rtol=0, atol=1e-5)
    assert set(one.attention) == set(other.attention) == {0, 4, 8, 12}
    for row, image in one.attention.items():
        torch.testing.assert_close(image, other.attention[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "alive"),
    [
        (("credit.workers=2",), [1, 2, 2, 2]),  # the next forward pass runs while the weights are worked out
        (("credit.workers=0",), [1, 1, 1, 1]),
        (("credit=none",), [1, 1, 1, 1]),
        (("credit.workers=2", "algorithm.updates_per_batch=2"), [1] * 8),  # weighed before the first update
    ],
    ids=["elsewhere", "here", "none", "scored before"],
)
def test_at_most_two_micro_batches_hold_activations(train, monkeypatch, overrides, alive) -> None:
    counted, living = [], 0
    forward, backward = ForwardPass.__call__, PolicyModule.manual_backward

    def counting_forward(*arguments, **options):
        nonlocal living
        if torch.is_grad_enabled():
            living += 1
            counted.append(living)
        return forward(*arguments, **options)

    def counting_backward(*arguments, **options):
        nonlocal living
        backward(*arguments, **options)
        living -= 1

    monkeypatch.setattr(ForwardPass, "__call__", counting_forward)
    monkeypatch.setattr(PolicyModule, "manual_backward", counting_backward)
    one_step = ("trainer.max_steps=1", "trainer.evaluate_samples=0", "optimizer.micro_batch_size=4")
    train(TRANSFORMERS, *one_step, *overrides)
    assert counted == alive and living == 0


@pytest.mark.parametrize("split", [None, "test", "selection"])
def test_the_policy_is_scored_on_the_split_that_was_asked_for(train, split) -> None:
    chosen = () if split is None else (f"trainer.evaluate_split={split}",)
    run = train(TRANSFORMERS, "trainer.max_steps=1", "trainer.grounding_samples=4", *chosen)
    problems = run.parts.source.load(split or "test")[:8]
    for score in (run.trained.before, run.trained.after):
        assert [(group.prompt.problem.id, group.prompt.problem.answer) for group in score.groups] == [
            (problem.id, problem.answer) for problem in problems
        ]
    asked = {group.prompt.problem.id for group in run.trained.grounding["true"].groups}
    assert asked <= {problem.id for problem in problems[:4]}


def test_dynamic_sampling_replaces_groups_that_teach_nothing(train) -> None:
    watch = Watch()
    run = train(
        TRANSFORMERS, "algorithm=dapo", "algorithm.dynamic_sampling.max_draws=3", "trainer.max_steps=3", watch=watch
    )
    for record in watch.records:
        assert len(record.groups) == 4
        differing = sum(len({reward.total for reward in group}) > 1 for group in record.rewards)
        assert record.metrics["rollout/filled_up_groups"] == 4 - differing
        assert record.metrics["rollout/drawn_groups"] == 4 + len(record.discarded)
        ids = [group.prompt.key for group in record.groups] + [group.prompt.key for group, _ in record.discarded]
        assert len(set(ids)) == len(ids)
    discarded = sum(len(record.discarded) for record in watch.records)
    assert discarded > 0
    assert sum(run.trained.record.statuses.values()) == 3 * 16 + 4 * discarded
    assert run.trained.record.generated_tokens > run.trained.record.trained_tokens


@pytest.mark.parametrize("where", ["torch.optim.AdamW.step", "atrl.module.PolicyModule._learn"])
def test_a_run_that_breaks_off_within_an_update_saves_nothing_halfway(train, monkeypatch, caplog, where: str) -> None:
    """Of two updates a batch the first optimizer step of the second step breaks, or what follows it."""
    owner, _, name = where.rpartition(".")
    module, _, kind = owner.rpartition(".")
    target = getattr(importlib.import_module(module), kind)
    original, calls, at = getattr(target, name), [], 3 if name == "step" else 4

    def broken(self, *arguments, **options):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("in the middle")
        return original(self, *arguments, **options)

    monkeypatch.setattr(target, name, broken)
    options = (TRANSFORMERS, "algorithm.updates_per_batch=2", "trainer.evaluate_samples=0")
    with pytest.raises(RuntimeError, match="in the middle"):
        train(*options, name="unsaved")
    assert "the run broke off; no finished step could be saved" in caplog.text
    calls.clear()
    with pytest.raises(RuntimeError, match="in the middle"):
        train(*options, "trainer.checkpoint_every=1", name="saved")
    assert "step_000001 is saved" in caplog.text


def test_a_stop_iteration_in_a_step_does_not_end_a_run_without_a_word(train) -> None:
    """Lightning takes it for the end of the data."""

    class Exhausted(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            next(iter(()))

    with pytest.raises(RuntimeError, match="a training step raised StopIteration") as caught:
        train(TRANSFORMERS, "trainer.evaluate_samples=0", watch=Exhausted())
    assert isinstance(caught.value.__cause__, StopIteration)
