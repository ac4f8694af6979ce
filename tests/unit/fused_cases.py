"""Blocks on which the Triton kernels must agree with `Block`, and a program that runs the kernels on a CPU.

Triton interprets kernels instead of compiling them only where TRITON_INTERPRET is set before it is imported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from atrl.credit import blocks
from atrl.credit.attention import AttentionCapture, AttentionReader, AttentionRequest
from atrl.credit.blocks import Block, as_seen
from atrl.credit.connectivity import reduce_without_sinks
from atrl.credit.regions import Regions
from atrl.credit.window import seen_through

CAUSAL_ONLY = "exactly two tiles"
REQUEST = AttentionRequest(sink_factor=1.5, neighbours=5, detail=True)
KEPT = replace(REQUEST, detail=False)
"""The same without the masses themselves, which kernels need not leave then."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch of one layer's queries and keys. The defaults are smaller than a tile and cover its ragged edges."""

    columns: int = 45
    width: int = 32
    query_heads: int = 4
    key_heads: int = 2
    heads: tuple[int, ...] = (0, 1, 2, 3)
    layout: tuple[tuple[int, int, int, int], ...] = ((0, 0, 45, 9), (1, 13, 45, 9))
    """For each response: its row, where its sequence starts and ends, and how many tokens it has, at the end."""
    starts_known: bool = True
    """Otherwise every start is 0, as in `padded_regions`: that padding is not visible must do."""
    images: tuple[int, ...] = (12, 5)
    """How many image tokens each response has."""
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    seen: torch.dtype | None = None
    """In which the model's kernel sees them, as under autocast. Triton's interpreter cuts where bfloat16 rounds."""
    transposed: bool = False
    """Heads inside of columns in memory, as projections leave them."""
    behind: int = 0
    """So many columns have keys alone."""


PACKED = ((0, 0, 20, 6), (0, 20, 45, 5), (1, 2, 31, 3))
TWO_LONG = ((0, 7, 203, 83), (1, 0, 211, 70))
CASES = {
    "grouped heads, ragged columns": Case(),
    "left padding": Case(starts_known=False),
    "every head its own key": Case(key_heads=4),
    "one key for all, three of the heads": Case(key_heads=1, heads=(3, 1, 0)),
    "packed rows": Case(layout=PACKED, images=(4, 9, 7)),
    "one of the pictures missing": Case(images=(0, 6)),
    "no picture at all": Case(images=(0, 0)),
    "sliding window": Case(window=36),
    "sliding window in packed rows": Case(layout=PACKED, images=(4, 9, 7), window=16),
    "softcap": Case(softcap=1.5),
    "softcap of 50": Case(softcap=50.0),
    "width 80": Case(width=80),
    "width 128": Case(width=128),
    "width 8": Case(width=8),
    "heads inside of columns": Case(transposed=True),
    "prompts were run before": Case(behind=33),
    "prompts were run before, heads inside of columns": Case(behind=33, transposed=True, heads=(1, 2)),
    "one token": Case(layout=((0, 0, 45, 1),), images=(3,), heads=(2,)),
    "several tiles": Case(columns=211, layout=TWO_LONG, images=(71, 66)),
    "several tiles, left padding": Case(
        columns=211, layout=((0, 70, 203, 40), (1, 0, 211, 50)), images=(9, 66), starts_known=False
    ),
    "several tiles in a window": Case(columns=211, layout=TWO_LONG, images=(71, 66), window=90),
    "one column into a second tile": Case(columns=66, layout=((0, 0, 66, 4),), images=(3,)),
    CAUSAL_ONLY: Case(columns=192, layout=((1, 0, 192, 128), (0, 0, 192, 100)), images=(64, 30), heads=(1, 3)),
    "bfloat16": Case(dtype=torch.bfloat16),
    "bfloat16, width 80, several tiles": Case(
        dtype=torch.bfloat16, width=80, columns=150, layout=((0, 3, 150, 70),), images=(66,)
    ),
    "float16": Case(dtype=torch.float16),
    "seen in float16": Case(seen=torch.float16),
}


WITHOUT_MASSES = ("packed rows", "no picture at all")
"""Cases of which readers make captures."""

REDUCED = [(name, REQUEST.sink_factor) for name in CASES] + [(name, 0.0) for name in WITHOUT_MASSES]
"""Cases, and the factors with which their sinks are left out; 0 leaves none out."""


def build(case: Case, device: str = "cpu") -> Block:
    """The case's block, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    rows = 1 + max(source for source, *_ in case.layout)

    def vectors(heads: int, behind: int = 0) -> torch.Tensor:
        shape = (rows, case.columns, heads, case.width) if case.transposed else (rows, heads, case.columns, case.width)
        drawn = torch.randn(shape, generator=generator).to(device, case.dtype)
        if case.transposed:
            return drawn[:, behind:].contiguous().transpose(1, 2)
        return drawn[:, :, behind:].contiguous()

    return Block(
        query=vectors(case.query_heads, case.behind),
        key=vectors(case.key_heads),
        heads=list(case.heads),
        regions=_regions(case, rows, device),
        scaling=2 * case.width**-0.5,  # scores of a standard deviation of 2: some columns hold a large part of a row
        sliding_window=case.window,
        softcap=case.softcap,
        dtype=case.seen,
    )


def _regions(case: Case, rows: int, device: str) -> Regions:
    """The predicting row of each token; pictures after a sequence's first column. Padding points at column 0."""
    size, longest = len(case.layout), max(length for *_, length in case.layout)
    visible = torch.zeros(rows, case.columns, dtype=torch.bool)
    tokens = torch.zeros(size, longest, dtype=torch.long)
    row_mask = torch.zeros(size, longest, dtype=torch.bool)
    columns = torch.zeros(size, max(case.images), dtype=torch.long)
    column_mask = torch.zeros(size, max(case.images), dtype=torch.bool)
    for response, ((source, start, end, length), images) in enumerate(zip(case.layout, case.images, strict=True)):
        visible[source, start:end] = True
        tokens[response, :length] = torch.arange(end - length, end)
        row_mask[response, :length] = True
        columns[response, :images] = torch.arange(start + 1, start + 1 + images)
        column_mask[response, :images] = True
    return Regions(
        source=torch.tensor([source for source, *_ in case.layout], device=device),
        start=torch.tensor([start * case.starts_known for _, start, *_ in case.layout], device=device),
        visible=visible.to(device),
        rows=(tokens - 1).clamp_min(0).to(device),
        row_mask=row_mask.to(device),
        tokens=tokens.to(device),
        columns=columns.to(device),
        column_mask=column_mask.to(device),
    )


def with_sinks(block: Block, by: float = 4) -> Block:
    """Two image columns of each response stand out for every query of the heads that share the first one's key: scores
    there are higher `by` so much."""
    regions, query, key = block.regions, block.query.clone(), block.key.clone()
    width, share = query.shape[3], query.shape[1] // key.shape[1]
    group = block.heads[0] // share
    added = (by / (block.scaling * width)) ** 0.5
    query[:, group * share : (group + 1) * share] += added
    for source, columns, images in zip(regions.source, regions.columns, regions.column_mask.sum(dim=1), strict=True):
        for slot in {int(images) // 2, int(images) - 1} if images else ():
            key[source, group, columns[slot]] += added
    return replace(block, query=query, key=key)


def with_blind_heads() -> Block:
    """The first two heads of four look at the sink alone, one of two image columns: less than exp(−100) is left."""
    return with_sinks(build(Case(images=(2, 2))), by=200)


def with_rows_above_one() -> Block:
    """All masses are a twentieth too large, and most columns are of the picture."""
    block = with_sinks(build(Case(columns=20, layout=((0, 0, 20, 4),), images=(15,))))
    return replace(block, lse=reference_lse(block) - math.log(1.05))


def left_by_earlier_layers(block: Block) -> torch.Tensor:
    """[response row image]: above some of the masses, and below others."""
    shape = (block.regions.size, block.regions.rows.shape[1], block.regions.columns.shape[1])
    return (0.3 * torch.rand(shape, generator=torch.Generator().manual_seed(1))).to(block.query.device)


def left_by_torch(block: Block, factor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masses without sinks, and of each row their sum and the largest."""
    regions, seen = block.regions, seen_through(block.regions, block.sliding_window)
    return reduce_without_sinks(block.image_mass(), regions.column_mask, regions.row_mask, factor=factor, seen=seen)


def reduced_by_torch(block: Block, factor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums and largest masses without sinks, and the largest of any head or earlier layer; 0 on padding."""
    regions, image = block.regions, left_by_earlier_layers(block)
    left, total, peak = left_by_torch(block, factor)
    if left.numel():
        image = torch.maximum(image, left.amax(dim=1))
    mask = regions.row_mask
    return total * mask[:, None], peak * mask[:, None], image * mask[:, :, None]


def assert_same_reduced(found: Sequence[torch.Tensor], block: Block, factor: float, *, atol: float = 1e-5) -> None:
    """Equal to torch's as far as its own rounding allows: what is left of a row is divided by its mass beside sinks."""
    regions, image = block.regions, block.image_mass()
    left, *_ = left_by_torch(block, factor)
    beside = 1 - (image * (left == 0)).sum(dim=-1) * regions.row_mask[:, None]
    scales = (beside, beside, beside.amin(dim=1)[:, :, None])
    for own, expected, scale in zip(found, reduced_by_torch(block, factor), scales, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own * scale, expected * scale, atol=atol, rtol=0)


def reduced_by_kernels(block: Block, factor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same; what stands in the image on padding is no one's concern."""
    from atrl.credit.fused_reduce import reduce_image_mass

    image = left_by_earlier_layers(block)
    total, peak = reduce_image_mass(block, image, factor=factor)
    return total, peak, image * block.regions.row_mask[:, :, None]


def assert_same_capture(found: AttentionCapture, expected: AttentionCapture, *, atol: float = 1e-5) -> None:
    """Equal in all that credit schemes read."""
    for name in ("total", "peak", "image", "mass"):
        if getattr(expected, name) is None:
            assert getattr(found, name) is None
            continue
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=atol, rtol=0)
    torch.testing.assert_close(found.edges.strengths, expected.edges.strengths, atol=atol, rtol=0)


def capture(block: Block, *, fused: bool | None, request: AttentionRequest = REQUEST) -> AttentionCapture:
    """All that a reader makes of two layers, sinks and edges too: the block's, and one with its queries reversed."""
    reader = AttentionReader(request, block.regions, fused=fused)
    options: dict = {"scaling": block.scaling, "sliding_window": block.sliding_window, "softcap": block.softcap}
    for layer, query in enumerate((block.query, block.query.flip(3))):
        reader.read_attention(layer, query, block.key, dtype=block.dtype, **options)
    return reader.result()


def reference_lse(block: Block) -> torch.Tensor:
    """[row heads query] in float64, for blocks without a window or a softcap; a row that sees nothing has −inf."""
    assert block.sliding_window is None and block.softcap is None
    regions, columns = block.regions, torch.arange(block.key.shape[2], device=block.key.device)
    first = torch.zeros(len(regions.visible), len(columns), dtype=torch.long, device=columns.device)
    for source, start in zip(regions.source.tolist(), regions.start.tolist(), strict=True):
        first[source, start:] = first[source, start:].clamp_min(start)  # of the sequence that a column belongs to
    seen = regions.visible[:, None] & (columns <= columns[:, None]) & (columns >= first[:, :, None])
    query, key = (as_seen(states, block.dtype).double() for states in (block.query, block.key))
    key = key.repeat_interleave(block.query.shape[1] // block.key.shape[1], dim=1)
    scores = query @ key.transpose(2, 3) * block.scaling
    return scores.masked_fill(~seen[:, None, block.behind :], -torch.inf).logsumexp(-1)


def assert_same(image: torch.Tensor, response: torch.Tensor, block: Block, *, atol: float = 1e-5) -> None:
    """Equal to torch's masses on every token that is not padding; there they are finite."""
    mask = block.regions.row_mask
    found = (image.transpose(1, 2), response)
    for mass, expected in zip(found, (block.image_mass().transpose(1, 2), block.response_mass()), strict=True):
        assert mass.dtype == torch.float32 and mass.shape == expected.shape and mass.isfinite().all()
        torch.testing.assert_close(mass[mask], expected[mask], atol=atol, rtol=0)


def kernel_results() -> dict:
    """By case what the kernels find, and the captures that a reader makes of them."""
    from atrl.credit import fused
    from atrl.credit.fused import image_mass, log_sum_exp, response_mass

    results: dict = {}
    for name, case in CASES.items():
        block = build(case)
        results[name] = (image_mass(block), response_mass(block), log_sum_exp(block))
    for name, factor in REDUCED:
        results[name, factor] = reduced_by_kernels(with_sinks(build(CASES[name])), factor)
    for block in (with_blind_heads, with_rows_above_one):
        results[block.__name__] = reduced_by_kernels(block(), REQUEST.sink_factor)
    plain = build(CASES[CAUSAL_ONLY])
    given = replace(plain, lse=reference_lse(plain))
    results["lse given"] = image_mass(given), response_mass(given)
    twice = replace(given, lse=given.lse + math.log(2))
    results["lse of twice the sum given"] = image_mass(twice), reduced_by_kernels(twice, 0)
    padded = build(CASES["several tiles"])
    unknown = reference_lse(padded)
    unknown[:, :, 0] = torch.nan  # of no response's token: padding points there
    results["lse unknown on padding"] = [mass(replace(padded, lse=unknown)) for mass in (image_mass, response_mass)]
    for name in WITHOUT_MASSES:
        fused.image_mass = None  # so that a reader that calls it fails
        results["capture without masses", name] = capture(build(CASES[name]), fused=True, request=KEPT)
    fused.image_mass = image_mass
    results["capture"] = capture(build(CASES["packed rows"]), fused=True)
    usual, blocks.CHUNK_ELEMENTS = blocks.CHUNK_ELEMENTS, 20
    results["capture in chunks"] = capture(build(CASES["packed rows"]), fused=True)
    blocks.CHUNK_ELEMENTS = usual
    return results


if __name__ == "__main__":
    torch.save(kernel_results(), sys.argv[1])
