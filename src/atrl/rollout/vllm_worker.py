"""What `vllm serve` runs inside its workers for atrl: it takes over weights, and tells how the server was started.

Only a server imports this file, by ``--worker-extension-cls atrl.rollout.vllm_worker.WeightReceiver``: vLLM's
documented way to add methods to its workers, which ``/collective_rpc`` then calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atrl.rollout.vllm_engine import keep_weights_replaceable
from atrl.rollout.weight_transfer import model_shape


class WeightReceiver:
    """Mixed into vLLM's worker class; `self` is the worker. Answers are JSON."""

    vllm_config: Any  # this and the next are the worker's own
    model_runner: Any

    def atrl_describe(self) -> dict[str, Any]:
        """How the server was started, as far as rollouts and weights depend on it."""
        model, scheduler = self.vllm_config.model_config, self.vllm_config.scheduler_config
        pictures, transfer = model.multimodal_config, self.vllm_config.weight_transfer_config
        return {
            "shape": model_shape(model.hf_config),
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "max_model_len": model.max_model_len,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_images": 0 if pictures is None else pictures.get_limit_per_prompt("image"),
            "weight_transfer": None if transfer is None else transfer.backend,
        }

    def atrl_load_weights(self, folder: str) -> dict[str, Any]:
        """Copy the tensors of the safetensors files in `folder`, named as in transformers, into the model.

        Returns:
            ``{"loaded": number of vLLM's parameters}``, or ``{"error": line}``: an exception would end the engine.
        """
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            return {"error": f"it sees no *.safetensors in {folder}"}
        model = self.model_runner.get_model()
        try:
            loaded = model.load_weights(_tensors(files))
        except Exception as error:  # whatever a model's loader raises
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        missing = sorted({name for name, _ in model.named_parameters()} - set(loaded))
        if missing:
            return {"error": f"{len(missing)} of its parameters got no new weights, the first is {missing[0]}"}
        return {"loaded": len(loaded)}


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, tensors.get_tensor(name)


def _prepare_platform() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        keep_weights_replaceable()


_prepare_platform()  # vLLM imports this file before it loads the model, which is the last moment for it
