"""Attention of a response on itself, of which each layer's strongest edges are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.credit.blocks import Block, row_blocks

ResponseMass = Callable[[Block], Float[Tensor, "response row token"]]
"""Mass of a block's rows on the columns of their response, summed over the block's heads."""


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The strongest edges of each response token in each layer that was read, strongest first; strength 0 where there
    is none."""

    targets: Int[Tensor, "rollout layer response neighbour"]
    strengths: Float[Tensor, "rollout layer response neighbour"]
    """The layer's share of the mean over all heads that were read: of a target, these add up over the layers."""


def strongest_edges(
    layer: Block, count: int, mass: ResponseMass, *, held: tuple[int, int] | None
) -> tuple[Int[Tensor, "response token neighbour"], Float[Tensor, "response token neighbour"]]:
    """Targets and strengths, summed over heads, of the `count` tokens of its response that each token's row reads most.

    A token is no neighbour of itself. No more rows exist at a time than fit into a chunk.

    Args:
        layer: all heads that are wanted, of all responses.
        count: edges a token; at most as many as there are tokens are kept.
        mass: `Block.response_mass`, or what stands in for it.
        held: columns and width of the keys that `mass` holds for every row and head; None where it holds neither.
    """
    regions = layer.regions
    tokens = regions.tokens.shape[1]
    shape = (regions.size, tokens, min(count, tokens))
    strengths = layer.key.new_empty(shape, dtype=torch.float32)
    targets = strengths.new_empty(shape, dtype=torch.int32)
    everywhere = torch.arange(tokens, device=targets.device)
    for part, rows, fitting in row_blocks(regions, *(held or (tokens, 1))):
        here = replace(layer, regions=regions.part(part).of_tokens(rows))
        step = len(layer.heads) if held is None else fitting
        heads = [layer.heads[first : first + step] for first in range(0, len(layer.heads), step)]
        total = mass(replace(here, heads=heads[0]))
        for own in heads[1:]:
            total += mass(replace(here, heads=own))
        others = regions.row_mask[part][:, None] & (everywhere != everywhere[rows, None])
        total = total.where(others & here.regions.row_mask[:, :, None], 0.0)
        strengths[part, rows], targets[part, rows] = total.topk(shape[2], dim=2)
    return targets, strengths
