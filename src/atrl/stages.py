"""The two stages of a run: supervised warm-up, and reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning import Callback, Trainer

from atrl.callbacks.anchor_credit import AnchorCreditCallback
from atrl.callbacks.checkpoint import CheckpointCallback
from atrl.callbacks.evaluate import EvaluateCallback
from atrl.callbacks.grounding import GroundingCallback
from atrl.callbacks.progress import StepProgressBar
from atrl.callbacks.record import RecordCallback
from atrl.callbacks.rollout import RolloutCallback
from atrl.credit.calibration import HeadCalibration
from atrl.data.loader import PromptLoader
from atrl.data.templates import banned_token_ids, padding_id
from atrl.evaluation.grounding import build_controls
from atrl.evaluation.score import Score, held_out_sampling, score
from atrl.module import PolicyModule
from atrl.pipeline import Data, Parts, processes
from atrl.prompt_module import PromptModule, Sharding
from atrl.sft import SelectBest, SupervisedModule, TargetLoader
from atrl.strategy import strategy_of

if TYPE_CHECKING:
    from atrl.checkpoint import Checkpoint
    from atrl.data.prompts import PromptBuilder
    from atrl.models.load import LoadedModel


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
    )
    sampler = TransformersSampler()
    sampler.start(handle)
    sampling = held_out_sampling(parts.rollout.sampling, samples=1)
    selection = SelectBest(
        builder.build_all(data.selection).prompts, sampler, sampling, parts.reward, every=parts.sft.evaluate_every
    )
    loader = TargetLoader(
        data.train, builder, batch_size=parts.sft.batch_size, steps=parts.sft.steps, seed=parts.run.seed
    )
    # With RL to follow, the RL stage scores the policy on the test split itself.
    held_out = builder.build_all(data.test).prompts if parts.run.stage == "sft" else []

    def held_out_score() -> Score | None:
        seed = f"{parts.run.seed}/held-out"
        return score(sampler, held_out, parts.reward, sampling, seed=seed) if held_out else None

    before = held_out_score()
    fit(parts, module, loader, [selection, StepProgressBar()], gradient_clip_val=1.0)
    return WarmUpOutcome(selection.history, time.perf_counter() - start, before, held_out_score())


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
    module = policy_module(parts, loaded, more_prompts=loader.take)
    record = RecordCallback(
        parts.folder,
        tokenizer=loaded.processor.tokenizer,
        merge_size=getattr(loaded.processor.image_processor, "merge_size", 1),
        max_steps=parts.trainer.max_steps,
    )
    # The engine must take as many pictures as the problems with the most of them, wherever those are.
    listed = [problem for split in (data.train, data.test) if isinstance(split, list) for problem in split]
    handle = parts.rollout.handle(loaded, listed)
    rollout = RolloutCallback(parts.rollout.sampler, parts.rollout.sampling, handle)
    credit = None if parts.credit is None else credit_callback(parts, data, loaded, builder)
    evaluate, grounding, held_out = None, None, builder.build_all(data.test)
    if parts.trainer.evaluate_samples:
        evaluate = EvaluateCallback(
            held_out.prompts, samples=1, every=parts.trainer.evaluate_every, seed=parts.run.seed
        )
        controls = build_controls(held_out.prompts[: parts.trainer.grounding_samples], builder, seed=parts.run.seed)
        if controls.true:
            grounding = GroundingCallback(controls, evaluate, parts.folder)
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
    callbacks = [saving, rollout, credit, evaluate, grounding, record]
    bound = [entry for entry in callbacks if entry is not None]
    fit(parts, module, loader, [*bound, *watchers, *parts.callbacks, StepProgressBar()])
    return TrainingOutcome(
        module=module,
        record=record,
        credit=credit,
        before=evaluate and evaluate.before,
        after=evaluate and evaluate.after,
        grounding=grounding and grounding.after,
        dropped=sorted({*loader.dropped, *held_out.dropped}),
    )


def credit_callback(parts: Parts, data: Data, loaded: LoadedModel, builder: PromptBuilder) -> AnchorCreditCallback:
    """The callback around the run's scheme, with prompts to find its heads on where they are still to be found."""
    search, calibration = parts.credit.head_search, None
    if search is not None:
        calibration = HeadCalibration.prepare(search, data.train, builder, parts.folder)
    return AnchorCreditCallback(parts.credit, loaded.processor, calibration)


def policy_module(parts: Parts, loaded: LoadedModel, *, more_prompts=None) -> PolicyModule:
    """The module around the policy, with a frozen copy of it as reference where the objective asks for one."""
    import copy

    reference = None
    if parts.objective.kl_coefficient > 0:
        reference = copy.deepcopy(loaded.model).requires_grad_(False).eval()
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
        more_prompts=more_prompts,
    )


def fit(parts: Parts, module: PromptModule, loader: PromptLoader, callbacks: Sequence[Callback], **options) -> None:
    """Train by Lightning's trainer; its loops are as long as the loader, and checkpoints are our own callback's."""
    import torch

    settings = parts.trainer
    if settings.activation_checkpointing:
        module.policy.gradient_checkpointing_enable({"use_reentrant": False})
    compute_dtype = torch.bfloat16 if settings.precision == "bf16-mixed" else None
    module.sharding = Sharding(compute_dtype=compute_dtype, offload=settings.cpu_offload)
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy_of(settings, processes(settings)),
        # A sharded model computes in bfloat16 by itself: under autocast whole float32 parameters would be gathered.
        precision="32-true" if settings.strategy == "fsdp" else settings.precision,
        max_epochs=1,
        logger=parts.logger or False,
        callbacks=list(callbacks),
        default_root_dir=parts.folder,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, loader)
