"""Whether the policy reads its pictures: held-out accuracy beside that with them blanked and with another problem's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Callback

from atrl import parallel
from atrl.callbacks.evaluate import EvaluateCallback
from atrl.evaluation.grounding import Controls
from atrl.evaluation.score import Score, on_problems
from atrl.module import PolicyModule
from atrl.tracking import log_once


class GroundingCallback(Callback):
    """Scores the policy on the controls whenever `evaluation` scores it: before, on the way and after training.

    Logs the three accuracies each time; those before and after go to `grounding.json`. The same problems, partners and
    seeds each time, so that a curve moves by the policy alone.

    The true accuracy is that of `evaluation`'s own rollouts on the same problems, which would only be drawn again: the
    seeds are the same, and so each problem's random numbers in all three.

    Args:
        controls: of problems that `evaluation` scores.
        evaluation: must come before this callback.
        folder: of the run.
    """

    def __init__(self, controls: Controls, evaluation: EvaluateCallback, folder: Path) -> None:
        self._controls, self._evaluation, self._path = controls, evaluation, folder / "grounding.json"
        self.before: dict[str, Score] | None = None
        self.after: dict[str, Score] | None = None
        self._latest: tuple[int, dict[str, Score]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on need not measure again."""
        return {} if self.before is None else {name: score.in_short() for name, score in self.before.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was measured when the run began."""
        self.before = {name: Score.from_short(figures) for name, figures in state.items()}

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training found it."""
        if self.before is None:
            true = self._evaluation.before
            if true is not None and not true.groups:  # of a checkpoint, from before this was measured
                true = self._evaluation.score(pl_module, self._controls.true)
            self.before = self._measure(trainer, pl_module, true)

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """The policy on the way, at the steps at which `evaluation` scores it."""
        step = pl_module.steps_done
        if (found := self._evaluation.scored_at(step)) is not None:
            self._latest = step, self._measure(trainer, pl_module, found.sampled)

    def on_train_end(self, trainer, pl_module: PolicyModule) -> None:
        """The policy as training leaves it, unless the last step's score is of that; both ends go to the file."""
        if self._latest is not None and self._latest[0] == pl_module.steps_done:
            self.after = self._latest[1]
        else:
            self.after = self._measure(trainer, pl_module, self._evaluation.after)
        if parallel.rank() == 0:
            self._path.write_text(json.dumps(self._as_json(), indent=2) + "\n", encoding="utf-8")

    def _measure(self, trainer, pl_module: PolicyModule, true: Score | None) -> dict[str, Score]:
        assert true is not None, "EvaluateCallback must come before GroundingCallback"
        scores = {
            "true": on_problems(true, {prompt.problem.id for prompt in self._controls.true}),
            "blank": self._evaluation.score(pl_module, self._controls.blank),
            "swapped": self._evaluation.score(pl_module, self._controls.swapped),
        }
        found = {f"eval/picture_{name}": score.accuracy for name, score in scores.items()}
        log_once(trainer, found, step=pl_module.steps_done)
        return scores

    def _as_json(self) -> dict[str, Any]:
        moments = {"before": self.before, "after": self.after}
        return {
            **{moment: {name: score.in_short() for name, score in found.items()} for moment, found in moments.items()},
            "left_out": self._controls.left_out,
            "same_answer": self._controls.same_answer,
        }
