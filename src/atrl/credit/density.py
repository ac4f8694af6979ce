"""What the schemes share that go by connectivity density: how attention is read and reduced to a number a token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.attention import AttentionRequest
from atrl.credit.base import CreditScheme, Criterion, Heads, HeadSearch
from atrl.credit.connectivity import Reduction, connectivity_density
from atrl.credit.regions import Row
from atrl.credit.weights import check_count
from atrl.types import Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class DensityCredit(CreditScheme):
    """A scheme that ranks tokens by their attention on the picture.

    Args:
        layers: numbers of the layers that are read; None is all. Not beside `heads` that are named.
        heads: [layer, head] pairs that are read; None is all heads of `layers`, "auto" the `auto_heads` best of them,
            which are found before training (see `credit/heads.py`).
        auto_heads: how many heads "auto" takes, at most all.
        head_criterion: what "auto" ranks heads by (see `head_scores`).
        row: the query that speaks for a token: "predicting" it (position t-1) or its "own".
        reduction: of attention to a density per token: "relative", "peak", "mean" or "top_heads" (see
            `connectivity_density`).
        top_heads: how many heads `reduction="top_heads"` averages.
        sink_factor: an image column is a sink beyond so many times its even share; 0 keeps all columns.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[tuple[int, int], ...] | Literal["auto"] | None = None
    auto_heads: int = 8
    head_criterion: Criterion = "dependency"
    row: Row = "predicting"
    reduction: Reduction = "relative"
    top_heads: int = 4
    sink_factor: float = 4.0

    def __post_init__(self) -> None:
        check_count("top_heads", self.top_heads, usual=4)
        check_count("auto_heads", self.auto_heads, usual=8)
        if self.sink_factor < 0:
            raise ValueError(f"credit.sink_factor must be 0 (off) or more, got {self.sink_factor}: try 4")
        if isinstance(self.heads, str) and self.heads != "auto":
            raise ValueError(f"credit.heads must be [layer, head] pairs, auto or null, got {self.heads!r}: try auto")
        for option in ("layers", "heads"):
            named = [] if getattr(self, option) in (None, "auto") else list(getattr(self, option))
            twice = [one for number, one in enumerate(named) if one in named[:number]]
            if twice:
                raise ValueError(f"credit.{option} names {twice[0]} twice: name it once")
        if self.layers is not None and self.heads is not None and self.heads != "auto":
            layers, heads = list(self.layers), [list(pair) for pair in self.heads]
            raise ValueError(
                f"credit.layers={layers} has no effect beside credit.heads={heads}, whose pairs name their layers: set "
                "one of them to null"
            )

    @property
    def neighbours_read(self) -> int:
        """Response→response edges that must be read beside the mass on the picture."""
        return 0

    @property
    def head_search(self) -> HeadSearch | None:
        """The one that "auto" asks for."""
        if self.heads != "auto":
            return None
        return HeadSearch(
            count=self.auto_heads,
            criterion=self.head_criterion,
            layers=self._layers,
            row=self.row,
            sink_factor=self.sink_factor,
        )

    def with_heads(self, heads: Heads) -> DensityCredit:
        """Itself with `heads` for "auto", chosen among `layers`; a scheme that names its heads stays as it is."""
        return replace(self, heads=heads, layers=None) if self.heads == "auto" else self

    @property
    def _layers(self) -> tuple[int, ...] | None:
        return None if self.layers is None else tuple(self.layers)

    @property
    def requests(self) -> tuple[AttentionRequest, ...]:
        """One reading of the attention.

        Raises:
            ValueError: if heads are "auto" still.
        """
        if self.heads == "auto":
            raise ValueError(
                "credit.heads=auto is resolved when training starts: elsewhere call scheme.with_heads(heads) with the "
                "heads that choose_heads(calibrate(…)) finds"
            )
        return (
            AttentionRequest(
                layers=self._layers,
                heads=None if self.heads is None else tuple((layer, head) for layer, head in self.heads),
                row=self.row,
                sink_factor=self.sink_factor,
                neighbours=self.neighbours_read,
            ),
        )

    @torch.no_grad()
    def density(self, batch: Experience, evidence: Evidence) -> Float[Tensor, "rollout response"]:
        """Connectivity density of every token, 0 on padding."""
        capture = evidence.read[self.requests[0]]
        return connectivity_density(
            capture, batch.response_mask, reduction=self.reduction, top_heads=self.top_heads
        ).float()
