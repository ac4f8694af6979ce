"""Writes down what every step did: metrics, all rollouts, and a few of them with their attention for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from lightning import Callback

from atrl import parallel
from atrl.callbacks.pictures import shown_pictures
from atrl.callbacks.samples import SampleWriter, head_maps, numbers
from atrl.credit.reading import token_pieces
from atrl.metrics import left_out_tokens, reward_metrics, rollout_metrics
from atrl.module import PolicyModule
from atrl.step import StepRecord
from atrl.timing import PhaseTimer
from atrl.tracking import ShownRollout, ShowsRollouts, step_now
from atrl.types import Status

_SAMPLE_MOMENTS = 5
MAX_GROUP_TEXT = 240
"""Characters of each text in a line of `groups.jsonl`."""


class RecordCallback(Callback):
    """Logs the step's metrics and appends its rollouts to `rollouts.jsonl`, its groups in short to `groups.jsonl`.

    Args:
        folder: of the run.
        tokenizer: to show tokens one by one.
        merge_size: image patches per image token along one side; 1 where the model does not merge.
        max_steps: of the run; rollouts for the report are taken at five moments spread over it.
    """

    def __init__(self, folder: Path, *, tokenizer, merge_size: int, max_steps: int) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._samples = SampleWriter(folder, tokenizer=tokenizer, merge_size=merge_size)
        last = _SAMPLE_MOMENTS - 1
        self._moments = {1 + round(moment * (max_steps - 1) / last) for moment in range(_SAMPLE_MOMENTS)}
        self.statuses: Counter[Status] = Counter()
        self.generated_tokens = self.trained_tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        counts = {"generated_tokens": self.generated_tokens, "trained_tokens": self.trained_tokens}
        return counts | {"statuses": {status.value: count for status, count in self.statuses.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from there."""
        self.generated_tokens, self.trained_tokens = state["generated_tokens"], state["trained_tokens"]
        self.statuses = Counter({Status(name): count for name, count in state["statuses"].items()})

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """Time spent before the first step is not the first step's."""
        self._samples.open()
        pl_module.timer.lap()
        pl_module.timer.lap_memory()

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Log, count and write: every rank's rollouts, by the first."""
        step = pl_module.last_step
        seconds = pl_module.timer.lap()
        # Groups that dynamic sampling left out count too: what is measured is the policy, not what was kept of it.
        drawn = step.rewards + [rewards for _, rewards in step.discarded]
        drawn = [group for groups in parallel.gather(drawn) for group in groups]
        rewards = reward_metrics(drawn)
        rollouts = rollout_metrics(step, seconds["rollout"])
        memory = memory_metrics(pl_module.timer)
        times = {f"time/{name}": value for name, value in seconds.items()}
        pl_module.log_dict(rewards | rollouts | step.metrics | times | memory, batch_size=1)
        bar = {"reward": rewards["reward/mean"], "accuracy": rewards["reward/right"]}
        bar["tokens/s"] = rollouts["rollout/tokens_per_second"]
        pl_module.log_dict(bar, prog_bar=True, logger=False, batch_size=1)
        own = step_rows(step, self._tokenizer)
        self.statuses.update(reward.status for group in drawn for reward in group)
        trained = int(parallel.sums([sum(len(row["tokens"]) for row in own)])[0])
        self.trained_tokens += trained
        self.generated_tokens += trained + left_out_tokens(step)
        heads = head_maps(pl_module, step) if step.step in self._moments else {}
        shares = parallel.gather_to_first((group_lines(step, own), own))
        if shares is None:
            return
        for number, name in enumerate(("groups.jsonl", "rollouts.jsonl")):
            with (self._folder / name).open("a", encoding="utf-8") as file:
                rows = (row for share in shares for row in share[number])
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if step.step in self._moments:
            self._samples.write(step, own, heads, None if pl_module.credit is None else pl_module.credit.scheme)
        for logger in trainer.loggers:
            if isinstance(logger, ShowsRollouts) and logger.table.is_due(step.step):
                logger.log_rollouts(first_of_each_group(step, own, logger.table.rollouts), step=step_now(trainer))


def memory_metrics(timer: PhaseTimer) -> dict[str, float]:
    """In bytes: what all processes hold of the host now, what torch held of a GPU at most, and that by phase.

    By phase it is the rank's that has most: of its GPU, or without one of the host (`PhaseTimer.lap_memory`).
    """
    metrics = {"memory/host": float(sum(parallel.gather(psutil.Process().memory_info().rss)))}
    ranks = parallel.gather((timer.device_peak, timer.lap_memory()))
    if device := max(peak for peak, _ in ranks):
        metrics["memory/device"] = float(device)
    phases = {name for _, lap in ranks for name in lap}
    most = {name: max(lap.get(name, 0) for _, lap in ranks) for name in sorted(phases)}
    return metrics | {f"memory/{name}": float(used) for name, used in most.items()}


def first_of_each_group(step: StepRecord, rows: Sequence[dict[str, Any]], groups: int) -> list[ShownRollout]:
    """The first rollout of each of the first `groups` groups, out of the step's `rows`: whatever came, unchosen."""
    size = len(step.groups[0].rollouts)
    return [
        ShownRollout(rows[number * size], [entry.picture for entry in shown_pictures(group.prompt)])
        for number, group in enumerate(step.groups[:groups])
    ]


def group_lines(step: StepRecord, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One JSON-ready line a group, of a few hundred bytes: what became of its rollouts, by status.

    A status has its number of rollouts, and over these the sums of tokens and of rewards.
    """
    lines: list[dict[str, Any]] = []
    size = len(step.groups[0].rollouts)
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        statuses: dict[str, list[float]] = {}
        for row in group:
            count, tokens, reward = statuses.get(row["status"], (0, 0, 0.0))
            statuses[row["status"]] = [count + 1, tokens + len(row["tokens"]), round(reward + row["reward"], 6)]
        texts = {name: group[0][name][:MAX_GROUP_TEXT] for name in ("question", "gold", "response")}
        lines.append({"step": step.step, "problem": group[0]["problem"], **texts, "statuses": statuses})
    return lines


def step_rows(step: StepRecord, tokenizer) -> list[dict[str, Any]]:
    """One JSON-ready row per rollout; its weights average 1."""
    rows: list[dict[str, Any]] = []
    for index, (group, rewards) in enumerate(zip(step.groups, step.rewards, strict=True)):
        problem = group.prompt.problem
        for sample, (rollout, reward) in enumerate(zip(group.rollouts, rewards, strict=True)):
            row, length = len(rows), len(rollout.token_ids)
            credit = step.credit
            rows.append(
                {
                    "step": step.step,
                    "problem": problem.id,
                    "question": problem.question,
                    **({"history": [asdict(turn) for turn in problem.history]} if problem.history else {}),
                    "gold": problem.answer,
                    "response": group.texts[sample],
                    "tokens": token_pieces(rollout.token_ids, tokenizer),
                    "reward": round(reward.total, 6),
                    "parts": reward.parts,
                    "status": reward.status.value,
                    "advantage": round(float(step.advantages[index, sample]), 6),
                    "weights": [1.0] * length if credit is None else numbers(credit.weights, row, length),
                    "anchors": None
                    if credit is None or credit.anchors is None
                    else credit.anchors[row, :length].tolist(),
                }
            )
    return rows
