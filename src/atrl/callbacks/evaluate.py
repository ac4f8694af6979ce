"""Sampled accuracy on held-out problems, before and after training and on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import Callback

from atrl.evaluation.score import Score, held_out_sampling, score_together
from atrl.module import PolicyModule
from atrl.tracking import log_once
from atrl.types import Prompt


class EvaluateCallback(Callback):
    """Scores the policy with the run's own sampler and reward, at temperature 1.

    The same problems and seeds each time, so that before and after differ by the policy alone.

    Args:
        prompts: held-out problems.
        samples: responses per problem.
        every: also every so many steps; None is only before and after.
        seed: of the run.
    """

    def __init__(self, prompts: Sequence[Prompt], *, samples: int, every: int | None, seed: int) -> None:
        self._prompts, self._samples, self._every, self._seed = prompts, samples, every, seed
        self.before: Score | None = None
        self.after: Score | None = None
        self.latest: tuple[int, float] | None = None
        """Step and accuracy of the last score on the way."""

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on need not measure again."""
        return {"before": None if self.before is None else self.before.in_short()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was measured when the run began."""
        self.before = None if state["before"] is None else Score.from_short(state["before"])

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training found it."""
        if self.before is None:
            self.before = self.score(pl_module, self._prompts)

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Log `eval/accuracy` every so many steps."""
        if self._every and pl_module.steps_done % self._every == 0:
            self.latest = pl_module.steps_done, self.score(pl_module, self._prompts).accuracy
            log_once(trainer, {"eval/accuracy": self.latest[1]})

    def on_train_end(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training leaves it."""
        self.after = self.score(pl_module, self._prompts)

    def score(self, pl_module: PolicyModule, prompts: Sequence[Prompt]) -> Score:
        """The policy on `prompts`; a problem's random numbers depend on its id alone, whatever its pictures are."""
        precision = pl_module.trainer.precision_plugin.forward_context()  # as in a training step
        with pl_module.timer.phase("evaluate"), precision:
            rollouts = pl_module.rollouts
            sampling = held_out_sampling(rollouts.sampling, samples=self._samples)
            seed = f"{self._seed}/held-out"
            return score_together(rollouts.sampler, prompts, pl_module.reward, sampling, seed=seed)
