"""Batches and evidence by hand: random, ragged, the same for a row whatever stands beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from atrl.credit.attention import AttentionCapture, AttentionRequest, Edges
from atrl.credit.connectivity import remove_sinks
from atrl.credit.hidden import HiddenRequest
from atrl.credit.query_key import QueryKeyCapture, QueryKeyRequest
from atrl.types import Evidence, Experience, MaskedView

LAYERS, HEADS = 2, 3
ROWS = [(40, 16), (1, 9), (17, 0), (5, 30), (2, 1), (12, 16)]
"""Response and image tokens of each rollout: one token alone, no picture, fewer than 2·8 tokens, all of them ragged."""


def attention(length: int, images: int) -> tuple[Tensor, Tensor]:
    """Softmax rows over `images` columns, the response so far and one more column: their image part, and that of
    the response, summed over heads as a layer's share of the mean over all."""
    generator = torch.Generator().manual_seed(100 * length + images)
    scores = 2 * torch.randn(LAYERS, HEADS, length, images + length + 1, generator=generator)
    later = torch.ones(length, length, dtype=torch.bool).triu()
    scores[..., images : images + length].masked_fill_(later, float("-inf"))
    mass = scores.softmax(-1)
    return mass[..., :images], mass[..., images : images + length].sum(dim=1) / (LAYERS * HEADS)


def batch_of(rows: list[tuple[int, int]], *, padding: int = 0) -> Experience:
    """The rollouts `rows`, padded to the longest and then by `padding`."""
    longest = max(length for length, _ in rows) + padding
    mask = torch.arange(longest)[None] < torch.tensor([length for length, _ in rows])[:, None]
    blank = torch.zeros(len(rows), longest + 1, dtype=torch.long)
    reading = torch.arange(longest)[None] % 3 == 1
    return Experience(
        blank,
        blank,
        mask,
        [{"pixel_values": torch.zeros(1, 1)} if images else {} for _, images in rows],
        torch.zeros(mask.shape),
        keys=[f"{length}-{images}/0/0" for length, images in rows],
        reading=reading & mask & torch.tensor([images > 0 for _, images in rows])[:, None],
        paragraphs=torch.where(mask, torch.arange(longest)[None] // 7, -1),
    )


def evidence_of(scheme, rows: list[tuple[int, int]], *, padding: int = 0, filler: float = 0.0) -> Evidence:
    """All that `scheme` may look at; `filler` stands wherever a tensor is padded."""
    longest, widest = (max(sizes) + padding for sizes in zip(*rows, strict=True))

    def per_token(name: int, scale: float) -> Tensor:
        values = [scale * random_row(name, length, images) for length, images in rows]
        return padded(values, (longest,), filler)

    divergence = [
        random_row(3, length, images) if images else 1e-9 * random_row(3, length, images) for length, images in rows
    ]
    read = {request: reading_of(request, rows, longest, widest, filler) for request in scheme.requests}
    masked = MaskedView(per_token(2, -1.5), padded(divergence, (longest,), filler))
    return Evidence(per_token(0, -1.0), per_token(1, 1.0), read, masked)


def reading_of(request, rows: list[tuple[int, int]], longest: int, widest: int, filler: float):
    """What a reader of `request` would hand over."""
    if isinstance(request, AttentionRequest):
        return attention_of(request, rows, longest, widest, filler)
    mask = image_mask(rows, widest)
    generators = [torch.Generator().manual_seed(7 * length + images) for length, images in rows]
    if isinstance(request, HiddenRequest):
        scores = [
            (2 * torch.rand(length, generator=generator) - 1) * bool(images)
            for (length, images), generator in zip(rows, generators, strict=True)
        ]
        return padded(scores, (longest,), filler)
    assert isinstance(request, QueryKeyRequest)
    cosines = [
        2 * torch.rand(LAYERS * HEADS, length, images, generator=generator) - 1
        for (length, images), generator in zip(rows, generators, strict=True)
    ]
    scores = [part.amax(dim=2) if part.shape[2] else torch.zeros(part.shape[:2]) for part in cosines]
    image = [part.amax(dim=0) for part in cosines]
    return QueryKeyCapture(
        padded(scores, (LAYERS * HEADS, longest), filler), mask, padded(image, (longest, widest), filler)
    )


def attention_of(
    request: AttentionRequest, rows: list[tuple[int, int]], longest: int, widest: int, filler: float = 0.0
) -> AttentionCapture:
    """From the full masses of each row, as the reader reduces them."""
    parts = [reduced(*attention(*row), request) for row in rows]
    total, peak, image, edges = ([part[name] for part in parts] for name in ("total", "peak", "image", "edges"))
    kept = min(request.neighbours, longest)
    return AttentionCapture(
        total=padded(total, (LAYERS, HEADS, longest), filler),
        peak=padded(peak, (LAYERS, HEADS, longest), filler),
        image=padded(image, (longest, widest), filler),
        image_mask=image_mask(rows, widest),
        edges=Edges(*[_edges_padded([part[place] for part in edges], longest, kept, filler) for place in (0, 1)])
        if request.neighbours
        else None,
    )


def reduced(image: Tensor, response: Tensor, request: AttentionRequest) -> dict:
    """One response's masses [layer head response image] and [layer response response] without padding."""
    ones = [torch.ones(1, size, dtype=torch.bool) for size in (image.shape[3], image.shape[2])]
    flat = image.flatten(0, 1)[None]
    if request.sink_factor > 0:
        flat = remove_sinks(flat, *ones, factor=request.sink_factor)
    kept = flat[0].unflatten(0, image.shape[:2])
    peak = kept.amax(dim=-1) if image.shape[3] else kept.sum(dim=-1)
    strengths = response - torch.diag_embed(response.diagonal(dim1=1, dim2=2))
    ordered = strengths.sort(dim=2, descending=True, stable=True)
    edges = (ordered.indices[..., : request.neighbours], ordered.values[..., : request.neighbours])
    return {"total": kept.sum(dim=-1), "peak": peak, "image": kept.amax(dim=(0, 1)), "edges": edges}


def random_row(name: int, length: int, images: int) -> Tensor:
    """Positive numbers, a function of the arguments alone."""
    return torch.rand(length, generator=torch.Generator().manual_seed(10_000 * name + 100 * length + images)) + 0.01


def image_mask(rows: list[tuple[int, int]], widest: int) -> Tensor:
    return torch.arange(widest)[None] < torch.tensor([images for _, images in rows])[:, None]


def padded(parts: list[Tensor], shape: tuple[int, ...], filler: float) -> Tensor:
    """Tensors of several sizes as one, each in the corner of its slot."""
    whole = torch.full((len(parts), *shape), filler)
    for slot, part in zip(whole, parts, strict=True):
        slot[tuple(slice(size) for size in part.shape)] = part
    return whole


def _edges_padded(parts: list[Tensor], longest: int, kept: int, filler: float) -> Tensor:
    """Missing neighbours of a real token have strength 0; only rows of padding hold the filler."""
    whole = torch.zeros(len(parts), LAYERS, longest, kept, dtype=parts[0].dtype)
    for slot, part in zip(whole, parts, strict=True):
        slot[:, : part.shape[1], : part.shape[2]] = part
        if whole.is_floating_point():
            slot[:, part.shape[1] :] = filler
    return whole
