"""Accuracy on held-out problems, sampled and greedy, before and after training and on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning import Callback

from atrl.evaluation.score import Score, held_out_sampling, score_together
from atrl.module import PolicyModule
from atrl.rollout.bound import BoundRollouts
from atrl.tracking import log_once
from atrl.types import Prompt


@dataclass(frozen=True, slots=True, eq=False)
class StepScore:
    """The policy after `step` training steps, sampled and greedy; None where greedy accuracy is not asked for."""

    step: int
    sampled: Score
    greedy: Score | None


class EvaluateCallback(Callback):
    """Scores the policy with the run's own sampler and reward, at temperature 1 and greedily.

    The same problems and seeds each time, so that before and after differ by the policy alone.

    Args:
        prompts: held-out problems.
        samples: responses per problem, at temperature 1.
        greedy: also one response per problem at temperature 0, drawn after the others and of no effect on them.
        every: also every so many steps; None is only before and after.
        seed: of the run.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, samples: int, every: int | None, seed: int, greedy: bool = False
    ) -> None:
        self._prompts, self._samples, self._every, self._seed = prompts, samples, every, seed
        self._greedy = greedy
        self.before: Score | None = None
        self.after: Score | None = None
        self.greedy_before: Score | None = None
        self.greedy_after: Score | None = None
        self.latest: StepScore | None = None
        """The last score on the way."""

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on need not measure again."""
        return {
            name: None if score is None else score.in_short() | {"right": score.right}
            for name, score in (("before", self.before), ("greedy_before", self.greedy_before))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was measured when the run began."""
        before, greedy = state["before"], state.get("greedy_before")
        self.before = None if before is None else Score.from_short(before)
        self.greedy_before = None if greedy is None else Score.from_short(greedy)

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training found it."""
        if self.before is None:
            self.before, self.greedy_before = self._both(pl_module)

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Log `eval/accuracy`, and `eval/greedy_accuracy`, every so many steps."""
        if self._every and pl_module.steps_done % self._every == 0:
            sampled, greedy = self._both(pl_module)
            self.latest = StepScore(pl_module.steps_done, sampled, greedy)
            more = {} if greedy is None else {"eval/greedy_accuracy": greedy.accuracy}
            log_once(trainer, {"eval/accuracy": sampled.accuracy, **more}, step=pl_module.steps_done)

    def on_train_end(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training leaves it; the last step's score on the way is of the same."""
        if (found := self.scored_at(pl_module.steps_done)) is not None:
            self.after, self.greedy_after = found.sampled, found.greedy
        else:
            self.after, self.greedy_after = self._both(pl_module)

    def scored_at(self, step: int) -> StepScore | None:
        """The score on the way after `step` steps; None unless that is the latest."""
        return self.latest if self.latest is not None and self.latest.step == step else None

    def _both(self, pl_module: PolicyModule) -> tuple[Score, Score | None]:
        sampled = self.score(pl_module, self._prompts)
        return sampled, self.score(pl_module, self._prompts, greedy=True) if self._greedy else None

    def score(self, pl_module: PolicyModule, prompts: Sequence[Prompt], *, greedy: bool = False) -> Score:
        """The policy on `prompts`; a problem's random numbers depend on its id alone, whatever its pictures are."""
        precision = pl_module.trainer.precision_plugin.forward_context()  # as in a training step
        with pl_module.timer.phase("evaluate"), precision:
            rollouts = pl_module.rollouts
            assert isinstance(rollouts, BoundRollouts), "no sampler is bound: add the rollout callback to the trainer"
            sampling = held_out_sampling(rollouts.sampling, samples=1 if greedy else self._samples, greedy=greedy)
            seed = f"{self._seed}/held-out"
            return score_together(rollouts.sampler, prompts, pl_module.reward, sampling, seed=seed)
