"""Anchors against the rest, and edges between clusters, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atrl.credit.clusters import cluster_links
from atrl.credit.contrast import contrast, contrast_sums

MASK = torch.tensor([[True, True, True, False]])
ANCHORS = torch.tensor([[True, False, False, True]])  # the last is padding


def sums(reference=None):
    return contrast_sums(
        ANCHORS,
        MASK,
        entropy=torch.tensor([[0.9, 0.1, 0.2, 5.0]]),
        logprobs=torch.log(torch.tensor([[0.5, 0.75, 0.5, 0.1]])),
        reference_logprobs=reference,
        advantages=torch.tensor([[-3.0, 1.0, 0.5, 9.0]]),
    )


def test_means_and_the_share_of_the_gradient() -> None:
    """Gradients 3 · 0.5 of the anchor; 1 · 0.25 and 0.5 · 0.5 of the others."""
    metrics = contrast(sums())
    assert metrics == {
        "credit/anchor_entropy": pytest.approx(0.9),
        "credit/rest_entropy": pytest.approx(0.15),
        "credit/anchor_gradient_share": pytest.approx(1.5 / 2.0),
    }


def test_the_divergence_where_there_is_a_reference() -> None:
    """exp(d) - d - 1 with d = log(0.25 / 0.5) at the anchor, and 0 where both agree."""
    reference = torch.log(torch.tensor([[0.25, 0.75, 0.5, 0.9]]))
    metrics = contrast(sums(reference))
    assert metrics["credit/anchor_kl"] == pytest.approx(0.5 + math.log(2) - 1, abs=1e-6)
    assert metrics["credit/rest_kl"] == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_the_losses(monkeypatch) -> None:
    """Autograd's gradient of -A · log π at the logit of the token that was drawn."""
    logits = torch.tensor([[[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]]], requires_grad=True)
    drawn, advantages = torch.tensor([[2, 1]]), torch.tensor([[1.5, -0.5]])
    logprobs = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
    (-(advantages * logprobs).sum()).backward()
    at_drawn = logits.grad.gather(-1, drawn[..., None])[..., 0].abs()
    found = contrast_sums(
        torch.tensor([[True, False]]), torch.tensor([[True, True]]), entropy=torch.zeros(1, 2),
        logprobs=logprobs.detach(), reference_logprobs=None, advantages=advantages,
    )  # fmt: skip
    assert found["gradient"] == pytest.approx(at_drawn[0].tolist(), rel=1e-6)


def test_nothing_is_said_of_no_token() -> None:
    none = {"tokens": (0.0, 4.0), "entropy": (0.0, 2.0), "gradient": (0.0, 0.0)}
    assert contrast(none) == {"credit/rest_entropy": 0.5}


def test_each_edge_between_clusters_counts_once() -> None:
    """A path 0 - 1 - 2 - 3 with weights 5, 7 and 9, cut in the middle."""
    starts, targets = np.array([0, 1, 3, 5, 6]), np.array([1, 0, 2, 1, 3, 2])
    weights = np.array([5, 5, 7, 7, 9, 9])
    assert cluster_links(starts, targets, weights, np.array([0, 0, 1, 1])).tolist() == [[5, 7], [7, 9]]
