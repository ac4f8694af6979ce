"""What must hold between adapters, a quantised base and the rest of a config; `config.CHECKS` lists these rules."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def adapters_have_a_base(config: DictConfig) -> str | None:
    """Adapters beside random weights would leave these random."""
    target = OmegaConf.select(config, "model._target_") or ""
    if OmegaConf.select(config, "model.lora") is None or not target.endswith(".ScratchModel"):
        return None
    return (
        "model/lora trains adapters beside weights that were trained before, and model=scratch has none: use "
        "model=tiny or model=pretrained, or model/lora=none"
    )


def adapters_leave_a_reference(config: DictConfig) -> str | None:
    """The reference is the policy without its adapters, which the warm-up must not have trained."""
    weighs = (OmegaConf.select(config, "algorithm.kl_coefficient") or 0) > 0
    both = OmegaConf.select(config, "stage") == "sft_rl"
    if OmegaConf.select(config, "model.lora") is None or not (weighs and both):
        return None
    return (
        "stage=sft_rl with model/lora and algorithm.kl_coefficient > 0 would compare with the model from before the "
        "warm-up: run stage=sft first, and stage=rl with model.path set to the model that it leaves"
    )


def dropout_is_not_deterministic(config: DictConfig) -> str | None:
    """What is dropped depends on what was drawn for other prompts."""
    dropout = OmegaConf.select(config, "model.lora.dropout")
    if not dropout or not OmegaConf.select(config, "trainer.deterministic"):
        return None
    return f"model.lora.dropout must be 0 with trainer.deterministic=true, got {dropout}: it depends on the batch"


def dropout_leaves_no_ratio(config: DictConfig) -> str | None:
    """Ratios would compare what is dropped by two draws, and be clipped for it before the policy has moved."""
    dropout, updates = (OmegaConf.select(config, key) for key in ("model.lora.dropout", "algorithm.updates_per_batch"))
    if not dropout or (updates or 1) == 1 or OmegaConf.select(config, "stage") == "sft":
        return None
    return (
        f"model.lora.dropout must be 0 with algorithm.updates_per_batch={updates}, got {dropout}: ratios to the old "
        "log-probs would be of what was dropped; or set updates_per_batch to 1"
    )


def quantized_weights_stay(config: DictConfig) -> str | None:
    """Weights in 4 bits take no gradient, and can't be divided among ranks."""
    kind = OmegaConf.select(config, "model.quantization")
    if kind in (None, "none"):
        return None
    if OmegaConf.select(config, "model.lora") is None:
        return f"model.quantization={kind} leaves nothing to train: add model/lora=language"
    if OmegaConf.select(config, "trainer.strategy") == "fsdp":
        return (
            f"model.quantization={kind} can't be divided among ranks (trainer.strategy=fsdp): use "
            "trainer.strategy=ddp, or model.quantization=none"
        )
    return None
