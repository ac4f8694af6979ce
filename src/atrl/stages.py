"""The two stages of a run: supervised warm-up, and reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, Trainer

from atrl.callbacks.anchor_credit import AnchorCreditCallback
from atrl.callbacks.checkpoint import CheckpointCallback
from atrl.callbacks.evaluate import EvaluateCallback
from atrl.callbacks.grounding import GroundingCallback
from atrl.callbacks.interrupt import InterruptCallback
from atrl.callbacks.progress import StepProgressBar
from atrl.callbacks.record import RecordCallback
from atrl.callbacks.rollout import RolloutCallback
from atrl.callbacks.start import StartCallback
from atrl.callbacks.steps import StepFileCallback
from atrl.credit.calibration import HeadCalibration
from atrl.data.generated import examples
from atrl.data.loader import PromptLoader
from atrl.data.templates import banned_token_ids, padding_id
from atrl.evaluation.grounding import build_controls
from atrl.evaluation.score import Score, held_out_sampling
from atrl.gradients import DoubleSum, RunningSum
from atrl.models.lora import has_adapters
from atrl.module import PolicyModule
from atrl.pipeline import Data, Parts, main_process, processes
from atrl.prompt_module import PromptModule
from atrl.reference import keep_reference
from atrl.sft import HeldOutScore, SelectBest, SupervisedModule, TargetLoader
from atrl.splitting import EvenSplit, GroupSplit, Split, TokenBudgetSplit
from atrl.strategy import EndsAlone, EveryStep, precision_of, sharding_of, strategy_of
from atrl.versions import git_revision, versions

if TYPE_CHECKING:
    from atrl.checkpoint import Checkpoint
    from atrl.data.prompts import PromptBuilder
    from atrl.models.load import LoadedModel
    from atrl.rollout.base import Sampling
    from atrl.rollout.dealing import PromptStream
    from atrl.types import Prompt


@dataclass(frozen=True, slots=True, eq=False)
class WarmUpOutcome:
    """What the supervised stage reached, and in how many seconds."""

    history: list[tuple[int, float]]
    """(step, accuracy) on the selection split at each evaluation."""
    seconds: float
    before: Score | None
    after: Score | None
    """Both on the test split, which chose nothing; None where RL follows."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingOutcome:
    """What the RL stage left behind in memory."""

    module: PolicyModule
    record: RecordCallback
    credit: AnchorCreditCallback | None
    before: Score | None
    after: Score | None
    greedy: tuple[Score | None, Score | None]
    """Before and after, at temperature 0."""
    grounding: dict[str, Score] | None
    """After training: "true", "blank" and "swapped", on the same problems; None where it was not measured."""
    dropped: list[str]
    """Ids of the problems whose prompts were too long, held-out ones included."""


def warm_up(parts: Parts, data: Data, loaded: LoadedModel) -> WarmUpOutcome:
    """Train `loaded.model` on worked answers, in place, and keep the weights that the selection split likes best."""
    import time

    from atrl.rollout.transformers import TransformersSampler, end_token_ids

    start = time.perf_counter()
    builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
    handle = parts.rollout.handle(loaded, data.train)
    module = SupervisedModule(
        policy=loaded.model,
        tokenizer=loaded.processor.tokenizer,
        end_id=(*handle.turn_end_ids, *end_token_ids(handle))[0],  # as the chat template closes an answer
        settings=parts.sft,
        chunk=parts.optimizer.logit_chunk_tokens,
    )
    sampler = TransformersSampler()
    sampler.start(handle)
    sampling = held_out_sampling(parts.rollout.sampling, samples=1)
    selection = SelectBest(
        builder.build_held_out(data.selection, "selection").prompts,
        sampler,
        sampling,
        parts.reward,
        every=parts.sft.evaluate_every,
    )
    loader = TargetLoader(
        data.train, builder, batch_size=parts.sft.batch_size, steps=parts.sft.steps, seed=parts.run.seed
    )
    # With RL to follow, the RL stage scores the policy on the test split itself.
    held_out = builder.build_held_out(data.test, "test").prompts if parts.run.stage == "sft" else []
    ends = HeldOutScore(held_out, sampler, sampling, parts.reward, seed=f"{parts.run.seed}/held-out")
    callbacks = [InterruptCallback(None), selection, ends, StepProgressBar()]
    fit(parts, module, loader, callbacks, gradient_clip_val=1.0)
    return WarmUpOutcome(selection.history, time.perf_counter() - start, ends.before, ends.after)


def reinforce(
    parts: Parts,
    data: Data,
    loaded: LoadedModel,
    *,
    settings: dict[str, Any] | None = None,
    start: Checkpoint | None = None,
    watchers: Sequence[Callback] = (),
) -> TrainingOutcome:
    """Train `loaded.model` by reinforcement learning, in place, scoring it before and after.

    Training goes on from `start`, if there is one. Checkpoints hold `settings`, by which a later part of the run is
    known to be one. `watchers` are callbacks of the caller's own, which see every step's record.
    """
    builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
    loader = PromptLoader(
        data.train,
        builder,
        batch_size=parts.rollout.prompts_per_step,
        steps=parts.trainer.max_steps,
        seed=parts.run.seed,
    )
    module = policy_module(parts, loaded, stream=loader)
    if module.reference is not None and parts.run.stage == "sft_rl":
        keep_reference(parts.folder / "checkpoints", module.reference, start)
    record = record_callback(parts, loaded)
    # The engine must take as many pictures as the problems with the most of them, wherever those are.
    handle = parts.rollout.handle(loaded, [*examples(data.train), *examples(data.test)])
    credit = None if parts.credit is None else credit_callback(parts, data, loaded, builder)
    held_out = builder.build_held_out(data.test, "test")
    evaluate, grounding = evaluation_callbacks(parts, held_out.prompts, builder)
    saving = CheckpointCallback(
        parts.folder,
        every=parts.trainer.checkpoint_every,
        keep_best=parts.trainer.keep_best,
        loader=loader,
        evaluation=evaluate,
        settings=settings or {},
        started=parts.started,
        start=start,
    )
    rollout = RolloutCallback(
        parts.rollout, training_sampling(parts), handle, folder=parts.folder, rescue=saving.rescue
    )
    steps = StepFileCallback(parts.folder) if parts.trainer.record_steps else None
    starting = None if start is None else StartCallback(start, loader)
    callbacks = [starting, saving, InterruptCallback(saving), rollout, credit, evaluate, grounding, record, steps]
    bound = [entry for entry in callbacks if entry is not None]
    fit(parts, module, loader, [*bound, *watchers, *parts.callbacks, StepProgressBar()])
    return TrainingOutcome(
        module=module,
        record=record,
        credit=credit,
        before=evaluate.before if evaluate else None,
        after=evaluate.after if evaluate else None,
        greedy=(evaluate.greedy_before, evaluate.greedy_after) if evaluate else (None, None),
        grounding=grounding.after if grounding else None,
        dropped=sorted({*loader.dropped, *held_out.dropped}),
    )


def training_sampling(parts: Parts) -> Sampling:
    """How training rollouts are drawn."""
    return replace(parts.rollout.sampling, separate_groups=parts.trainer.deterministic)


def record_callback(parts: Parts, loaded: LoadedModel) -> RecordCallback:
    """The callback that writes metrics and rollouts into the run's folder."""
    return RecordCallback(
        parts.folder,
        tokenizer=loaded.processor.tokenizer,
        merge_size=getattr(loaded.processor.image_processor, "merge_size", 1),
        max_steps=parts.trainer.max_steps,
    )


def evaluation_callbacks(
    parts: Parts, held_out: Sequence[Prompt], builder: PromptBuilder
) -> tuple[EvaluateCallback | None, GroundingCallback | None]:
    """The callbacks that score the `held_out` problems, with their own pictures and without.

    None for one that the settings leave out, or that has no pictures to exchange.
    """
    if not parts.trainer.evaluate_samples:
        return None, None
    evaluate = EvaluateCallback(
        held_out,
        samples=1,
        every=parts.trainer.evaluate_every,
        seed=parts.run.seed,
        greedy=parts.trainer.evaluate_greedy,
    )
    controls = build_controls(held_out[: parts.trainer.grounding_samples], builder, seed=parts.run.seed)
    return evaluate, GroundingCallback(controls, evaluate, parts.folder) if controls.true else None


def credit_callback(parts: Parts, data: Data, loaded: LoadedModel, builder: PromptBuilder) -> AnchorCreditCallback:
    """The callback around the run's scheme, with prompts to find its heads on where they are still to be found."""
    search, calibration = parts.credit.head_search, None
    if search is not None:
        calibration = HeadCalibration.prepare(search, data.train, builder, parts.folder)
    return AnchorCreditCallback(parts.credit, loaded.processor, calibration)


def policy_module(parts: Parts, loaded: LoadedModel, *, stream: PromptStream | None = None) -> PolicyModule:
    """The module around the policy, with a reference where the objective asks for one.

    That is a frozen copy, or the policy itself where it has adapters to be passed by.
    """
    import copy

    reference = None
    if parts.objective.kl_coefficient > 0:
        reference = loaded.model
        if not has_adapters(reference):
            reference = copy.deepcopy(reference).requires_grad_(False).eval()
    banned_ids = banned_token_ids(loaded.processor)
    return PolicyModule(
        policy=loaded.model,
        reference=reference,
        objective=parts.objective,
        reward=parts.reward,
        optimizer_settings=parts.optimizer,
        temperature=parts.rollout.temperature,
        banned_ids=banned_ids,
        pad_id=padding_id(loaded.processor.tokenizer, banned_ids),
        max_response_tokens=parts.rollout.max_response_tokens,
        max_steps=parts.trainer.max_steps,
        seed=parts.run.seed,
        split=split_of(parts),
        share_prompts=shares_prompts(parts),
        gradients=DoubleSum() if parts.trainer.deterministic else RunningSum(),
        stream=stream,
    )


def shares_prompts(parts: Parts) -> bool:
    """Whether a prompt is run once for all of its responses."""
    whole_rows = parts.credit is not None and parts.credit.needs_whole_rows
    return parts.optimizer.runs_prompts_once(parts.rollout.group_size, whole_rows=whole_rows)


def split_of(parts: Parts) -> Split:
    """How batches are cut into micro-batches: if deterministic by prompt, else by tokens or rollouts."""
    if parts.trainer.deterministic:
        return GroupSplit()
    tokens = parts.optimizer.micro_batch_tokens
    if tokens is not None:
        in_step = parts.trainer.strategy == "fsdp"
        return TokenBudgetSplit(max_tokens=tokens, share_prompts=shares_prompts(parts), in_step=in_step)
    return EvenSplit(size=parts.optimizer.micro_batch_size)


def fit(parts: Parts, module: PromptModule, loader: PromptLoader, callbacks: Sequence[Callback], **options) -> None:
    """Train by Lightning's trainer; its loops are as long as the loader, and checkpoints are our own callback's."""
    settings = parts.trainer
    if settings.activation_checkpointing:
        module.policy.gradient_checkpointing_enable({"use_reentrant": False})
        # Reentrant checkpoints alone need it. Frozen vision towers, which run once in a step, would have a graph by it,
        # and the second micro-batch with a picture would go back through what the first one has freed.
        module.policy.disable_input_require_grads()
    module.sharding = sharding_of(settings)
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy_of(settings, processes(settings)),
        precision=precision_of(settings),
        max_epochs=1,
        logger=parts.logger or False,
        callbacks=list(callbacks),
        default_root_dir=parts.folder,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        # On the CPU every kernel repeats itself; on a GPU some add up in whatever order their threads come in.
        deterministic="warn" if settings.deterministic and settings.accelerator != "cpu" else None,
        **options,
    )
    trainer.fit_loop.epoch_loop = EveryStep.of(trainer)
    if not len(loader):  # a run that was killed after its last step
        trainer.fit_loop = EndsAlone.of(trainer)
    if main_process():
        facts = {"versions": versions(), "git_revision": git_revision(Path(__file__).parent)}
        for logger in parts.logger:
            logger.log_hyperparams(parts.settings | facts)
    trainer.fit(module, loader)
