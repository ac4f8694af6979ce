"""What must hold between adapters, a quantised base and the rest of a config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from atrl.config import check_config
from atrl.models.load import PretrainedModel
from tests.unit.refusals import refusal

ROOT = Path(__file__).parents[2]
LORA = "model/lora=language"
REFUSED = {
    "nothing trained before": ((LORA, "model=scratch"), r"model/lora trains adapters beside weights that were trained"),
    "a warm-up before the reference": (
        (LORA, "stage=sft_rl", "algorithm.kl_coefficient=0.1"),
        r"stage=sft_rl with model/lora and algorithm\.kl_coefficient > 0 would compare",
    ),
    "dropout by batch": (
        (LORA, "model.lora.dropout=0.1", "trainer.deterministic=true", "rollout=transformers"),
        r"model\.lora\.dropout must be 0 with trainer\.deterministic=true, got 0\.1",
    ),
    "dropout between two updates": (
        (LORA, "model.lora.dropout=0.1", "algorithm.updates_per_batch=2"),
        r"model\.lora\.dropout must be 0 with algorithm\.updates_per_batch=2, got 0\.1",
    ),
    "4 bits without adapters": (("model.quantization=nf4",), r"model\.quantization=nf4 leaves nothing to train"),
    "4 bits divided": (
        (LORA, "model.quantization=nf4", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
        r"model\.quantization=nf4 can't be divided among ranks",
    ),
}
TAKEN = {
    "adapters": (LORA,),
    "adapters and a reference": (LORA, "algorithm.kl_coefficient=0.1"),
    "a warm-up without a reference": (LORA, "stage=sft_rl"),
    "dropout": (LORA, "model.lora.dropout=0.1"),
    "dropout in a warm-up alone": (LORA, "model.lora.dropout=0.1", "algorithm.updates_per_batch=2", "stage=sft"),
    "adapters on 4 bits": (LORA, "model.quantization=nf4"),
    "adapters divided": (LORA, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
    "a frozen part": ("model.freeze_vision=true", "model.freeze_projector=true"),
}


def check(*overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        check_config(compose("train", overrides=["logger=csv", "logger.csv.save_dir=.", *overrides]))


@pytest.mark.parametrize(("overrides", "line"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_said_in_a_line(overrides: tuple[str, ...], line: str) -> None:
    assert re.match(line, refusal(check, *overrides))


@pytest.mark.parametrize("overrides", TAKEN.values(), ids=TAKEN)
def test_what_can_be_is_let_through(overrides: tuple[str, ...]) -> None:
    assert refusal(check, *overrides) is None


def test_a_hub_model_that_is_not_there_is_named_in_one_line(monkeypatch):
    """What transformers says takes several, of which none says which setting is meant."""
    from transformers import AutoConfig

    def missing(source, **options):
        raise OSError(f"{source} is not a local folder\nand is not a valid model identifier")

    monkeypatch.setattr(AutoConfig, "from_pretrained", missing)
    with pytest.raises(
        ValueError, match=r"^model\.path=owner/nmae can't be fetched .*a valid model identifier\): check"
    ):
        PretrainedModel(path="owner/nmae").model_type()
    with pytest.raises(OSError, match="tiny"):  # a folder's own trouble is not the hub's
        PretrainedModel(path="tiny").model_type()
