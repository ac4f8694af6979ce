"""The token graph of one response, which is cut into clusters; arrays, because worker processes build it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

EdgeKind = Literal["attention", "similarity", "both"]

_TINY = np.finfo(np.float32).tiny
_STEPS = np.float32(2**26)
_FAINT = np.float32(2**-56)
"""Rows of at least this norm lose less by the underflow of their squares, of up to 2¹⁴ of them, than by rounding."""


def attention_strengths(
    targets: Int[np.ndarray, "layer token neighbour"], strengths: Float[np.ndarray, "layer token neighbour"]
) -> Float[np.ndarray, "token token"]:
    """The sparse edges of one response's tokens, added up over layers and both directions, as a symmetric matrix.

    Edges to tokens beyond the response, which padding leaves, are dropped.
    """
    tokens = targets.shape[1]
    inside = targets < tokens
    entries = np.nonzero(inside)[1] * tokens + targets[inside]
    matrix = np.bincount(entries, weights=strengths[inside], minlength=tokens * tokens)
    matrix = matrix.reshape(tokens, tokens).astype(np.float32)
    return matrix + matrix.T


def similarity_strengths(image: Float[np.ndarray, "token image"]) -> Float[np.ndarray, "token token"]:
    """Cosine of two tokens' rows of image attention; 0 where a row is empty.

    To the bit the same in every process: BLAS adds in an order that depends on the processor and on how many threads
    it has, but here it adds whole numbers, the rows in steps of 2⁻²⁶. By Cauchy and Schwarz no sum of these, which
    are not negative, exceeds 2⁵³, up to which float64 is exact. That takes rows of length 1, and so rows whose squares
    underflow are scaled up first.
    """
    norms = np.linalg.norm(image, axis=1, keepdims=True)
    rows = image / np.maximum(norms, _TINY)
    faint = norms[:, 0] < _FAINT
    if image[faint].any():
        rows[faint] = _unit_rows(image[faint])
    steps = np.rint(rows * _STEPS).astype(np.float64)
    return (steps @ steps.T / _STEPS**2).astype(np.float32)


def _unit_rows(image: Float[np.ndarray, "token image"]) -> Float[np.ndarray, "token image"]:
    """Rows over their norm, however small they are; an empty one stays empty."""
    largest = np.abs(image).max(axis=1, keepdims=True)
    scaled = np.divide(image, largest, out=np.zeros_like(image), where=largest > 0)
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), _TINY)


def combined(parts: list[Float[np.ndarray, "token token"]]) -> Float[np.ndarray, "token token"]:
    """The mean of the strengths, each without self-edges and over its largest entry, so that none drowns another."""
    scaled = []
    for part in parts:
        part = part.copy()
        np.fill_diagonal(part, 0)
        part /= max(part.max(initial=0), _TINY)
        scaled.append(part)
    return scaled[0] if len(scaled) == 1 else np.mean(scaled, axis=0)


def nearest_neighbours(
    strengths: Float[np.ndarray, "token token"], *, neighbours: int
) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "edge"], Int[np.ndarray, "edge"]]:
    """The graph in compressed rows (starts, targets, integer weights): an edge where either end ranks the other in
    its strongest `neighbours`.

    METIS wants integer weights; strengths map to 1 … 1000, relative to the strongest edge. Ties go to the lower index.
    """
    tokens = len(strengths)
    chosen = _strongest(strengths, min(neighbours, tokens - 1)) & (strengths > 0)
    chosen |= chosen.T
    places = np.flatnonzero(chosen)
    kept = strengths.ravel()[places]
    weights = np.rint(1 + 999 * kept / max(kept.max(initial=0), _TINY)).astype(np.int64)
    starts = places.searchsorted(np.arange(tokens + 1) * tokens)
    return starts, places % tokens, weights


def _strongest(strengths: Float[np.ndarray, "token token"], count: int) -> Bool[np.ndarray, "token token"]:
    """The `count` largest entries of each row, ties going to the lower index; without sorting whole rows."""
    if count == 0:
        return np.zeros(strengths.shape, bool)
    last = np.partition(strengths, -count, axis=1)[:, -count, None]
    largest = strengths >= last
    if np.count_nonzero(largest) == count * len(strengths):
        return largest
    above, tied = strengths > last, strengths == last
    return above | (tied & (tied.cumsum(axis=1) <= count - above.sum(axis=1, keepdims=True)))
