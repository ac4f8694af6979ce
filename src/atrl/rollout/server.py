"""Rollouts by a `vllm serve` that runs elsewhere: ids in, ids and log-probs out, over HTTP.

Neither prompts nor responses travel as text, so nothing is tokenised twice: `/inference/v1/generate` of vLLM 0.32 takes
the ids of the prompt with its pictures and returns the ids that it made of them, the sampled ids with their log-probs,
and the version of the weights that sampled them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

from atrl import parallel
from atrl.models.families import check_vllm
from atrl.rollout.base import KeptKnown, ModelHandle, Sampling, check_prompt
from atrl.rollout.connection import START_COMMAND, ServerConnection
from atrl.rollout.transformers import end_token_ids, rollout_group
from atrl.rollout.vllm_sampling import check_temperature
from atrl.rollout.weight_transfer import NcclBroadcast, SharedFolder, Transfer, WeightTransfer, model_shape
from atrl.rollout.wire import generate_request, read_rollout
from atrl.types import Prompt, RolloutGroup
from atrl.weight_sync import named_parameters, parameter_forms

if TYPE_CHECKING:
    from torch import Tensor, nn

NCCL_OPTION = """--weight-transfer-config '{"backend": "nccl"}'"""

LOADING = "loading"
"""The version of weights that are being replaced: nothing that they sample is ever accepted."""


class VllmServerSampler:
    """Samples from a server, whose weights are replaced after every optimizer step.

    The server is the run's alone: another run that replaces its weights is noticed by their version, and both stop.

    Args:
        url: of the server: ``http://host:8000``.
        api_key_variable: the environment variable with the server's key, if it asks for one.
        weight_transfer: ``folder`` writes files that the server reads, ``nccl`` broadcasts from GPU to GPU.
        weights_folder: for ``folder``: on a file system that the server sees under the same path; None for a temporary
            folder, which does on one machine.
        address: for ``nccl``: of the trainer's machine, as the server reaches it; None asks the network.
        max_concurrent_requests: prompts that are asked for at a time.
        timeout_seconds: for one prompt's responses, or for loading weights.
        wait_seconds: how long a server may take to be ready.
        retries: further tries of a request whose connection or answer is lost.

    Raises:
        ValueError: if an option can't be used.
    """

    name = "server"
    takes_videos = False  # `/inference/v1/generate` has parts for pictures alone
    says_what_it_keeps: KeptKnown = "never"
    separates_groups = False

    def __init__(
        self,
        *,
        url: str,
        api_key_variable: str = "VLLM_API_KEY",
        weight_transfer: Transfer = "folder",
        weights_folder: str | None = None,
        address: str | None = None,
        max_concurrent_requests: int = 64,
        timeout_seconds: float = 600.0,
        wait_seconds: float = 60.0,
        retries: int = 3,
    ) -> None:
        if weight_transfer not in get_args(Transfer):
            raise ValueError(
                f"rollout.sampler.weight_transfer must be one of {', '.join(get_args(Transfer))}, got "
                f"{weight_transfer!r}"
            )
        if wait_seconds < 0:
            raise ValueError(f"rollout.sampler.wait_seconds must be 0 or more, got {wait_seconds}")
        self.server = ServerConnection(
            url=url,
            api_key_variable=api_key_variable,
            timeout_seconds=timeout_seconds,
            retries=retries,
            connections=max_concurrent_requests,
        )
        self.wait_seconds = wait_seconds
        self._transfers: dict[Transfer, Callable[[nn.Module], WeightTransfer]] = {
            "folder": lambda _: SharedFolder(weights_folder),
            "nccl": lambda policy: NcclBroadcast(parameter_forms(policy), address),
        }
        self._weight_transfer = weight_transfer
        self._handle: ModelHandle | None = None
        self._transfer: WeightTransfer | None = None
        self._dtype = ""
        self._run = ""
        self._version = 0
        self._taken_over = False

    def check(self, model_type: str) -> None:
        """Wait for the server, and make sure that it was started as atrl needs it.

        Raises:
            ValueError: in one line, if it is not there, not ready, or started without what it needs, or if vLLM can't
                take over the weights of models of `model_type`.
        """
        check_vllm(model_type, self.name)
        self.server.wait_until_ready(self.wait_seconds)
        described = self._describe()
        mode = described["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ValueError(
                f"rollout=server: {self.server.url} returns {mode}, which are not those that it samples with: start it "
                f"with `{START_COMMAND}`, or with --logprobs-mode processed_logprobs"
            )
        if self._weight_transfer == "nccl" and described["weight_transfer"] != "nccl":
            raise ValueError(
                f"rollout=server: {self.server.url} was not started for rollout.sampler.weight_transfer=nccl: start it "
                f"with `{START_COMMAND} {NCCL_OPTION}`, or use weight_transfer=folder"
            )
        self.server.post("/inference/v1/generate", {"token_ids": [0], "sampling_params": {"max_tokens": 1}})

    def start(self, handle: ModelHandle) -> None:
        """Check that the server's model is the policy, and give it the policy's weights as version 0.

        Raises:
            ValueError: in one line, if the server serves another model, or prompts that are too short.
        """
        assert self._handle is None, "the server sampler was already started"
        self.check(handle.model.config.model_type)
        described = self._describe()
        self._check_model(described, handle)
        self._dtype = described["dtype"]
        self._run = parallel.gather(secrets.token_hex(8))[0]
        self._taken_over = False
        if parallel.rank() == 0:
            self._transfer = self._transfers[self._weight_transfer](handle.model)
        self._handle = handle
        self.update_weights(named_parameters(handle.model), version=0)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order.

        With temperature 0 the log-probabilities are those of temperature 1.

        Raises:
            ValueError: in one line, if the server can't be reached or refuses, expands a prompt differently, has other
                weights than it was given, or if the temperature is one that vLLM would change.
        """
        assert self._handle is not None, "the server sampler was not started"
        check_temperature(sampling)
        pool = ThreadPoolExecutor(self.server.connections, thread_name_prefix="rollout")
        try:
            answers = [pool.submit(self._answer, prompt, sampling, seed) for prompt in prompts]
            return [self._group(prompt, answer.result()) for prompt, answer in zip(prompts, answers, strict=True)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def rest(self) -> None:
        """The server's memory is none of the trainer's."""

    @property
    def dtype(self) -> str:
        """Of the server's weights; empty before the start."""
        return self._dtype

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the server's weights and drop what it computed with the old ones.

        One rank sends, and all go on when it is done. What the server still samples for others is aborted.

        Raises:
            ValueError: on every rank, in one line, if that fails or another run has replaced the weights.
        """
        assert self._handle is not None, "the server sampler was not started"
        parameters, problem = iter(parameters), None
        if parallel.rank() == 0:
            try:
                self._replace_weights(parameters, version)
            except ValueError as error:
                problem = str(error)
        for _ in parameters:  # gathering a sharded parameter takes all ranks, whatever became of the update
            pass
        problem = parallel.gather(problem)[0]
        if problem is not None:
            raise ValueError(problem)
        self._version = version

    def close(self) -> None:
        """Leave the server running, with the last weights."""
        if self._transfer is not None:
            self._transfer.close()
        self._transfer = self._handle = None
        self.server.close()

    def _replace_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        assert self._transfer is not None
        if self._taken_over:
            self._check_version([self.server.get("/weight_info")["weight_version"]], "it")
        self._taken_over = True
        self.server.post("/pause?mode=abort")
        try:
            self.server.post("/update_weight_version", {"new_version": LOADING})
            self._transfer.send(parameters, self.server, self._dtype)
            # Keys and values, and the features of pictures, are those of the old weights.
            self.server.post("/reset_encoder_cache")
            if not self.server.post("/reset_prefix_cache")["success"]:
                raise ValueError(f"rollout=server: {self.server.url} kept its prefix cache: a request is still running")
            self.server.post("/update_weight_version", {"new_version": self._tag(version)})
        finally:
            self.server.post("/resume")

    def _tag(self, version: int) -> str:
        return f"{self._run}/{version}"

    def _check_version(self, found: Iterable[str], what: str) -> None:
        others = sorted(set(found) - {self._tag(self._version)})
        if others:
            raise ValueError(
                f"rollout=server: {what} at {self.server.url} has weights of version {others[0]!r} and not "
                f"{self._tag(self._version)!r}: does another run use the server, or was it started again?"
            )

    def _describe(self) -> dict[str, Any]:
        """The answer of the server's first worker; all are started alike."""
        try:
            return self.server.post("/collective_rpc", {"method": "atrl_describe"})["results"][0]
        except ValueError as error:
            if "HTTP 500" not in str(error):
                raise
            raise ValueError(
                f"rollout=server: {self.server.url} was started without atrl's worker extension: start it with "
                f"`{START_COMMAND}`, or with --worker-extension-cls atrl.rollout.vllm_worker.WeightReceiver"
            ) from error

    def _check_model(self, described: dict[str, Any], handle: ModelHandle) -> None:
        own = model_shape(handle.model.config)
        for name, value in own.items():
            if described["shape"][name] != value:
                raise ValueError(
                    f"rollout=server: {self.server.url} serves another model than {handle.folder}: its {name} is "
                    f"{described['shape'][name]} and not {value}: start it with `{START_COMMAND}`, MODEL being this one"
                )
        length = handle.max_prompt_tokens + handle.max_response_tokens
        for option, there, needed in (
            ("max-model-len", described["max_model_len"], length),
            ("max-images", described["max_images"], handle.max_images),
        ):
            if there < needed:
                raise ValueError(
                    f"rollout=server: {self.server.url} was started for {option} {there}, and {needed} are needed: "
                    f"start it with `{START_COMMAND} --{option} {needed}`"
                )

    def _answer(self, prompt: Prompt, sampling: Sampling, seed: str) -> dict[str, Any]:
        assert self._handle is not None
        return self.server.post("/inference/v1/generate", generate_request(prompt, sampling, self._handle, seed))

    def _group(self, prompt: Prompt, answer: dict[str, Any]) -> RolloutGroup:
        assert self._handle is not None
        problem = prompt.problem.id
        check_prompt(prompt, answer["prompt_token_ids"] or [], self.server.url)
        ends = end_token_ids(self._handle)
        rollouts = []
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
            if choice["finish_reason"] not in ("stop", "length"):
                raise ValueError(
                    f"rollout=server: {self.server.url} broke off a response to problem {problem} "
                    f"({choice['finish_reason']}): does another run use the server?"
                )
            self._check_version((span["version"] for span in choice["weight_versions"]), f"problem {problem}'s sampler")
            rollouts.append(read_rollout(choice, ends, problem))
        return rollout_group(self._handle, prompt, rollouts, self._version)
