"""What a reader keeps of masses on the picture, by Triton kernels that never leave these in memory.

Masses are worked out again wherever they are needed, from queries, keys and each row's log-sum-exp, and a tile of them
is gone with the program that made it. The rule for sinks is that of `connectivity.reduce_without_sinks`; its limits and
counts are small, and torch compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.connectivity import SMALLEST_REST, in_most_rows, may_have_sinks, sink_limit
from atrl.credit.fused import LENGTHS, VIEWS, denominators, load_seen, load_vectors, masses, options_of
from atrl.credit.window import seen_through

if TYPE_CHECKING:
    from atrl.credit.blocks import Block

PLACES = [*VIEWS, "row_mask"]
"""What kernels aren't compiled anew for, as in `fused`."""

SMALLEST = tl.constexpr(SMALLEST_REST)
"""As kernels can read it."""


def reduce_image_mass(
    block: Block, image: Float[Tensor, "response row image"], *, factor: float
) -> tuple[Float[Tensor, "response head row"], Float[Tensor, "response head row"]]:
    """(the sum of each row's masses on its image columns, the largest), without sinks; 0 on padding.

    What `connectivity.reduce_without_sinks` makes of `Block.image_mass`. `image` is raised to the largest mass without
    sinks of any of the heads. A `factor` of 0 removes nothing.
    """
    regions, shape = block.regions, (block.regions.size, len(block.heads), block.regions.rows.shape[1])
    total, peak = block.query.new_zeros(2, *shape, dtype=torch.float32)
    if not image.numel():
        return total, peak
    arguments, scale = arguments_of(block), torch.empty_like(total)
    sink = torch.zeros(*shape[:2], image.shape[2], dtype=torch.bool, device=image.device)
    with torch.cuda.device_of(image):
        _reduce_rows(arguments, sink, torch.ones_like(sink[:, :, 0]), total, peak, scale)
        if factor:
            seen = seen_through(regions, block.sliding_window)
            limit = sink_limit(total, regions.column_mask, regions.row_mask, factor, seen)
            doubtful = may_have_sinks((peak > limit).sum(dim=2), regions.row_mask, seen)
            sink = in_most_rows(_count_above(arguments, limit, doubtful), regions.row_mask, seen)
            _reduce_rows(arguments, sink, sink.any(dim=2), total, peak, scale)
        _raise_to_highest(arguments, sink, scale, image)
    return total, peak


def arguments_of(block: Block) -> dict:
    """What all kernels here take of a block."""
    regions = block.regions
    return options_of(block) | {
        "lse": denominators(block),
        "row_mask": regions.row_mask.contiguous(),
        "at": regions.columns.contiguous(),
        "at_mask": regions.column_mask.contiguous(),
        "wanted": regions.columns.shape[1],
    }


def _reduce_rows(
    arguments: dict,
    sink: Bool[Tensor, "response head image"],
    asked: Bool[Tensor, "response head"],
    total: Float[Tensor, "response head row"],
    peak: Float[Tensor, "response head row"],
    scale: Float[Tensor, "response head row"],
) -> None:
    """Of the heads that are asked for: into `total` and `peak` what they are without sinks, and into `scale` what a
    row's masses are to be multiplied by."""
    size, heads, tokens = total.shape
    grid = (triton.cdiv(tokens, arguments["TILE"]), heads, size)
    _rows_kernel[grid](total, peak, scale, sink, asked, **arguments)


def _count_above(
    arguments: dict, limit: Float[Tensor, "response head row"], asked: Bool[Tensor, "response head"]
) -> Int[Tensor, "response head image"]:
    """In how many rows each column is above the row's limit, in the heads that are asked for; else 0."""
    size, heads, _ = limit.shape
    count = limit.new_zeros(size, heads, arguments["wanted"], dtype=torch.int32)
    grid = (triton.cdiv(arguments["wanted"], arguments["TILE"]), heads, size)
    _above_kernel[grid](count, limit, asked, **arguments)
    return count


def _raise_to_highest(
    arguments: dict,
    sink: Bool[Tensor, "response head image"],
    scale: Float[Tensor, "response head row"],
    image: Float[Tensor, "response row image"],
) -> None:
    """Raise `image` to the largest mass of any head, without sinks."""
    size, heads, tokens = scale.shape
    tiles = triton.cdiv(tokens, arguments["TILE"]) * triton.cdiv(arguments["wanted"], arguments["TILE"])
    _highest_kernel[(tiles, 1, size)](image, scale, sink, heads, **arguments)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=PLACES)
def _rows_kernel(
    total, peak, scale, sink, asked, lse, row_mask, at, at_mask, wanted,
    query, key, heads, source, start, visible, rows, behind, tokens, columns, window, scaling, softcap, per_group,
    width, q_row, q_head, q_column, q_width, k_row, k_head, k_column, k_width,
    CAPPED: tl.constexpr, INTERPRETED: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head of one response, over all wanted columns."""
    number, response = tl.program_id(1), tl.program_id(2).to(tl.int64)
    of_head = response * tl.num_programs(1) + number
    if tl.load(asked + of_head).to(tl.int1):
        place, first, head = tl.load(source + response), tl.load(start + response), tl.load(heads + number)
        token = tl.program_id(0) * TILE + tl.arange(0, TILE)
        row, real = _load_rows(rows, row_mask, response, token, tokens)
        asked_at = tl.maximum(row - behind, 0)
        queries = load_vectors(
            query + place * q_row + head * q_head, asked_at, real, q_column, q_width, width, WIDTH, DTYPE
        )
        base = key + place * k_row + head // per_group * k_head
        line = of_head * tokens + token
        of_row = tl.load(lse + line, mask=real, other=0.0)
        summed, largest, taken = (
            tl.zeros([TILE], tl.float32),
            tl.zeros([TILE], tl.float32),
            tl.zeros([TILE], tl.float32),
        )
        for left in range(0, wanted, TILE):
            slot = left + tl.arange(0, TILE)
            column, there = _load_columns(at, at_mask, response, slot, wanted)
            seen = load_seen(visible + place * columns, row, column, there, first, window) & real[:, None]
            keys = load_vectors(base, column, there, k_column, k_width, width, WIDTH, DTYPE)
            mass = masses(queries, keys, seen, of_row, scaling, softcap, CAPPED, INTERPRETED)
            kept = _without_sinks(mass, sink + of_head * wanted, slot, there)
            summed += tl.sum(kept, axis=1)
            largest = tl.maximum(largest, tl.max(kept, axis=1))
            taken += tl.sum(mass - kept, axis=1)
        rest = tl.maximum(1 - taken, tl.minimum(summed, 1.0))  # as in `connectivity.leave_out`
        factor = tl.where(rest < SMALLEST, 0.0, 1 / tl.maximum(rest, SMALLEST))
        inside = token < tokens
        tl.store(total + line, summed * factor, mask=inside)
        tl.store(peak + line, largest * factor, mask=inside)
        tl.store(scale + line, factor, mask=inside)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=PLACES)
def _above_kernel(
    count, limit, asked, lse, row_mask, at, at_mask, wanted,
    query, key, heads, source, start, visible, rows, behind, tokens, columns, window, scaling, softcap, per_group,
    width, q_row, q_head, q_column, q_width, k_row, k_head, k_column, k_width,
    CAPPED: tl.constexpr, INTERPRETED: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of wanted columns of one head of one response, over all rows."""
    number, response = tl.program_id(1), tl.program_id(2).to(tl.int64)
    of_head = response * tl.num_programs(1) + number
    if tl.load(asked + of_head).to(tl.int1):
        place, first, head = tl.load(source + response), tl.load(start + response), tl.load(heads + number)
        slot = tl.program_id(0) * TILE + tl.arange(0, TILE)
        column, there = _load_columns(at, at_mask, response, slot, wanted)
        base = key + place * k_row + head // per_group * k_head
        keys = load_vectors(base, column, there, k_column, k_width, width, WIDTH, DTYPE)
        above = tl.zeros([TILE], tl.int32)
        for top in range(0, tokens, TILE):
            token = top + tl.arange(0, TILE)
            row, real = _load_rows(rows, row_mask, response, token, tokens)
            asked_at = tl.maximum(row - behind, 0)
            queries = load_vectors(
                query + place * q_row + head * q_head, asked_at, real, q_column, q_width, width, WIDTH, DTYPE
            )
            seen = load_seen(visible + place * columns, row, column, there, first, window) & real[:, None]
            line = of_head * tokens + token
            of_row = tl.load(lse + line, mask=real, other=0.0)
            mass = masses(queries, keys, seen, of_row, scaling, softcap, CAPPED, INTERPRETED)
            most = tl.load(limit + line, mask=real, other=float("inf"))
            above += tl.sum((mass > most[:, None]).to(tl.int32), axis=0)
        tl.store(count + of_head * wanted + slot, above, mask=slot < wanted)


@triton.jit(do_not_specialize=[*LENGTHS, "all_heads"], do_not_specialize_on_alignment=PLACES)
def _highest_kernel(
    image, scale, sink, all_heads, lse, row_mask, at, at_mask, wanted,
    query, key, heads, source, start, visible, rows, behind, tokens, columns, window, scaling, softcap, per_group,
    width, q_row, q_head, q_column, q_width, k_row, k_head, k_column, k_width,
    CAPPED: tl.constexpr, INTERPRETED: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of rows × wanted columns of one response, over all heads."""
    response = tl.program_id(2).to(tl.int64)
    place, first = tl.load(source + response), tl.load(start + response)
    tiles = tl.cdiv(wanted, TILE)
    token = tl.program_id(0) // tiles * TILE + tl.arange(0, TILE)
    slot = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row, real = _load_rows(rows, row_mask, response, token, tokens)
    asked_at = tl.maximum(row - behind, 0)
    column, there = _load_columns(at, at_mask, response, slot, wanted)
    seen = load_seen(visible + place * columns, row, column, there, first, window) & real[:, None]
    entries = image + (response * tokens + token)[:, None] * wanted + slot[None, :]
    inside = (token < tokens)[:, None] & (slot < wanted)[None, :]
    highest = tl.load(entries, mask=inside, other=0.0)
    # Above the diagonal, outside the window and on padding a tile is 0 in every head: none is read.
    for number in range(0, all_heads * tl.max(seen.to(tl.int32))):
        head = tl.load(heads + number)
        queries = load_vectors(
            query + place * q_row + head * q_head, asked_at, real, q_column, q_width, width, WIDTH, DTYPE
        )
        base = key + place * k_row + head // per_group * k_head
        keys = load_vectors(base, column, there, k_column, k_width, width, WIDTH, DTYPE)
        of_head = response * all_heads + number
        line = of_head * tokens + token
        of_row = tl.load(lse + line, mask=real, other=0.0)
        mass = masses(queries, keys, seen, of_row, scaling, softcap, CAPPED, INTERPRETED)
        kept = _without_sinks(mass, sink + of_head * wanted, slot, there)
        highest = tl.maximum(highest, kept * tl.load(scale + line, mask=real, other=0.0)[:, None])
    tl.store(entries, highest, mask=inside)


@triton.jit
def _load_rows(rows, row_mask, response, token, tokens):
    """[token]: where their queries stand, and which aren't padding."""
    real = tl.load(row_mask + response * tokens + token, mask=token < tokens, other=0).to(tl.int1)
    return tl.load(rows + response * tokens + token, mask=real, other=0), real


@triton.jit
def _load_columns(at, at_mask, response, slot, wanted):
    """[slot]: which columns are wanted, and which of them are real."""
    inside = slot < wanted
    there = inside & tl.load(at_mask + response * wanted + slot, mask=inside, other=0).to(tl.int1)
    return tl.load(at + response * wanted + slot, mask=inside, other=0), there


@triton.jit
def _without_sinks(mass, sink, slot, there):
    """[row slot], 0 in the sinks of the head."""
    is_sink = tl.load(sink + slot, mask=there, other=0).to(tl.int1)
    return tl.where(is_sink[None, :], 0.0, mass)
