"""On a GPU: the log-sum-exps that kernels keep, and the probe over kernels that run there only."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atrl.credit.probe import AttentionProbe
from atrl.models.attention import kept_logsumexp
from atrl.models.policy import response_logits
from tests.gpu.test_prompt_states import BY_FLASH, on_gpu
from tests.unit.attention import FULL, eager_attention, expected_mass
from tests.unit.test_kept_logsumexp import Layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize(
    ("backend", "masked"),
    [
        (SDPBackend.FLASH_ATTENTION, False),
        (SDPBackend.EFFICIENT_ATTENTION, False),
        (SDPBackend.EFFICIENT_ATTENTION, True),
        (SDPBackend.CUDNN_ATTENTION, False),
        (SDPBackend.CUDNN_ATTENTION, True),
    ],
)
def test_kernels_keep_the_log_sum_exp_of_their_scores(backend: SDPBackend, masked: bool) -> None:
    """Of 45 causal rows, which fill no tile; the first 5 columns are padding where there is a mask."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 45, 64, generator=generator).cuda().bfloat16() for _ in range(3))
    query.requires_grad_()
    layer = Layer()
    layer.num_key_value_groups = 1
    seen = torch.ones(45, 45, dtype=torch.bool, device="cuda").tril()
    if masked:
        seen[:, :5] = False
    with sdpa_kernel(backend):
        mask = seen[None, None].expand(2, 1, -1, -1) if masked else None
        output, _ = sdpa_attention_forward(layer, query, key, value, attention_mask=mask, scaling=0.1)
    found = kept_logsumexp(output)
    scores = 0.1 * query.detach().double() @ key.double().mT
    rows = slice(5 if masked else 0, None)
    expected = scores.masked_fill(~seen, -torch.inf).logsumexp(-1).float()
    torch.testing.assert_close(found[:, :, rows], expected[:, :, rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", BY_FLASH])
@pytest.mark.parametrize("gradients", [False, True], ids=["scored", "trained"])
def test_what_is_read_is_the_models_own_attention(attention: str, gradients: bool, tmp_path: Path) -> None:
    """To what bfloat16 leaves of it; outputs are bit-identical with the probe on."""
    loaded, batch = on_gpu("qwen2_5_vl", tmp_path, attention=attention)
    model = loaded.model.bfloat16().eval()
    with torch.set_grad_enabled(gradients):
        plain = response_logits(model, batch)
        probe = AttentionProbe(model, [FULL])
        with probe.capture(batch) as recorder:
            captured = response_logits(model, batch)
    probe.detach()
    assert torch.equal(plain, captured)
    masses = expected_mass(eager_attention(model, batch), model, batch)
    found = recorder.results()[FULL].mass
    for row, expected in enumerate(masses):
        own = found[row, :, :, : expected.shape[2], : expected.shape[3]]
        torch.testing.assert_close(own, expected.float(), atol=2e-2, rtol=0)


@pytest.mark.skipif(not find_spec("triton"), reason="flex_attention is compiled by triton")
def test_flex_attention_trains_and_is_read(tmp_path: Path) -> None:
    loaded, batch = on_gpu("llava", tmp_path, attention="flex_attention")
    probe = AttentionProbe(loaded.model, [FULL])
    with probe.capture(batch) as recorder:
        response_logits(loaded.model, batch).sum().backward()
    probe.detach()
    masses = expected_mass(eager_attention(loaded.model, batch), loaded.model, batch)
    found = recorder.results()[FULL].mass
    for row, expected in enumerate(masses):
        own = found[row, :, :, : expected.shape[2], : expected.shape[3]]
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
