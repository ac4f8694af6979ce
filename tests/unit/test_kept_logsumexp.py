"""What torch's attention kernel keeps for its backward pass is the logarithm of each row's softmax denominator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atrl.models.attention import kept_logsumexp


class Layer(torch.nn.Module):
    """What transformers' kernel asks a layer for: two heads that share keys and values."""

    num_key_value_groups, is_causal = 2, True


def attended(*, gradient: bool = True, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's output for random states, and the scores behind it, [row heads query key]."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator, requires_grad=gradient)
    key, value = (torch.randn(2, 2, 7, 8, generator=generator) for _ in range(2))
    output, _ = sdpa_attention_forward(Layer(), query, key, value, scaling=0.3, **options)
    return output, 0.3 * query @ key.repeat_interleave(2, dim=1).mT


def test_it_is_that_of_the_scores_where_the_mask_lets_a_row_look() -> None:
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    output, scores = attended(attention_mask=mask)
    found = kept_logsumexp(output)
    assert found is not None and not found.requires_grad
    torch.testing.assert_close(found, scores.masked_fill(~mask, -torch.inf).logsumexp(-1).detach())


@pytest.mark.parametrize(
    "output",
    [
        attended(attention_mask=None, gradient=False)[0],
        attended(attention_mask=None)[0] * 2,  # not the kernel's own any more
        torch.zeros(2, 5, 4, 8),
    ],
    ids=["no gradient", "another operation", "no graph"],
)
def test_there_is_none_elsewhere(output: torch.Tensor) -> None:
    assert kept_logsumexp(output) is None


class Node:
    """A node of the graph that keeps `saved`, as torch's have it."""

    def __init__(self, name: str, **saved: torch.Tensor) -> None:
        self._name, self.next_functions = name, ()
        self.__dict__.update(saved)

    def name(self) -> str:
        return self._name


@pytest.mark.parametrize(
    ("name", "saved", "shape"),
    [
        ("ScaledDotProductFlashAttentionBackward0", "_saved_logsumexp", (2, 4, 32)),
        ("ScaledDotProductEfficientAttentionBackward0", "_saved_log_sumexp", (2, 4, 32)),
        ("ScaledDotProductCudnnAttentionBackward0", "_saved_logsumexp", (2, 4, 32, 1)),
    ],
)
def test_on_a_gpu_rows_that_fill_a_tile_are_cut_off(name: str, saved: str, shape: tuple[int, ...]) -> None:
    """The kernels run on a GPU only, but this build of torch knows their nodes: what they save has that name."""
    assert hasattr(getattr(torch._C._functions, name), saved)
    kept = torch.arange(2 * 4 * 32).view(2, 4, 32)
    output = SimpleNamespace(grad_fn=Node(name, **{saved: kept.view(shape)}), shape=(2, 5, 4, 8))
    assert torch.equal(kept_logsumexp(output), kept[:, :, :5])
