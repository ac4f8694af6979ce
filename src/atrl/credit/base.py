"""The interface of a credit scheme, and what all of them share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.weights import number_of
from atrl.types import CreditOutput, Evidence, Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.credit.regions import Regions


class Reader(Protocol):
    """Collects one statistic on the way through the layers of a forward pass."""

    def result(self) -> object:
        """What was read, for the rollouts of the batch in order."""
        ...


class Request(Hashable, Protocol):
    """What a scheme wants read; equal requests are read once. Implementations are frozen dataclasses."""

    def reader(self, model: PreTrainedModel, regions: Regions) -> Reader:
        """A fresh reader for one forward pass."""
        ...


Hiding = Literal["black", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class PictureMask:
    """How much of a picture is hidden: a share of its patches, chosen by seed, which are black or change places."""

    ratio: float
    seed: int = 0
    by: Hiding = "black"


Criterion = Literal["dependency", "relative_contrast", "contrast", "sensitivity"]
Heads = tuple[tuple[int, int], ...]
"""(layer, head) pairs."""


@dataclass(frozen=True, kw_only=True)
class HeadSearch:
    """What a scheme wants to know of the heads before it reads: the best `count` of `layers` by `criterion`.

    `row` and `sink_factor` are those of the scheme's own reading, so that heads are judged by what it will see.
    """

    count: int
    criterion: Criterion
    layers: tuple[int, ...] | None
    row: Literal["predicting", "own"]
    sink_factor: float


class _ClassName:
    """The name of the class that it is looked up on."""

    def __get__(self, instance: object, owner: type) -> str:
        return owner.__name__


class CreditScheme(ABC):
    """Weights for the tokens of a batch; a pure function of its arguments.

    `begin` starts the work and hands back what finishes it, so that slow parts can run elsewhere while the model does
    its next forward pass. A scheme without slow parts writes `assign` alone.
    """

    name: ClassVar[str] = _ClassName()  # type: ignore[assignment]
    """What messages, summaries and reports call it; a scheme that doesn't say goes by its class's."""
    is_uniform: ClassVar[bool] = False
    """Whether every token always gets 1, so that any objective will do."""
    needs_reading: ClassVar[bool] = False
    """Whether it goes by the tokens that the problems' reading rules name."""
    needs_paragraphs: ClassVar[bool] = False
    """Whether it goes by the paragraphs of the responses, `Experience.paragraphs`."""
    needs_whole_rows: ClassVar[bool] = False
    """Whether it looks at a prompt's hidden states beside its response's, so that one pass must run both."""

    def __post_init__(self) -> None:  # noqa: B027  most schemes have no options
        """Check the options. Raises ValueError for one that is out of range."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """What must be read from the policy's layers (see `Request`)."""
        return ()

    @property
    def head_search(self) -> HeadSearch | None:
        """Which heads must be found before anything can be read; None where none are, or they are known."""
        return None

    def with_heads(self, heads: Heads) -> CreditScheme:
        """The scheme that reads `heads` where this one has a `head_search`."""
        return self

    @property
    def picture_mask(self) -> PictureMask | None:
        """The masked picture that `Evidence.masked` must be computed with."""
        return None

    @property
    def factors(self) -> tuple[CreditScheme, ...]:
        """The schemes that it multiplies, products in products taken apart; itself if it is no product."""
        return (self,)

    @property
    def scope(self) -> Literal["response", "batch"]:
        """ "batch" where a weight depends on other rollouts: then the whole global batch is scored first."""
        return "response"

    @property
    def alone(self) -> tuple[CreditScheme, ...]:
        """Those parts of it that weigh each response by what was seen of it alone: they are run piece by piece."""
        return (self,) if self.scope == "response" else ()

    @property
    def works_elsewhere(self) -> bool:
        """Whether `begin` leaves work to other processes, for which it is worth to wait with the backward pass."""
        return False

    @property
    def normalised_over(self) -> Literal["response", "batch"]:
        """What the trained tokens' weights average 1 over; "batch" where a rule may leave whole responses untrained."""
        return "response"

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether `auxiliary_loss` is part of what is minimised."""
        return False

    @property
    def needs_masked_gradient(self) -> bool:
        """Whether `auxiliary_loss` differentiates through `Evidence.masked.logprobs`."""
        return False

    def open(self) -> None:  # noqa: B027  most schemes hold nothing
        """Start what the scheme needs (worker processes, say)."""

    def close(self) -> None:  # noqa: B027
        """Stop it."""

    def begin(self, batch: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Start; the returned call waits for the result."""
        output = self.assign(batch, evidence)
        return lambda: output

    @abstractmethod
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights of every trained token of `batch`."""

    def compare(self, batch: Experience, evidence: Evidence, parts: Sequence[CreditOutput]) -> CreditOutput:
        """Weights of the whole global batch, once each of `alone` has given its `parts` of them.

        `evidence` holds numbers per token and nothing that was read from layers, which stays on its rank.
        """
        return parts[0] if self.scope == "response" else self.assign(batch, evidence)

    def auxiliary_loss(
        self, logprobs: Float[Tensor, "rollout response"], evidence: Evidence
    ) -> Float[Tensor, "rollout response"]:
        """A loss per token, with a gradient, which is aggregated like the policy's and added to it; 0 by default."""
        return torch.zeros_like(logprobs)


def normalise(
    weights: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """`weights` scaled so that each response's trained tokens average 1, and 0 elsewhere.

    The mean of 1 keeps the effective learning rate the same whatever the scheme. A response whose weights are all
    zero, or so small or so large that their scale is no number, gets 1 everywhere: no information is no reason to train
    it less. Weights that are no numbers themselves are not mended: the response's are none then.
    """
    weights = torch.where(mask, weights, 0.0)
    total, count = weights.sum(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)
    least = count.clamp_min(1) * torch.finfo(weights.dtype).tiny
    usable = ((total >= least) & total.isfinite()) | ~weights.isfinite().all(dim=1, keepdim=True)
    scaled = torch.where(usable, weights * (count / total.clamp_min(least)), mask.float())
    return torch.where(mask, scaled, 0.0)


def normalise_batch(
    weights: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """`weights` scaled so that the trained tokens of the whole batch average 1, and 0 elsewhere.

    For rules that rank the tokens of all rollouts together: a response that they leave out must stay left out, which
    `normalise` would undo. If all weights are zero, each trained token gets 1.
    """
    return normalise(weights.reshape(1, -1), mask.reshape(1, -1)).reshape(weights.shape)


def top_tokens(
    scores: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], *, ratio: float
) -> Bool[Tensor, "rollout response"]:
    """The `number_of(ratio, tokens)` highest scores of each response; ties go to the earlier token.

    A token that scores 0 is none of them: without a picture, say, no token reads more than another, and ties would
    single out the first tokens, or in a batch the first rows. So they would where all scores are equal, and then no
    token is chosen either.
    """
    lowest = scores.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    highest = scores.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    wanted = torch.tensor([number_of(ratio, count) for count in mask.sum(dim=1).tolist()], device=mask.device)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < wanted[:, None]) & mask & (scores != 0) & (highest != lowest)


def seed_of(*parts: object) -> int:
    """A 63-bit seed: a function of `parts` alone, the same on every machine, rank and micro-batch."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
