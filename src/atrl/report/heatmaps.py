"""Where tokens looked on the pictures: attention as grids small enough to travel inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atrl.report.run_folder import Response

MAX_SIDE = 32
"""Cells along one side of a grid; a cell over several image tokens shows the largest."""
MAX_COLUMNS = 8
"""Frames side by side in a video's strip; more go into further rows."""
MAX_VALUES = 256 * 1024
"""Cells of all tokens of a rollout; beyond, only the heaviest tokens keep a map of their own."""


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """The heat maps of one rollout. A map covers all its pictures, one after the other, row by row.

    Attributes:
        grids: [image] rows and columns.
        overview: [cell] 0 … 255, relative to the largest; the map that shows while no token is chosen.
        kept: [map] the token that each map belongs to.
        levels: base64 of bytes [map, cell], each map relative to its own largest cell.
        peaks: [map] the attention on its largest cell; None where it was not finite.
    """

    grids: list[tuple[int, int]]
    overview: list[int]
    kept: list[int]
    levels: str
    peaks: list[float | None]

    def start(self, image: int) -> int:
        """Where a picture's cells begin among those of all pictures."""
        return sum(rows * columns for rows, columns in self.grids[:image])

    def cells(self, image: int) -> list[int]:
        """[cell] the overview's part on one picture."""
        return self.overview[self.start(image) : self.start(image + 1)]


def heat_maps(sample: Response, max_side: int = MAX_SIDE, max_values: int = MAX_VALUES) -> HeatMaps | None:
    """The heat maps of a rollout; None where no attention was recorded (or there is no token or picture)."""
    if not sample.attention or not sample.tokens:
        return None
    tokens = list(range(len(sample.tokens))) if sample.attended is None else sample.attended
    times = sample.timestamps or [None] * len(sample.attention)
    pooled = [
        pool(attention, max_side, frame_layout(own)) for attention, own in zip(sample.attention, times, strict=True)
    ]
    mass = np.concatenate([attention.reshape(len(tokens), -1) for attention in pooled], axis=1)
    finite = np.isfinite(mass).all(axis=1)
    mass = np.where(finite[:, None], mass, 0.0)
    weights = [sample.weights[token] for token in tokens]
    anchors = None if sample.anchors is None else [sample.anchors[token] for token in tokens]
    kept = heaviest(weights, max(1, max_values // mass.shape[1]))
    return HeatMaps(
        grids=[(attention.shape[1], attention.shape[2]) for attention in pooled],
        overview=quantised(overview(mass, weights, anchors)).tolist(),
        kept=[tokens[i] for i in kept],
        levels=base64.b64encode(quantised(mass[kept]).tobytes()).decode(),
        peaks=[float(f"{mass[i].max():.3g}") if finite[i] else None for i in kept],
    )


def pool(attention: NDArray[np.float64], max_side: int, frames: tuple[int, int] = (1, 1)) -> NDArray[np.float64]:
    """[token, rows, columns] → at most `max_side` rows and columns, each cell the largest of what it covers.

    Of a strip with so many rows and columns of `frames` no cell covers parts of two, if so many cells are allowed.
    """
    for axis, parts in zip((1, 2), frames, strict=True):
        size = attention.shape[axis]
        if size > max_side:
            side = max_side - max_side % parts or max_side
            starts = np.arange(side) * size // side
            attention = np.maximum.reduceat(attention, starts, axis=axis)
    return attention


def frame_layout(timestamps: Sequence[float] | None) -> tuple[int, int]:
    """Rows and columns of frames in the strip of a video with frames at `timestamps`; of a picture (None) 1 and 1."""
    if timestamps is None:
        return 1, 1
    columns = min(MAX_COLUMNS, len(timestamps))
    return -(-len(timestamps) // columns), columns


def overview(mass: NDArray[np.float64], weights: list[float], anchors: list[bool] | None) -> NDArray[np.float64]:
    """[token, cell] → [cell]: the mean over the anchors, weighted by credit; over all tokens where none is known."""
    chosen = np.array(anchors, dtype=bool) if anchors and any(anchors) else np.ones(len(mass), dtype=bool)
    credit = np.where(chosen, weights, 0.0)
    if credit.sum() == 0:  # a scheme may give its anchors nothing
        credit = chosen.astype(float)
    return credit @ mass / credit.sum()


def quantised(mass: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[…, cell] as 0 … 255 relative to the largest cell of each map; an empty map stays 0."""
    largest = mass.max(axis=-1, keepdims=True)
    return np.round(255 * np.divide(mass, largest, out=np.zeros_like(mass), where=largest > 0)).astype(np.uint8)


def heaviest(weights: list[float], count: int) -> list[int]:
    """The `count` tokens (or all) of the largest weight, earlier ones first at equal weight; in ascending order."""
    by_weight = sorted(range(len(weights)), key=lambda i: -weights[i])
    return sorted(by_weight[:count])
