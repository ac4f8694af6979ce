"""The machine: GPUs, processor, memory, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from atrl.doctor.finding import Finding, note, ok, problem

GIB = 2**30


def gpus() -> Iterator[Finding]:
    """Each CUDA device that torch sees; whether there is one that it doesn't."""
    import torch

    smi = ask_driver("--query-gpu=driver_version,name", "--format=csv,noheader")
    if not torch.cuda.is_available():
        if smi:
            says = f"the driver has {smi[0]}, and torch {torch.__version__} finds no CUDA device"
            yield problem("GPU", says, "make setup FLAVOUR=cuda installs the CUDA build; check CUDA_VISIBLE_DEVICES")
        else:
            says = "none that torch finds: trainer=cpu, for models of a few million parameters"
            yield note("GPU", says, "train larger models on a machine with an NVIDIA GPU (docs/scaling.md)")
        return
    driver = f", driver {smi[0].partition(',')[0]}" if smi else ""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        about = f"{properties.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, CUDA {torch.version.cuda}{driver}"
        if free < total / 2:
            yield note(f"GPU {index}", about, "`nvidia-smi` shows which process holds the rest; end it, or use another")
        else:
            yield ok(f"GPU {index}", about)


def ask_driver(*options: str) -> list[str]:
    """Lines that ``nvidia-smi`` prints; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def processor(
    cores: int | None = None, load: float | None = None, environment: Mapping[str, str] = os.environ
) -> Finding:
    """How many cores this process may use, how many threads it was told to start, and whether others are at work."""
    cores = cores or usable_cores()
    load = os.getloadavg()[0] if load is None else load
    threads = environment.get("OMP_NUM_THREADS", "")
    says = f"{cores} {'core' if cores == 1 else 'cores'}, OMP_NUM_THREADS={threads or 'unset'}, load {load:.1f}"
    if threads.isdecimal() and int(threads) > cores:
        return note("processor", says, f"unset OMP_NUM_THREADS or set it to {cores}: more threads are slower")
    if load > 1.5 * cores:
        return note("processor", says, "other programs are at work: don't trust timings that are taken now")
    return ok("processor", says)


def usable_cores() -> int:
    """Cores that the scheduler and the container leave to this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, max(1, int(share) // int(period)))
    return cores


def memory(available: int | None = None, *, least: int = 4 * GIB) -> Finding:
    """The host's memory that is to be had; the demo takes some 3 GiB."""
    import psutil

    there = psutil.virtual_memory()
    available = there.available if available is None else available
    says = f"{available / GIB:.1f} of {there.total / GIB:.1f} GiB available"
    if available < least:
        return note("memory", says, "end other programs, or lower rollout.sampler.cpu_cache_gib and micro_batch_size")
    return ok("memory", says)


def disk(folder: Path, *, wanted: int = 10 * GIB, least: int = GIB) -> Finding:
    """Room for runs in `folder`, which need not be there yet, and whether it can be written."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    says = f"{free / GIB:.1f} GiB free in {place}"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return problem("disk", f"{place} can't be written: {error.strerror}", "run elsewhere, or set hydra.run.dir")
    if free < least:
        return problem("disk", says, "delete old runs, or set hydra.run.dir to a folder with more room")
    if free < wanted:
        return note("disk", says, "a checkpoint of a 7B model takes 60 GB and more: set hydra.run.dir elsewhere")
    return ok("disk", says)
