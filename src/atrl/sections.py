"""The sections of the training config but the planner's: what each may hold, and in what range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["32-true", "bf16-mixed"]

MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The top level of ``conf/train.yaml``."""

    experiment: str = "demo"  # names the run's folder
    stage: Literal["rl", "sft", "sft_rl"] = "rl"
    seed: int = 0
    plan: bool = False  # True prints memory and time and ends
    verbose: bool = False  # True lets the libraries log what they like
    resume: str | None = None  # auto: the newest checkpoint of the run's folder, if any; or a path
    resume_allow: tuple[str, ...] = ()  # keys that may differ from the checkpoint's

    def __post_init__(self) -> None:
        """Raises ValueError for a seed that the random generators refuse."""
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The group ``trainer``: how long, and on what."""

    max_steps: int = 120  # training steps of the RL stage, one rollout batch each
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = 1  # processes on each node
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"  # auto is ddp: a whole policy in each process; fsdp divides it
    precision: Precision = "32-true"
    cpu_offload: bool = False  # with fsdp, parameters and optimizer wait in host memory
    activation_checkpointing: bool = False  # activations are computed again for the backward pass
    deterministic: bool = False  # no bit of a prompt's rollouts and weights depends on batch, micro-batch or processes
    threads: int | None = None  # of each process; null for all cores divided among them, or 1 if deterministic
    record_steps: bool = True  # steps/, for replay.py
    evaluate_samples: int = 512  # held-out problems, before and after; 0 leaves the evaluation out
    evaluate_every: int | None = None  # steps; null for only before and after
    evaluate_greedy: bool = True  # these problems also at temperature 0
    evaluate_split: Literal["test", "selection"] = "test"  # selection to choose settings, test to report
    grounding_samples: int = 128  # of these problems, each time also without their own pictures; 0 leaves it out
    checkpoint_every: int | None = None  # steps; null for only one at the end
    keep_best: int = 0  # evaluated checkpoints that stay, beside the last

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small."""
        at_least("trainer.max_steps", self.max_steps, 1, "each step takes one rollout batch")
        at_least("trainer.num_nodes", self.num_nodes, 1)
        at_least("trainer.evaluate_samples", self.evaluate_samples, 0, "0 leaves the evaluation out")
        at_least("trainer.keep_best", self.keep_best, 0, "0 keeps the last alone")
        at_least("trainer.grounding_samples", self.grounding_samples, 0, "0 leaves the controls out")
        if self.cpu_offload and self.strategy != "fsdp":
            raise ValueError(
                f"trainer.cpu_offload needs trainer.strategy=fsdp, got {self.strategy}: or set it to false"
            )
        if self.devices != "auto":
            at_least("trainer.devices", self.devices, 1, "write trainer.accelerator=cpu to use no GPU")
        if self.threads is not None:
            at_least("trainer.threads", self.threads, 1, "null takes all cores")
        if self.evaluate_every is not None:
            at_least("trainer.evaluate_every", self.evaluate_every, 1, "null scores only before and after")
        if self.checkpoint_every is not None:
            at_least("trainer.checkpoint_every", self.checkpoint_every, 1, "null saves only at the end")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The section ``optimizer``: AdamW for the RL stage, its schedule, gradient clipping and micro-batches."""

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_steps: int = 5  # the learning rate rises linearly over so many optimizer steps
    decay_to: float = 0.1  # then falls linearly to this share of its peak at the last step; 1 keeps it constant
    max_gradient_norm: float = 1.0
    micro_batch_size: int = 64  # rollouts in one forward and backward pass; changes memory, and rounding
    micro_batch_tokens: int | None = None  # instead as many rollouts as have so many tokens, padding included
    share_prompts: bool = True  # run a prompt once, not with each of its responses
    logit_chunk_tokens: int | None = 1024  # tokens whose logits exist at a time, also in warm-up; null for all

    def __post_init__(self) -> None:
        """Raises ValueError for a rate or count that AdamW can't train with."""
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate must be above 0, got {self.learning_rate}: try 1e-4")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}: try [0.9, 0.98]")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay must be 0 (off) or more, got {self.weight_decay}")
        if not 0 <= self.decay_to <= 1:
            raise ValueError(f"optimizer.decay_to must be in [0, 1], got {self.decay_to}: 1 keeps the rate constant")
        at_least("optimizer.warmup_steps", self.warmup_steps, 0, "0 starts at the full learning rate")
        at_least("optimizer.micro_batch_size", self.micro_batch_size, 1)
        if self.micro_batch_tokens is not None:
            at_least("optimizer.micro_batch_tokens", self.micro_batch_tokens, 1, "null counts rollouts instead")
        if self.logit_chunk_tokens is not None:
            at_least("optimizer.logit_chunk_tokens", self.logit_chunk_tokens, 1, "null takes all of a micro-batch")
        norm = self.max_gradient_norm
        if norm <= 0:
            raise ValueError(f"optimizer.max_gradient_norm must be above 0, got {norm}: try 1")

    def runs_prompts_once(self, group_size: int, *, whole_rows: bool) -> bool:
        """Whether prompts are run once: as set, unless credit needs `whole_rows`, prompt and response in one pass.

        Nor where no micro-batch has two responses to a prompt: two passes would take longer than one.
        """
        by_ones = self.micro_batch_size == 1 and self.micro_batch_tokens is None
        return self.share_prompts and not (whole_rows or by_ones or group_size == 1)


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """The section ``sft``: supervised warm-up on worked answers."""

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 1.5e-3  # at its peak; decays to 5 % along a cosine
    weight_decay: float = 0.01
    warmup_steps: int = 20
    evaluate_every: int = 50  # steps between scores on the selection split; the best weights are kept

    def __post_init__(self) -> None:
        """Raises ValueError for a rate or count that AdamW can't train with."""
        for name in ("steps", "batch_size", "warmup_steps", "evaluate_every"):
            at_least(f"sft.{name}", getattr(self, name), 1)
        if self.learning_rate <= 0:
            raise ValueError(f"sft.learning_rate must be above 0, got {self.learning_rate}: try 1.5e-3")
        if self.weight_decay < 0:
            raise ValueError(f"sft.weight_decay must be 0 (off) or more, got {self.weight_decay}")


def check_seed(seed: int) -> None:
    """Raises ValueError, in one line, for a `seed` below 0 or above `MAX_SEED`."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, {MAX_SEED}], got {seed}")


def at_least(key: str, value: int, least: int, remedy: str = "") -> None:
    """Raises ValueError, in one line that starts with the config key, where `value` is below `least`."""
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}" + (f": {remedy}" if remedy else ""))
