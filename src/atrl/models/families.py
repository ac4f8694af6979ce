"""Which families of models can be trained, and why others can't."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES: tuple[str, ...] = ("gemma3", "internvl", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl")
"""Model types whose prompts, rollouts and training pass the tests agree on."""

REFUSED: Mapping[str, str] = {
    "idefics2": "it pads each prompt's pictures to one tensor, which can't be put together with another prompt's",
    "idefics3": "it pads each prompt's pictures to one tensor, which can't be put together with another prompt's",
    "llava_next": "it pads pictures to the same number of tiles, which differs between prompts",
    "llava_onevision": "it pads pictures to the same number of tiles, which differs between prompts",
    "mllama": "its pictures go through cross-attention and not into the sequence, where credit looks for them",
    "paligemma": "it sees the whole prompt in both directions and has no chat template",
    "smolvlm": "it pads each prompt's pictures to one tensor, which can't be put together with another prompt's",
}
"""Reasons that were found."""

WITHOUT_VLLM: Mapping[str, str] = {
    "gemma3": "vLLM 0.32 calls its vision tower's parameters otherwise than transformers and can't take them over",
    "llava": "vLLM 0.32 calls its vision tower's parameters otherwise than transformers and can't take them over",
}
"""Families that train with rollouts by transformers alone."""

_SINK = "its softmax has a learned sink beside the tokens"
_CHOICE = "its layers choose which tokens each of them looks at"
UNREADABLE: Mapping[str, str] = {
    "axk2": _CHOICE,
    "deepseek_v32": _CHOICE,
    "deepseek_v4": _SINK,
    "diffllama": "its attention is the difference of two softmaxes",
    "doge": _CHOICE,
    "glm5_next_text": _CHOICE,
    "glm_moe_dsa": _CHOICE,
    "gpt_oss": _SINK,
    "granite_swa": _SINK,
    "granitemoe_swa": _SINK,
    "hrm_text": "its layers run several times in a pass",
    "hy_v4": _SINK,
    "llama4_text": "its layers cut the sequence into chunks",
    "mimo_v2_flash": _SINK,
    "minimax_m3_vl_text": _CHOICE,
    "mllama_text_model": "its pictures go through cross-attention and not into the sequence",
}
"""Types of language halves, which LLaVA and InternVL take of any kind, whose layers the probe can't read, and why."""

WITH_VIDEO: tuple[str, ...] = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
"""Families whose videos are tokens of their own kind. Others take frames as pictures, which a problem can list."""

WITHOUT_PATCHES: tuple[str, ...] = ("gemma3", "internvl", "llava")
"""Families whose processors leave pictures whole, so that credit can't mask patches. Of others the processor says
it, once it is there."""

VISION_TOWERS = ("visual", "vision_tower")
"""What families call the part that encodes pictures, Qwen first."""

PROJECTOR = "multi_modal_projector"
"""What all but Qwen call the part between the vision tower and the language half."""

_ENCODERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers of LLaVA that take pictures of one size. Pixtral's takes them padded to the largest of the batch."""


def positions_of(text: Mapping[str, Any]) -> int | None:
    """Tokens that a language half was made for, of its configuration; None where that doesn't say.

    Generous where rotations are stretched: some configurations give the length before that, some the one after.
    """
    length = text.get("max_position_embeddings")
    rotations = text.get("rope_parameters") or text.get("rope_scaling") or {}  # the latter in older files
    kinds = [rotations, *(kind for kind in rotations.values() if isinstance(kind, Mapping))]
    return None if length is None else int(length * max(1.0, *(kind.get("factor") or 1.0 for kind in kinds)))


def check_family(config: PretrainedConfig, source: str) -> None:
    """Raises ValueError, in one line, for a model that the trainer can't feed."""
    kind = config.model_type
    known = f"atrl trains {', '.join(FAMILIES)}"
    if kind in REFUSED:
        raise ValueError(f"{source}: a model of type {kind} can't be trained, because {REFUSED[kind]}: {known}")
    if kind not in FAMILIES:
        raise ValueError(f"{source}: a model of type {kind} has never been tried: {known}")
    encoder = config.vision_config.model_type
    if kind == "llava" and encoder not in _ENCODERS:
        raise ValueError(
            f"{source}: a LLaVA with the vision tower {encoder} can't be trained, because its pictures may differ in "
            f"size from prompt to prompt: use one with {' or '.join(_ENCODERS)}"
        )


def check_readable(text_type: str, reader: str) -> None:
    """Raises ValueError, in one line, where `reader` can't read the layers of a language half of type `text_type`."""
    if text_type in UNREADABLE:
        raise ValueError(
            f"{reader} can't read a language half of type {text_type}, because {UNREADABLE[text_type]}: use "
            "credit=none or credit=entropy, or another model"
        )


def check_vllm(model_type: str, sampler: str) -> None:
    """Raises ValueError, in one line, for a model that can be trained, but not with rollouts by vLLM."""
    if model_type in WITHOUT_VLLM:
        raise ValueError(
            f"rollout={sampler} can't serve a model of type {model_type}: {WITHOUT_VLLM[model_type]}: use "
            "rollout=transformers"
        )


def language_half(model: PreTrainedModel) -> nn.Module:
    """The part that reads and writes text, without the output head."""
    return model.model.language_model


def vision_tower(model: PreTrainedModel) -> nn.Module:
    """The part that encodes pictures. Qwen's holds the projector to the language half too, see `projectors`."""
    return next(part for name in VISION_TOWERS if (part := getattr(model.model, name, None)) is not None)


def projectors(model: PreTrainedModel) -> list[nn.Module]:
    """What brings the tower's features into the language half: one part, and of Qwen3-VL one for each inner layer too.

    Qwen keeps it within the tower (`merger`), the others beside it (`multi_modal_projector`).
    """
    tower = vision_tower(model)
    inside = [getattr(tower, name) for name in ("merger", "deepstack_merger_list") if hasattr(tower, name)]
    return inside or [getattr(model.model, PROJECTOR)]


def freeze(model: PreTrainedModel, *, vision: bool, projector: bool) -> None:
    """Take the gradients off the vision tower without its projector, off the projector, or off both."""
    projection = {id(parameter): parameter for part in projectors(model) for parameter in part.parameters()}
    if vision:
        for parameter in vision_tower(model).parameters():
            if id(parameter) not in projection:
                parameter.requires_grad_(False)
    if projector:
        for parameter in projection.values():
            parameter.requires_grad_(False)
