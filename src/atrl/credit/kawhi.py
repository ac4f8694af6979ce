"""KAWHI: credit by how near a paragraph's queries are to the picture's keys (Han et al., arXiv 2603.27375)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atrl.credit.hidden import Pooling
from atrl.credit.query_key import Layers
from atrl.credit.query_key_cosine import QueryKeyCosineCredit
from atrl.credit.regions import Row
from atrl.credit.spans import Smoothing, SpanWeights


@dataclass(frozen=True, kw_only=True)
class KawhiCredit(QueryKeyCosineCredit):
    """`QueryKeyCosineCredit` with the options that are nearest to KAWHI's (arXiv 2603.27375, equations 12 to 17).

    As published: the final decoder layer's queries of the response tokens and keys of the image tokens after rotary
    embedding, their cosine averaged over visual heads H and image tokens S, and over the tokens of each of M paragraphs

        a[t] = 1/(|H|·|S|) · Σ_h Σ_v cos(q[h,t], k[h,v]),   A_j = mean of a[t] over paragraph j,
        w_j = w_min + (w_max − w_min)·((1 − λ)·softmax(A / τ)_j + λ/M)

    with w_min = `rest_weight` = 0.1 and w_max = `anchor_weight` = 1. τ is `temperature` and λ `mixing`.

    Ours: the weights are scaled to mean 1 (the paper's are not, so that its advantages shrink as M grows); S is all
    image tokens, which the paper ablates ("all vision tokens"), and not its key regions and a sample of the rest; H is
    the 8 heads of most contrast in each response, where the paper has those whose removal from all layers costs more
    than 100 points on MME. For the two models whose heads it prints, set `reduction="mean"` and `head_numbers`:
    Qwen2.5-VL-7B-Instruct 0, 1, 3, 22 to 27; Qwen3-VL-4B-Instruct 2, 3, 4, 12, 13, 19, 25, 27. τ and λ aren't
    printed; 0.1 of each is ours. So is what a paragraph is beyond "split at \\n\\n" (see `paragraphs_of`).
    """

    layers: Layers = "last"
    row: Row = "own"
    pooling: Pooling = "mean"
    reduction: Literal["mean", "top_heads"] = "top_heads"
    top_heads: int = 8
    smoothing: Smoothing = "paragraph"
    weights: SpanWeights = "softmax"
    anchor_weight: float = 1.0
    rest_weight: float = 0.1

    name = "kawhi"
