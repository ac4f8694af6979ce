"""What the probe should read, worked out from attention that the model itself returns: eager, output_attentions."""

from __future__ import annotations

import copy

import torch

from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.probe import AttentionProbe
from atrl.models.policy import picture_inputs, response_logits
from atrl.types import Experience

TOLERANCE = 1e-5
FULL = AttentionRequest(sink_factor=0, neighbours=0, detail=True)


def read(policy, batch: Experience, request: AttentionRequest = FULL) -> AttentionCapture:
    """What a probe with this request reads of one no-grad pass."""
    probe = AttentionProbe(policy, [request])
    try:
        with torch.no_grad(), probe.capture(batch) as recorder:
            response_logits(policy, batch)
    finally:
        probe.detach()
    return recorder.results()[request]


def eager_attention(policy, batch: Experience) -> torch.Tensor:
    """[rollout, layer, head, token, token] as transformers returns it from an eager copy of `policy`."""
    eager = copy.deepcopy(policy)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        output = eager(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_attentions=True,
            **picture_inputs(eager, batch.input_ids, batch.attention_mask, batch.pixels),
        )
    return torch.stack(output.attentions, dim=1)


def expected_mass(attention: torch.Tensor, policy, batch: Experience, *, shift: int = 1) -> list[torch.Tensor]:
    """For each rollout [layer, head, response, image]: its rows, `shift` before each token, at its image columns."""
    masses = []
    for row in range(batch.size):
        image = (batch.input_ids[row] == policy.config.image_token_id).nonzero()[:, 0]
        tokens = batch.prompt_length + batch.response_mask[row].nonzero()[:, 0] - shift
        masses.append(attention[row][:, :, tokens][..., image])
    return masses


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the stated tolerance, absolute."""
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def assert_agrees(capture: AttentionCapture, attention: torch.Tensor, policy, batch: Experience, *, shift=1) -> None:
    """Every layer, head, token and image token; and nothing on padding."""
    for row, expected in enumerate(expected_mass(attention, policy, batch, shift=shift)):
        length, width = expected.shape[2:]
        assert capture.image_mask[row].sum() == width
        assert_close(capture.mass[row, :, :, :length, :width], expected)
        assert (capture.mass[row, :, :, length:] == 0).all() and (capture.mass[row, ..., width:] == 0).all()
        assert_close(capture.total[row, :, :, :length], expected.sum(dim=-1))
        assert (capture.total[row, :, :, length:] == 0).all() and (capture.peak[row, :, :, length:] == 0).all()
        if width:
            assert_close(capture.peak[row, :, :, :length], expected.amax(dim=-1))
            assert_close(capture.image[row, :length, :width], expected.amax(dim=(0, 1)))
        assert (capture.image[row, length:] == 0).all() and (capture.image[row, :, width:] == 0).all()
