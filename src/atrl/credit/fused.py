"""Attention mass of response rows by Triton kernels: what `Block` works out, without ever holding a row of scores.

Two passes, as in FlashAttention (Dao et al., arXiv 2205.14135): the log-sum-exp of each row, online over tiles of keys;
then ``exp(score − lse)`` at the wanted columns alone. The only file that imports triton: import it where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.blocks import head_index

if TYPE_CHECKING:
    from atrl.credit.blocks import Block

TILE_BYTES = 1 << 14
"""Queries or keys of one tile, as they are multiplied. Shared memory must hold one tile of queries and two of keys, in
float32 where they come so: 99 KiB on small GPUs."""


DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""In which scores can be taken."""


def image_mass(block: Block) -> Float[Tensor, "response head row image"]:
    """What `Block.image_mass` returns, in float32, but a row which may look nowhere reads 0: only padding may not."""
    regions = block.regions
    return _mass(block, len(block.heads), regions.columns, regions.column_mask)


def response_mass(block: Block) -> Float[Tensor, "response row token"]:
    """What `Block.response_mass` returns, with the same exception; heads are added up as they are worked out."""
    tokens = block.regions.tokens
    return _mass(block, 1, tokens, torch.ones_like(tokens, dtype=torch.bool))[:, 0]


def log_sum_exp(block: Block) -> Float[Tensor, "response head token"]:
    """Natural log of the softmax's denominator for every row of the block; −inf where a row may look nowhere."""
    size, tokens = block.regions.rows.shape
    out = block.query.new_empty(size, len(block.heads), tokens, dtype=torch.float32)
    if out.numel():
        options = options_of(block)
        grid = (triton.cdiv(tokens, options["TILE"]), len(block.heads), size)
        with torch.cuda.device_of(out):
            _log_sum_exp_kernel[grid](out, **options)
    return out


def denominators(block: Block) -> Float[Tensor, "response head token"]:
    """The log-sum-exps that the model's kernel kept, or where it kept none `log_sum_exp`.

    On padding, where kernels may keep anything, it is infinite, so that those rows read nothing.
    """
    if block.lse is None:
        return log_sum_exp(block)
    padding = ~block.regions.row_mask[:, None]
    return block.of_rows(block.lse, slice(None)).float().masked_fill(padding, torch.inf).contiguous()


def _mass(
    block: Block, groups: int, at: Int[Tensor, "response column"], at_mask: Bool[Tensor, "response column"]
) -> Float[Tensor, "response group row column"]:
    """Mass on the columns `at`, 0 where masked, summed over the heads of each group; groups are of equal size."""
    (size, rows), width = block.regions.rows.shape, at.shape[1]
    out = block.query.new_empty(size, groups, rows, width, dtype=torch.float32)
    lse = denominators(block)
    if out.numel():
        options = options_of(block)
        grid = (triton.cdiv(rows, options["TILE"]) * triton.cdiv(width, options["TILE"]), groups, size)
        with torch.cuda.device_of(out):
            _mass_kernel[grid](
                out, lse, at.contiguous(), at_mask.contiguous(), width, len(block.heads) // groups, **options
            )
    return out


def options_of(block: Block) -> dict:
    """What all kernels take of a block."""
    query, key, regions = block.query, block.key, block.regions
    dtype = block.dtype or query.dtype
    assert block.dtype or query.dtype == key.dtype, f"queries are {query.dtype}, keys {key.dtype}"
    assert dtype in DTYPES, f"no fused attention mass of {dtype}"
    width = max(16, triton.next_power_of_2(query.shape[3]))  # tl.dot takes no less than 16
    return {
        "query": query,
        "key": key,
        "heads": head_index(tuple(block.heads), query.device),
        "source": regions.source.contiguous(),
        "start": regions.start.contiguous(),
        "visible": regions.visible.contiguous(),
        "rows": regions.rows.contiguous(),
        "behind": block.behind,
        "tokens": regions.rows.shape[1],
        "columns": key.shape[2],
        "window": key.shape[2] if block.sliding_window is None else block.sliding_window,
        "scaling": block.scaling,
        "softcap": block.softcap or 1.0,
        "per_group": query.shape[1] // key.shape[1],
        "width": query.shape[3],
        **dict(zip(("q_row", "q_head", "q_column", "q_width"), query.stride(), strict=True)),
        **dict(zip(("k_row", "k_head", "k_column", "k_width"), key.stride(), strict=True)),
        "CAPPED": block.softcap is not None,
        "INTERPRETED": triton.knobs.runtime.interpret,
        "WIDTH": width,
        "DTYPE": DTYPES[dtype],
        "TILE": max(16, min(64, TILE_BYTES // (width * dtype.itemsize))),
        "num_stages": 2,
    }


LENGTHS = ["wanted", "behind", "tokens", "columns", "window"]
"""Of sequences, responses and pictures: they differ in every batch, and kernels aren't compiled anew for round ones."""

VIEWS = ["lse", "at", "at_mask", "source", "start", "visible", "rows"]
"""May begin anywhere in a tensor: kernels aren't compiled anew for those that happen to begin at 16 bytes."""


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=VIEWS)
def _log_sum_exp_kernel(
    out, query, key, heads, source, start, visible, rows, behind, tokens, columns, window, scaling, softcap, per_group,
    width, q_row, q_head, q_column, q_width, k_row, k_head, k_column, k_width,
    CAPPED: tl.constexpr, INTERPRETED: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens of one head of one response."""
    number, response = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place, first, head = tl.load(source + response), tl.load(start + response), tl.load(heads + number)
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = token < tokens
    row = tl.load(rows + response * tokens + token, mask=real, other=0)
    asked = tl.maximum(row - behind, 0)
    queries = load_vectors(query + place * q_row + head * q_head, asked, real, q_column, q_width, width, WIDTH, DTYPE)
    base = key + place * k_row + head // per_group * k_head
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    begin = tl.maximum(first, tl.min(tl.where(real, row, columns)) - window + 1)
    for left in range(begin, tl.max(row) + 1, TILE):
        column = left + tl.arange(0, TILE)
        there = column < columns
        seen = load_seen(visible + place * columns, row, column, there, first, window)
        keys = load_vectors(base, column, there, k_column, k_width, width, WIDTH, DTYPE)
        scores = _scores(queries, keys, scaling, softcap, CAPPED, INTERPRETED)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # −inf − −inf is no number
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(scores - shift[:, None]), axis=1)
        top = higher
    tl.store(out + (response * tl.num_programs(1) + number) * tokens + token, top + tl.log(total), mask=real)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=VIEWS)
def _mass_kernel(
    out, lse, at, at_mask, wanted, heads_each,
    query, key, heads, source, start, visible, rows, behind, tokens, columns, window, scaling, softcap, per_group,
    width, q_row, q_head, q_column, q_width, k_row, k_head, k_column, k_width,
    CAPPED: tl.constexpr, INTERPRETED: tl.constexpr, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens × wanted columns of one response, summed over `heads_each` heads."""
    group, response = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place, first = tl.load(source + response), tl.load(start + response)
    tiles = tl.cdiv(wanted, TILE)
    token = tl.program_id(0) // tiles * TILE + tl.arange(0, TILE)
    slot = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    real, inside = token < tokens, slot < wanted
    row = tl.load(rows + response * tokens + token, mask=real, other=0)
    asked = tl.maximum(row - behind, 0)
    column = tl.load(at + response * wanted + slot, mask=inside, other=0)
    there = inside & tl.load(at_mask + response * wanted + slot, mask=inside, other=0).to(tl.int1)
    seen = load_seen(visible + place * columns, row, column, there, first, window)
    mass = tl.zeros([TILE, TILE], tl.float32)
    # Above the diagonal, or outside the window, a tile is 0 in every head: none is read.
    for number in range(group * heads_each, group * heads_each + heads_each * tl.max(seen.to(tl.int32))):
        head = tl.load(heads + number)
        queries = load_vectors(
            query + place * q_row + head * q_head, asked, real, q_column, q_width, width, WIDTH, DTYPE
        )
        base = key + place * k_row + head // per_group * k_head
        keys = load_vectors(base, column, there, k_column, k_width, width, WIDTH, DTYPE)
        of_head = response * heads_each * tl.num_programs(1) + number
        total = tl.load(lse + of_head * tokens + token, mask=real, other=0.0)
        mass += masses(queries, keys, seen, total, scaling, softcap, CAPPED, INTERPRETED)
    line = (response * tl.num_programs(1) + group) * tokens + token
    tl.store(out + line[:, None] * wanted + slot[None, :], mass, mask=real[:, None] & inside[None, :])


@triton.jit
def load_vectors(
    base, position, real, position_stride, width_stride, width, WIDTH: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """[position WIDTH] in `DTYPE`, 0 outside."""
    entry = tl.arange(0, WIDTH)
    places = base + position.to(tl.int64)[:, None] * position_stride + entry[None, :] * width_stride
    return tl.load(places, mask=real[:, None] & (entry < width)[None, :], other=0.0).to(DTYPE)


@triton.jit
def masses(queries, keys, seen, lse, scaling, softcap, CAPPED: tl.constexpr, INTERPRETED: tl.constexpr):
    """[query key], 0 where a row may not look."""
    scores = _scores(queries, keys, scaling, softcap, CAPPED, INTERPRETED)
    return tl.where(seen, tl.exp(scores - lse[:, None]), 0.0)


@triton.jit
def _scores(queries, keys, scaling, softcap, CAPPED: tl.constexpr, INTERPRETED: tl.constexpr):
    """[query key]"""
    if INTERPRETED:
        # Triton's interpreter multiplies the bits of bfloat16. In float32 the products are the same: they are exact.
        queries, keys = queries.to(tl.float32), keys.to(tl.float32)
    # "ieee", or float32 would be rounded to TF32 on the way.
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scaling
    if CAPPED:
        scores = softcap * _tanh(scores / softcap)
    return scores


@triton.jit
def _tanh(x):
    """Triton has none. Near 0 the exponential cancels, so there a Padé approximant, 6e-8 off at most."""
    square = x * x
    near = x * (945 + square * (105 + square)) / (945 + square * (420 + 15 * square))
    return tl.where(square < 1, near, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def load_seen(visible, row, column, there, first, window):
    """[row column]: where a row may look."""
    holds_token = tl.load(visible + column, mask=there, other=0).to(tl.int1)
    seen = (there & holds_token & (column >= first))[None, :]
    return seen & (column[None, :] <= row[:, None]) & (column[None, :] > row[:, None] - window)
