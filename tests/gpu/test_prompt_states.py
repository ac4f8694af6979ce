"""On a GPU: prompts that are run once, by the kernels that work there, and the probe's fused reading of such a pass."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from atrl.credit.attention import AttentionRequest
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.types import Experience
from tests.unit.families import FAMILIES
from tests.unit.test_forward import Looks, bound
from tests.unit.test_prompt_states import APART, ONCE, assert_same, batch_of, outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

BY_FLASH = pytest.param(
    "flash_attention_2", marks=pytest.mark.skipif(not find_spec("flash_attn"), reason="flash-attn is not installed")
)


def on_gpu(family: str, folder: Path, *, attention: str = "sdpa") -> tuple[LoadedModel, Experience]:
    loaded = PretrainedModel(path=str(FAMILIES[family](folder / family)), attention=attention).load(folder)
    loaded.model.cuda()
    batch = batch_of(loaded)
    moved = {name: value.cuda() for name, value in vars_of(batch).items() if isinstance(value, torch.Tensor)}
    pixels: dict[int, dict] = {}
    for entry in batch.pixels:  # one dict a group stays one
        pixels.setdefault(id(entry), {name: tensor.cuda() for name, tensor in entry.items()})
    return loaded, Experience(**vars_of(batch) | moved | {"pixels": [pixels[id(entry)] for entry in batch.pixels]})


def vars_of(batch: Experience) -> dict:
    return {name: getattr(batch, name) for name in Experience.__dataclass_fields__}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_with_each_response(family: str, tmp_path: Path) -> None:
    loaded, batch = on_gpu(family, tmp_path)
    assert_same(outcome(ONCE, loaded.model, batch), outcome(APART, loaded.model, batch))


@pytest.mark.parametrize("attention", ["sdpa", BY_FLASH])
def test_in_bfloat16_as_near_as_its_rounding(attention: str, tmp_path: Path) -> None:
    """Against float32: one pass or two, the error is the same within a factor."""
    loaded, batch = on_gpu("qwen2_5_vl", tmp_path, attention=attention)
    with torch.no_grad():
        exact = outcome_of(on_gpu("qwen2_5_vl", tmp_path / "exact")[0].model, APART, batch)
        loaded.model.bfloat16()
        errors = [(outcome_of(loaded.model, way, batch) - exact).abs().mean() for way in (APART, ONCE)]
    assert 0 < errors[1] < 2 * errors[0] < 0.2


def outcome_of(model, forward_pass, batch: Experience) -> torch.Tensor:
    return forward_pass.logprobs(model, batch)[0]


def test_what_is_read_by_fused_kernels_is_the_same(tmp_path: Path) -> None:
    loaded, batch = on_gpu("qwen2_5_vl", tmp_path)
    request = AttentionRequest()
    credit = bound(loaded.model, Looks(reads=(request,)))
    with torch.no_grad():
        apart, once = (way(loaded.model, batch, credit, read=True).evidence.read[request] for way in (APART, ONCE))
    credit.probe.detach()
    torch.testing.assert_close(once.peak, apart.peak, atol=1e-5, rtol=0)
    torch.testing.assert_close(once.edges.strengths, apart.edges.strengths, atol=1e-5, rtol=0)
