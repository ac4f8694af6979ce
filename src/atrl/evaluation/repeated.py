"""Several answers to each problem: avg@k, pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of `k` answers, drawn from `samples` of which `right` are right, is right.

    ``1 - C(n-c, k) / C(n, k)``; Chen et al., "Evaluating large language models trained on code", arXiv 2107.03374.

    Raises:
        ValueError: unless ``1 <= k <= samples`` and ``0 <= right <= samples``.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@k needs 1 <= k <= samples and 0 <= right <= samples, got k={k}, {right} of {samples}")
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def majority_is_right(predictions: Sequence[str | None], right: Sequence[bool]) -> bool:
    """Whether the answer that most samples give is right; of several as frequent the one that came first.

    Samples without an answer have no vote. Wang et al., "Self-consistency", arXiv 2203.11171.
    """
    votes = Counter(prediction for prediction in predictions if prediction is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return right[list(predictions).index(winner)]


def repeated_figures(
    predictions: Sequence[Sequence[str | None]], scores: Sequence[Sequence[float]]
) -> dict[str, float]:
    """avg@k, pass@k (for 1, 2, 4 … and k) and maj@k as shares of 1; k is the smallest number of answers to a problem.

    Args:
        predictions: [problem][sample] the compared form of every answer.
        scores: [problem][sample] right is 1.
    """
    k = min(map(len, scores))
    right = [[score == 1 for score in row] for row in scores]
    sizes = sorted({2**power for power in range(k.bit_length()) if 2**power <= k} | {k})
    figures = {f"avg@{k}": _mean([sum(row) / len(row) for row in scores])}
    figures |= {f"pass@{size}": _mean([pass_at_k(len(row), sum(row), size) for row in right]) for size in sizes}
    votes = [majority_is_right(given[:k], row[:k]) for given, row in zip(predictions, right, strict=True)]
    return figures | {f"maj@{k}": _mean(votes)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
