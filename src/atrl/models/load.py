"""Where a policy comes from: a bundled, local or hub checkpoint, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from atrl.data.tables import one_line
from atrl.data.templates import check_processor
from atrl.models.attention import Attention, check_flex, check_installed
from atrl.models.families import check_family, freeze, positions_of, projectors, vision_tower
from atrl.models.lora import Lora
from atrl.models.patches import project_patches
from atrl.models.quantization import check_quantization, own_gpu, quantized, use_one_kernel
from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

BUNDLED = {"tiny": Path(__file__).parent / "tiny"}
"""Checkpoints that come with the package."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A policy with its processor, and the folder that holds (or starts from) its weights."""

    model: PreTrainedModel
    processor: ProcessorMixin
    folder: Path


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A checkpoint in Hugging Face form.

    Args:
        path: "tiny" for the model that comes with atrl, a folder, a run's folder (its `model/` is taken), or a name on
            the Hugging Face hub.
        dtype: of the weights.
        attention: transformers' name of the attention kernel.
        freeze_vision: leave the vision tower as it is; its projector to the language half is not a part of it here.
        freeze_projector: leave the projector as it is, of Qwen's `visual` the `merger`.
        lora: adapters that are trained instead of the weights; None trains these.
        quantization: of the language half's matrices, which only adapters can be trained beside.
        instruction: appended to every question; None appends nothing (see `models/asked.py`).
        trust_remote_code: run the checkpoint's own Python code; only for names that you trust.
    """

    path: str = "tiny"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Attention = "sdpa"
    freeze_vision: bool = False
    freeze_projector: bool = False
    lora: Lora | None = None
    quantization: Literal["none", "nf4"] = "none"
    instruction: str | None = ""
    trust_remote_code: bool = False

    def check(self) -> None:
        """Say what is wrong with `path`, `attention`, `lora` or `quantization` before any weights are loaded.

        Raises:
            ValueError: if it is no checkpoint and can't be a hub name either; if the attention kernel or quantisation
                isn't installed; if the model has no such layers to adapt.
        """
        self._resolve()
        check_quantization(self.quantization)
        check_installed(self.attention)
        if self.attention == "flex_attention":
            check_family(self._config(), self.path)
            check_flex(self._without_weights())
        if self.lora is not None:
            check_family(self._config(), self.path)
            self._check_adapted(self._without_weights())

    def attention_shape(self) -> tuple[int, int]:
        """Layers of the language half, and heads of each; of the configuration alone, no weights are read."""
        text = self._config().get_text_config()
        return text.num_hidden_layers, text.num_attention_heads

    def positions(self) -> int | None:
        """Tokens of prompt and response together that the model was made for; of the configuration alone."""
        return positions_of(self._config().get_text_config().to_dict())

    def model_type(self) -> str:
        """transformers' name of the family; of the configuration alone."""
        return self._config().model_type

    def text_type(self) -> str:
        """transformers' name of the language half; of the configuration alone."""
        return self._config().get_text_config().model_type

    def load(self, work_folder: Path) -> LoadedModel:
        """Model and processor; `work_folder` is not needed here.

        Raises:
            ValueError: in one line, before any weights are read, for a family or a processor that can't be used.
        """
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        source = self._resolve()
        options = {"trust_remote_code": self.trust_remote_code}
        config = self._config()
        check_family(config, self.path)
        processor = AutoProcessor.from_pretrained(source, **options)
        check_processor(processor, config, self.path)
        in_few_bits = quantized(self.quantization, getattr(torch, self.dtype))
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=getattr(torch, self.dtype),
            attn_implementation=self.attention,
            quantization_config=in_few_bits,
            device_map=None if in_few_bits is None else own_gpu(),
            **options,
        )
        use_one_kernel(model)
        project_patches(model)
        freeze(model, vision=self.freeze_vision, projector=self.freeze_projector)
        if self.lora is not None:
            self._check_adapted(model)
            self.lora.put_into(model)
        return LoadedModel(model.train(), processor, _local_folder(source))

    def weights_folder(self) -> Path:
        """Where the weights lie on this machine; those of a hub name are fetched there."""
        return _local_folder(self._resolve())

    def _check_adapted(self, model: PreTrainedModel) -> None:
        """Raises ValueError, in one line, where a part is both frozen by name and adapted, or a layer isn't there."""
        adapted = set(self.lora.layers(model))
        projection = {module for part in projectors(model) for module in part.modules()}
        parts = {"freeze_vision": set(vision_tower(model).modules()) - projection, "freeze_projector": projection}
        for option, part in parts.items():
            inside = [name for name, module in model.named_modules() if name in adapted and module in part]
            if getattr(self, option) and inside:
                raise ValueError(
                    f"model.{option}=true and model.lora.modules={self.lora.modules} contradict each other at "
                    f"{inside[0]}: set the one to false, or the other to language"
                )

    def _without_weights(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(self._config(), trust_remote_code=self.trust_remote_code)

    def _config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        source = self._resolve()
        try:
            return AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code)
        except OSError as error:
            if Path(source).is_dir():
                raise
            raise ValueError(
                f"model.path={self.path} can't be fetched from the Hugging Face hub ({one_line(error)}): check the "
                "name, the network and, of a private model, the login (`hf auth login`), or name a folder"
            ) from error

    def _resolve(self) -> str:
        return resolve_checkpoint(self.path)


@dataclass(frozen=True, kw_only=True)
class ScratchModel:
    """The tiny architecture with random weights and a freshly learned tokenizer: where `stage=sft` starts from.

    Args:
        seed: of the weights.
        instruction: appended to every question; None appends nothing (see `models/asked.py`).
        lora: None, because adapters go beside weights that were trained before (`checks.py`).
    """

    seed: int = 0
    instruction: str | None = ""
    lora: Lora | None = None

    name: ClassVar[str] = "tiny"

    def check(self) -> None:
        """Nothing can be missing."""

    @staticmethod
    def configuration() -> dict[str, Any]:
        """The shape, as ``config.json`` has it: that of the model that comes with atrl."""
        return json.loads((BUNDLED["tiny"] / "config.json").read_text(encoding="utf-8"))

    def attention_shape(self) -> tuple[int, int]:
        """Layers of the language half, and heads of each."""
        from atrl.models.scratch import HEADS, LAYERS

        return LAYERS, HEADS

    def positions(self) -> int:
        """Tokens of prompt and response together."""
        from atrl.models.scratch import POSITIONS

        return POSITIONS

    def model_type(self) -> str:
        """transformers' name of the family."""
        return "qwen2_5_vl"

    def text_type(self) -> str:
        """transformers' name of the language half."""
        return "qwen2_5_vl_text"

    def weights_folder(self) -> None:
        """None: there are no weights before `load` builds them."""

    def load(self, work_folder: Path) -> LoadedModel:
        """Build the checkpoint in `work_folder` and load it from there."""
        from atrl.models.scratch import build

        folder = build(work_folder, seed=self.seed)
        return PretrainedModel(path=str(folder)).load(work_folder)


def resolve_checkpoint(path: str) -> str:
    """The folder or hub name behind a bundled name, a run's folder, a folder or a hub name.

    Raises:
        ValueError: if nothing is there and it is not of the form owner/name.
    """
    if path in BUNDLED:
        return str(BUNDLED[path])
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.is_dir():
        raise ValueError(f"{path} holds no checkpoint: expected config.json in it, or in its folder model/")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")) and not folder.parent.is_dir():
        return path
    hint = did_you_mean(path, BUNDLED)
    raise ValueError(
        f"there is no checkpoint {path!r}: name a folder, a run's folder, a hub model (owner/name) or 'tiny'{hint}"
    )


def _local_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors", "*.model"]))
