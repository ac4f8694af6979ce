"""Where a benchmark's policy trains, and what a GPU needs to be measured rightly; for scripts here."""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import MutableMapping


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--trainer`, which `trainer_of` completes, and `--engine-share`."""
    parser.add_argument(
        "--trainer", choices=["cpu", "gpu"], help="as trainer= of train.py (default: gpu if there is one)"
    )
    share = "of the GPU's memory for vLLM, as rollout.sampler.gpu_memory_utilization (default: the config's)"
    parser.add_argument("--engine-share", type=float, metavar="X", help=share)


def trainer_of(asked: str | None) -> str:
    """What is asked for; of nothing `gpu` where torch sees a CUDA device, else `cpu`. torch is imported.

    Raises:
        SystemExit: with a line, where a GPU is asked for and none is there.
    """
    import torch

    there = torch.cuda.is_available()
    if asked == "gpu" and not there:
        raise SystemExit("--trainer gpu needs a CUDA device, and torch finds none: use --trainer cpu")
    return asked or ("gpu" if there else "cpu")


def overrides(rollout: str, trainer: str, *, share: float | None = None, threads: int | None = None) -> list[str]:
    """Of the composed config: who samples, where the policy trains, and what of the GPU is left for that."""
    found = [f"rollout={rollout}", f"trainer={trainer}", f"trainer.threads={threads or 'null'}"]
    if rollout == "vllm" and share is not None:
        found.append(f"rollout.sampler.gpu_memory_utilization={share}")
    return found


def torch_device(trainer: str) -> str:
    """torch's name of where that trainer's tensors are."""
    return "cuda" if trainer == "gpu" else "cpu"


def facts(trainer: str) -> dict[str, str]:
    """For the JSON: where the policy trained."""
    import torch

    return {"trainer": trainer} | ({"gpu": torch.cuda.get_device_name()} if trainer == "gpu" else {})


def use_one_gpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide all GPUs but the first, before torch looks for them: TRL would divide its batches among those it sees."""
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def wait_for_device() -> None:
    """Until the GPU has done what it was given: a clock read before would leave that out."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def held_bytes(device: str) -> int:
    """What is held now: by torch of the GPU, whose peak is forgotten; on the CPU the process's peak so far."""
    import torch

    if device == "cpu":
        return peak_bytes(device)
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(device: str, *, noted: int = 0) -> int:
    """The most that torch held of the GPU, or on the CPU this process of memory.

    `noted` is what `PhaseTimer.device_peak` says: the timer of a training run forgets torch's peak with every phase.
    """
    import torch

    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(noted, torch.cuda.max_memory_allocated())
