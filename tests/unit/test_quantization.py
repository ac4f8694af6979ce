"""A base in 4 bits beneath adapters: which matrices, what training and evaluation compute, and what is left of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from atrl.export.write import write_model
from atrl.models.load import PretrainedModel
from atrl.models.lora import Lora
from atrl.models.quantization import check_quantization, own_gpu
from atrl.weight_sync import named_parameters, parameter_forms, whole_state

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason='bitsandbytes is not installed: pip install -e ".[qlora]"'
)
IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def loaded():
    """The shipped model in 4 bits, its adapters moved from where they began."""
    found = PretrainedModel(path="tiny", lora=Lora(rank=4), quantization="nf4").load(Path())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return found


def test_without_the_package_a_line_says_so(monkeypatch) -> None:
    monkeypatch.setattr("atrl.models.quantization.find_spec", lambda name: None)
    check_quantization("none")
    with pytest.raises(ValueError, match=r"^model\.quantization=nf4 needs the package bitsandbytes, .*\[qlora\]"):
        check_quantization("nf4")


@needs_bitsandbytes
def test_the_language_half_alone_is_in_4_bits(loaded) -> None:
    quantised = {name for name, p in loaded.model.named_parameters() if hasattr(p, "quant_state")}
    assert quantised and all(".language_model.layers." in name and ".base_layer." in name for name in quantised)
    adapted = {name.partition(".lora_A")[0] for name, _ in loaded.model.named_parameters() if ".lora_A." in name}
    assert {name.removesuffix(".base_layer.weight") for name in quantised} == adapted


@needs_bitsandbytes
def test_gradients_reach_the_adapters_alone(loaded) -> None:
    loaded.model.train()(input_ids=IDS).logits.square().mean().backward()
    with_gradient = {name for name, p in loaded.model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    loaded.model.zero_grad()


@needs_bitsandbytes
@torch.no_grad()
def test_training_and_evaluation_compute_alike_and_so_does_what_is_left(loaded, tmp_path: Path) -> None:
    training = loaded.model.train()(input_ids=IDS).logits
    assert torch.equal(loaded.model.eval()(input_ids=IDS).logits, training)
    write_model(loaded.model, loaded.processor, whole_state(loaded.model), tmp_path / "model", instruction=None)
    assert "quantization" not in (tmp_path / "model" / "config.json").read_text()
    left = PretrainedModel(path=str(tmp_path / "model")).load(tmp_path).model.eval()
    torch.testing.assert_close(left(input_ids=IDS).logits, training, rtol=0, atol=1e-4)
    plain = PretrainedModel(path="tiny").load(tmp_path).model.eval()
    assert (plain(input_ids=IDS).logits - training).abs().max() > 1  # adapters as large as these can't be overlooked


@needs_bitsandbytes
def test_forms_are_those_of_full_weights(loaded) -> None:
    expected = [(name, tensor.dtype, tensor.shape) for name, tensor in named_parameters(loaded.model)]
    assert parameter_forms(loaded.model) == expected


@pytest.mark.parametrize(("there", "expected"), [(False, None), (True, {"": 3})])
def test_a_process_loads_on_its_own_gpu(monkeypatch, there, expected):
    """The first GPU would hold every process's model. Without a GPU the choice is transformers'."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert own_gpu() == expected


@pytest.mark.parametrize(
    ("options", "expected"), [({"quantization": "nf4", "lora": Lora(rank=4)}, {"": 5}), ({}, None)]
)
def test_only_a_model_in_4_bits_is_loaded_on_a_gpu(monkeypatch, options, expected):
    """Any other waits on the CPU, from where Lightning moves it."""
    import transformers

    class Loaded(Exception):
        pass

    def load(source, **given):
        raise Loaded(given["device_map"])

    monkeypatch.setattr("atrl.models.load.own_gpu", lambda: {"": 5})
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", load)
    with pytest.raises(Loaded) as raised:
        PretrainedModel(path="tiny", **options).load(Path())
    assert raised.value.args == (expected,)
