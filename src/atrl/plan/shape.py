"""The shape of a vision-language model: what its configuration says of the size of every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atrl.models.families import positions_of


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The language half: a decoder of pre-normalised blocks with grouped-query attention and a gated feed-forward."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool
    """Whether the output matrix is the embedding."""
    qkv_bias: bool
    qk_norm: bool
    """Whether queries and keys are normalised head by head."""
    longest: int | None
    """Tokens of prompt and response together that it was made for."""

    @property
    def query_width(self) -> int:
        """Numbers in the queries of a token."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Numbers in the keys of a token, and again in its values."""
        return self.kv_heads * self.head_width

    @property
    def block_matrices(self) -> int:
        """Parameters of a block's seven matrices."""
        attention = 2 * self.width * (self.query_width + self.kv_width)
        return attention + 3 * self.width * self.feed_forward

    @property
    def block_parameters(self) -> int:
        """Parameters of a block."""
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        return self.block_matrices + biases + norms

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All of the language half, output matrix included."""
        ends = self.embedding * (1 if self.tied else 2) + self.width
        return self.layers * self.block_parameters + ends


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The vision tower and the projector that merges its patches into image tokens."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    out_width: int
    patch: int
    """Pixels along a side."""
    temporal_patch: int
    channels: int
    merge: int
    """Patches along a side of an image token."""
    window: int | None
    """Pixels along a side of a window that attention stays in; None is the whole picture."""
    full_layers: int
    """Blocks whose attention spans the whole picture."""
    gated: bool
    """Qwen2.5-VL: RMS norms and a gated feed-forward. Otherwise Qwen3-VL: layer norms and a plain one."""
    positions: int
    """Learned positions; 0 where there are none."""
    deepstack: int
    """Further mergers, whose output goes into the first blocks of the language half."""

    @property
    def patches_per_token(self) -> int:
        """Patches that one image token stands for."""
        return self.merge**2

    @property
    def merged_width(self) -> int:
        """Numbers of the patches of an image token, side by side."""
        return self.patches_per_token * self.width

    @property
    def feed_forward_matrices(self) -> int:
        """Matrices of a block's feed-forward."""
        return 3 if self.gated else 2

    @property
    def patch_numbers(self) -> int:
        """Numbers that the processor makes of a patch."""
        return self.channels * self.temporal_patch * self.patch**2

    @property
    def block_parameters(self) -> int:
        """Parameters of a block: every matrix has a bias."""
        matrices = self.feed_forward_matrices
        attention = 4 * self.width**2 + 4 * self.width
        feed_forward = matrices * self.width * self.feed_forward + (matrices - 1) * self.feed_forward + self.width
        return attention + feed_forward + 2 * self._norm(self.width)

    @property
    def merger_parameters(self) -> int:
        """Parameters of all mergers, the projector to the language half among them."""
        merged = self.merged_width
        matrices = merged**2 + merged + merged * self.out_width + self.out_width
        return (1 + self.deepstack) * matrices + self._norm(self.width) + self.deepstack * self._norm(merged)

    @property
    def parameters(self) -> int:
        """All of the tower."""
        embedding = self.patch_numbers * self.width + (0 if self.gated else self.width) + self.positions * self.width
        return embedding + self.layers * self.block_parameters + self.merger_parameters

    def _norm(self, width: int) -> int:
        return width if self.gated else 2 * width


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model."""

    name: str
    text: TextShape
    vision: VisionShape

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.text.parameters + self.vision.parameters


FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""The `model_type`s that the formulas were derived for."""


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a checkpoint's ``config.json`` describes, in its nested form or the older flat one.

    Raises:
        ValueError: for a family whose formulas are not known.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{name} is a {family}, which can't be planned: the formulas are those of {', '.join(FAMILIES)}"
        )
    text = config.get("text_config") or config
    return ModelShape(
        name=name,
        text=_text(text, third=family == "qwen3_vl", tied=_tied(config, text)),
        vision=_VISION[family](config["vision_config"]),
    )


def _tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    # The outer value is the one that transformers goes by; older files have it in one place only.
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


def _text(config: Mapping[str, Any], *, third: bool, tied: bool) -> TextShape:
    heads = config["num_attention_heads"]
    return TextShape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_width=(config.get("head_dim") if third else None) or config["hidden_size"] // heads,
        tied=tied,
        qkv_bias=not third,
        qk_norm=third,
        longest=positions_of(config),
    )


def _qwen2_5_vision(config: Mapping[str, Any]) -> VisionShape:
    return VisionShape(
        **_common_vision(config),
        window=config.get("window_size", 112),
        full_layers=len(config.get("fullatt_block_indexes", (7, 15, 23, 31))),
        gated=True,
        positions=0,
        deepstack=0,
    )


def _qwen3_vision(config: Mapping[str, Any]) -> VisionShape:
    return VisionShape(
        **_common_vision(config),
        window=None,
        full_layers=config["depth"],
        gated=False,
        positions=config["num_position_embeddings"],
        deepstack=len(config["deepstack_visual_indexes"]),
    )


def _common_vision(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        "layers": config["depth"],
        "width": config["hidden_size"],
        "feed_forward": config["intermediate_size"],
        "heads": config["num_heads"],
        "out_width": config["out_hidden_size"],
        "patch": config["patch_size"],
        "temporal_patch": config.get("temporal_patch_size", 2),
        "channels": config.get("in_channels", 3),
        "merge": config.get("spatial_merge_size", 2),
    }


_VISION = {"qwen2_5_vl": _qwen2_5_vision, "qwen3_vl": _qwen3_vision}
