"""Several schemes at once: their weights multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from operator import mul
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.base import CreditScheme, Heads, HeadSearch, PictureMask, Request, normalise, normalise_batch
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class ProductCredit(CreditScheme):
    """``w[t] ∝ Π_s w_s[t]``, scaled to mean 1 again; rollouts' scales multiply, auxiliary losses add. Ours.

    Anchors and density are both those of the first scheme that has anchors, or where none has, of the first that has a
    density, so that metrics mean what they mean for that scheme alone; an intersection may be empty. Hard schemes that
    agree on no token of a response cancel each other: its tokens then weigh 1 (see `normalise`).

    Args:
        schemes: what is multiplied, in order.
    """

    schemes: tuple[CreditScheme, ...]

    name = "product"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemes", tuple(self.schemes))
        if not self.schemes:
            raise ValueError("credit.schemes must name at least one scheme, got none: try credit=uniform")
        masks = {scheme.picture_mask for scheme in self.schemes} - {None}
        if len(masks) > 1:
            given = " and ".join(f"{mask.ratio} {mask.by} (seed {mask.seed})" for mask in sorted(masks, key=str))
            raise ValueError(
                f"credit.schemes must agree on mask, mask_ratio and seed, got {given}: they share a masked view"
            )
        searches = dict.fromkeys(scheme.head_search for scheme in self.schemes if scheme.head_search is not None)
        if len(searches) > 1:
            raise ValueError(
                f"credit.schemes must agree on how heads=auto are found, got {len(searches)} ways: give them the "
                "same auto_heads, head_criterion, layers, row and sink_factor, or name the heads"
            )

    @property
    def is_uniform(self) -> bool:
        """Whether all of them are."""
        return all(scheme.is_uniform for scheme in self.schemes)

    @property
    def needs_paragraphs(self) -> bool:
        """Whether any of them does."""
        return any(scheme.needs_paragraphs for scheme in self.schemes)

    @property
    def needs_whole_rows(self) -> bool:
        """Whether any of them does."""
        return any(scheme.needs_whole_rows for scheme in self.schemes)

    @property
    def requests(self) -> tuple[Request, ...]:
        """What any of them wants read, once."""
        return tuple(dict.fromkeys(request for scheme in self.schemes for request in scheme.requests))

    @property
    def head_search(self) -> HeadSearch | None:
        """The one that they agree on."""
        return next((scheme.head_search for scheme in self.schemes if scheme.head_search is not None), None)

    def with_heads(self, heads: Heads) -> ProductCredit:
        """The product of the schemes with these heads."""
        return replace(self, schemes=tuple(scheme.with_heads(heads) for scheme in self.schemes))

    @property
    def picture_mask(self) -> PictureMask | None:
        """The one that they agree on."""
        return next((scheme.picture_mask for scheme in self.schemes if scheme.picture_mask is not None), None)

    @property
    def factors(self) -> tuple[CreditScheme, ...]:
        """Those of all of them."""
        return tuple(factor for scheme in self.schemes for factor in scheme.factors)

    @property
    def scope(self) -> Literal["response", "batch"]:
        """The batch, if any needs it."""
        return "batch" if any(scheme.scope == "batch" for scheme in self.schemes) else "response"

    @property
    def normalised_over(self) -> Literal["response", "batch"]:
        """The batch, if any may leave whole responses out."""
        return "batch" if any(scheme.normalised_over == "batch" for scheme in self.schemes) else "response"

    @property
    def alone(self) -> tuple[CreditScheme, ...]:
        """The product, or where any of them compares rollouts, what the others run piece by piece."""
        if self.scope == "response":
            return super().alone
        return tuple(part for scheme in self.schemes for part in scheme.alone)

    @property
    def works_elsewhere(self) -> bool:
        """Whether any does."""
        return any(scheme.works_elsewhere for scheme in self.schemes)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether any has one."""
        return any(scheme.has_auxiliary_loss for scheme in self.schemes)

    @property
    def needs_masked_gradient(self) -> bool:
        """Whether any does."""
        return any(scheme.needs_masked_gradient for scheme in self.schemes)

    def open(self) -> None:
        """Open all; if one fails, close those that are open."""
        opened: list[CreditScheme] = []
        try:
            for scheme in self.schemes:
                opened.append(scheme)
                scheme.open()
        except BaseException:
            for scheme in opened:
                scheme.close()
            raise

    def close(self) -> None:
        """Close all."""
        for scheme in self.schemes:
            scheme.close()

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """The product of what the schemes assign."""
        return self.begin(batch, evidence)()

    def begin(self, batch: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Start all before any is waited for."""
        finishing = [scheme.begin(batch, evidence) for scheme in self.schemes]
        return lambda: self._multiplied(batch, [finish() for finish in finishing])

    def compare(self, batch: Experience, evidence: Evidence, parts: Sequence[CreditOutput]) -> CreditOutput:
        """The product of what was assigned to each response alone and of what compares them."""
        if self.scope == "response":
            return super().compare(batch, evidence, parts)
        left = iter(parts)
        taken = [(scheme, list(islice(left, len(scheme.alone)))) for scheme in self.schemes]
        return self._multiplied(batch, [scheme.compare(batch, evidence, own) for scheme, own in taken])

    def auxiliary_loss(
        self, logprobs: Float[Tensor, "rollout response"], evidence: Evidence
    ) -> Float[Tensor, "rollout response"]:
        """The sum of theirs."""
        losses = (scheme.auxiliary_loss(logprobs, evidence) for scheme in self.schemes)
        return sum(losses, start=torch.zeros_like(logprobs))

    def _multiplied(self, batch: Experience, parts: list[CreditOutput]) -> CreditOutput:
        scales = [part.trajectory_scale for part in parts if part.trajectory_scale is not None]
        shown = next((part for part in parts if part.anchors is not None), None)
        shown = shown or next((part for part in parts if part.density is not None), parts[0])
        scaled = normalise_batch if self.normalised_over == "batch" else normalise
        return CreditOutput(
            scaled(reduce(mul, (part.weights for part in parts)), batch.response_mask),
            anchors=shown.anchors,
            density=shown.density,
            trajectory_scale=reduce(mul, scales) if scales else None,
        )
