"""TRL's `GRPOTrainer` on the problems of `step.py`, one step at a time; for `step.py`.

TRL and accelerate are not dependencies of the project: `pip install "trl>=1.16" accelerate`.
"""

from __future__ import annotations

import copy
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device import wait_for_device
from transformers import TrainerCallback

from atrl.models.load import LoadedModel
from atrl.sections import TrainerSettings
from atrl.types import Problem

if TYPE_CHECKING:
    from trl import GRPOConfig


class Logs(TrainerCallback):
    """Keeps what the trainer last said of each quantity."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **options) -> None:
        """Loss and norm of the gradient among others."""
        self.values |= logs or {}


class Turns(TrainerCallback):
    """Lets the trainer take a step when asked, in a thread of its own, and takes its time.

    The caller waits meanwhile, so that the two never run at the same time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.logs = Logs()
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

    def start(self, train: Callable[[], object]) -> None:
        """Begin `train` up to its first step."""

        def run() -> None:
            try:
                train()
            except BaseException as error:  # the caller raises it
                self._error = error
            self._done.release()

        threading.Thread(target=run, daemon=True).start()
        self._wait()

    def step(self) -> float:
        """Seconds of one step: rollouts, rewards, update."""
        self._go.release()
        self._wait()
        return self.seconds

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def on_step_begin(self, args, state, control, **options) -> None:
        """Wait until it is this side's turn."""
        self._done.release()
        self._go.acquire()
        wait_for_device()
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **options) -> None:
        """The optimizer has stepped."""
        wait_for_device()
        self.seconds = time.perf_counter() - self._start


def placement(trainer: TrainerSettings) -> dict[str, bool]:
    """TRL's words for where atrl trains by `trainer` and in which precision: autocast to bfloat16, or none."""
    return {"use_cpu": trainer.accelerator == "cpu", "bf16": trainer.precision == "bf16-mixed"}


def settings(
    *,
    trainer: TrainerSettings,
    prompts: int,
    group_size: int,
    tokens: int,
    micro_batch: int,
    steps: int,
    learning_rate: float,
) -> GRPOConfig:
    """TRL's for DAPO's loss without a KL term, placed as `trainer` is, with `tokens` tokens in every response.

    `micro_batch` rollouts go through a forward and backward pass.
    """
    from trl import GRPOConfig

    rollouts = prompts * group_size
    assert rollouts % micro_batch == 0, f"{rollouts} rollouts are no multiple of {micro_batch}"
    return GRPOConfig(
        output_dir=str(Path(tempfile.mkdtemp())),
        **placement(trainer),
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rollouts // micro_batch,
        num_generations=group_size,
        max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens},
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=1.0,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=False,
        max_steps=steps,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def peer(
    loaded: LoadedModel,
    problems: Sequence[Problem],
    reward: Callable[[Sequence[str]], list[float]],
    config: GRPOConfig,
    rollout_func: Callable[..., dict] | None = None,
):
    """TRL's trainer by `config`, as `settings` makes it, and its `Turns`; `rollout_func` generates in its place."""
    from datasets import Dataset
    from trl import GRPOTrainer

    rows = [
        {"prompt": [{"role": "user", "content": problem.question.replace("<image>", "").strip()}],
         "image": problem.images[0]} for problem in problems
    ]  # fmt: skip

    def score(completions, **_) -> list[float]:
        return reward([completion[0]["content"] for completion in completions])

    turns, processor = Turns(), copy.deepcopy(loaded.processor)
    processor.tokenizer.padding_side = "left"  # as TRL loads it
    own = GRPOTrainer(
        model=loaded.model,
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        callbacks=[turns, turns.logs],
        rollout_func=rollout_func,
    )
    return own, turns
