"""What a run records of groups, densities, clusters and heads, checked as it is read."""

from __future__ import annotations

import base64
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from atrl.types import Status

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]


class Record(BaseModel):
    """Keys that the report doesn't know are ignored: a newer run may leave more."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class Clusters(Record):
    """How a response's token graph was cut."""

    of: list[Count]
    """[token] its cluster."""
    links: list[list[Count]]
    """[cluster][cluster] the edge weight between two, and on the diagonal within one."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = max(self.of, default=-1) + 1
        if len(self.links) != count or any(len(row) != count for row in self.links):
            raise ValueError(f"links must be [{count} clusters][{count} clusters]")
        return self


class HeadMaps(Record):
    """Where each head looked for the anchors; a map covers all pictures, one after the other, row by row."""

    layers: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    grids: list[tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]]
    """[image] rows and columns."""
    levels: str
    """Base64 of bytes [layer, head, cell], each map relative to its own largest cell."""
    peaks: list[FiniteFloat]
    """[layer · head] the mass on that cell."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        maps, cells = self.layers * self.heads, sum(rows * columns for rows, columns in self.grids)
        if len(self.peaks) != maps or len(base64.b64decode(self.levels)) != maps * cells:
            raise ValueError(f"levels and peaks must hold {maps} maps of {cells} cells")
        return self


class GroupLine(Record):
    """One group: a line of `groups.jsonl`. What the model wrote in it is hostile input."""

    step: int
    problem: str
    question: str
    gold: str
    response: str
    """Of its first rollout; all three may be cut."""
    statuses: dict[Status, tuple[Annotated[int, Field(gt=0)], Count, FiniteFloat]] = Field(min_length=1)
    """By status: rollouts, and over these the sums of tokens and of rewards."""

    @property
    def size(self) -> int:
        """Rollouts in the group."""
        return sum(count for count, _, _ in self.statuses.values())

    @property
    def right(self) -> int:
        """How many of them were right."""
        return self.statuses.get(Status.RIGHT, (0, 0, 0.0))[0]

    @property
    def reward(self) -> float:
        """Their mean."""
        return sum(reward for _, _, reward in self.statuses.values()) / self.size

    @property
    def tokens(self) -> float:
        """Their mean length."""
        return sum(tokens for _, tokens, _ in self.statuses.values()) / self.size


class Histogram(Record):
    """Densities of a step's tokens in equal bins from 0 to `top`: a line of `density.jsonl`."""

    step: int
    top: Annotated[FiniteFloat, Field(gt=0)]
    anchors: list[Count]
    rest: list[Count]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.anchors) != len(self.rest) or not self.rest:
            raise ValueError(f"anchors and rest must have as many bins, got {len(self.anchors)} and {len(self.rest)}")
        return self
