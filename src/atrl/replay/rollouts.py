"""Recorded responses in the place of a sampler, and the callbacks of a run that is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning import Callback

from atrl.module import PolicyModule
from atrl.replay.compare import Difference, compare_lists, compare_steps
from atrl.replay.step_file import RecordedStep, read_step
from atrl.rollout.base import ModelHandle
from atrl.rollout.bound import BoundRollouts
from atrl.rollout.transformers import rollout_group
from atrl.types import Prompt, Rollout, RolloutGroup
from atrl.weight_sync import named_parameters


class RecordedRollouts:
    """The responses that a run recorded, for the steps in order.

    Args:
        run: its folder.
        handle: of the policy, for decoding.
        sampler: also draws the responses of step `target` anew, to be compared; None leaves that out.
    """

    def __init__(self, run: Path, handle: ModelHandle, *, sampler: BoundRollouts | None, target: int) -> None:
        self._run, self._handle, self._sampler, self._target = run, handle, sampler, target
        self._step = 1
        self.drawn_again: list[Difference] = []

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]:
        """The recorded group of every prompt.

        Raises:
            ValueError: if the step was not recorded with these prompts.
        """
        recorded = read_step(self._run, self._step)[0].rollouts()
        missing = [prompt.problem.id for prompt in prompts if prompt.key not in recorded]
        if missing:
            raise ValueError(
                f"step {self._step} of {self._run} was recorded without problem {missing[0]}, which the data has there "
                "now: replay with the data and the settings that the run had"
            )
        if self._sampler is not None and self._step == self._target:
            self._draw_again(prompts, recorded, seed)
        return [rollout_group(self._handle, prompt, recorded[prompt.key], version=self._step - 1) for prompt in prompts]

    def rest(self) -> None:
        """Nothing is held that could be given back."""

    def update_weights(self, parameters, version: int) -> None:
        """The step that follows `version` steps is next; the weights go to the sampler when they are needed."""
        self._step = version + 1

    def _draw_again(self, prompts: Sequence[Prompt], recorded: dict[str, list[Rollout]], seed: str) -> None:
        assert self._sampler is not None
        self._sampler.update_weights(named_parameters(self._handle.model), version=self._step - 1)
        groups = self._sampler.generate(prompts, seed=seed)
        pairs = [
            (f"{group.prompt.key}, sample {sample}", old.token_ids, new.token_ids)
            for group in groups
            for sample, (old, new) in enumerate(zip(recorded[group.prompt.key], group.rollouts, strict=True))
        ]
        places, old, new = zip(*pairs, strict=True)
        self.drawn_again.append(compare_lists("token ids, drawn again", old, new, places))


class ReplayCallback(Callback):
    """Binds the recorded responses, and compares every step with its record.

    Args:
        run: the run's folder.
        rollouts: what it recorded.
    """

    def __init__(self, run: Path, rollouts: RecordedRollouts) -> None:
        self._run, self._rollouts = run, rollouts
        self.found: dict[int, list[Difference]] = {}

    def setup(self, trainer, pl_module: PolicyModule, stage: str) -> None:
        """Bind."""
        pl_module.rollouts = self._rollouts

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Compare."""
        step = pl_module.last_step
        recorded, _ = read_step(self._run, step.step)
        self.found[step.step] = compare_steps(recorded, RecordedStep.of(step))
