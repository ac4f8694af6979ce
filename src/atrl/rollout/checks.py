"""What must hold between the sampler and the rest of a config; `config.CHECKS` lists these rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from atrl.schema import locate


def kept_tokens_are_known(config: DictConfig) -> str | None:
    """The trainer's log-probs are those of what was sampled from, so the sampler has to say which tokens it kept."""
    limits = {"top_k": None, "top_p": 1.0, "min_p": 0.0}
    given = {name: OmegaConf.select(config, f"rollout.{name}", default=default) for name, default in limits.items()}
    sampler = _sampler(config)
    if sampler is None or given == limits:
        return None
    name, says = getattr(sampler, "name", sampler.__name__), getattr(sampler, "says_what_it_keeps", "never")
    if says == "never":
        changed = ", ".join(f"rollout.{key}={value}" for key, value in given.items() if value != limits[key])
        return (
            f"{changed} can't be used with rollout={name}, which doesn't say which tokens that leaves, so that "
            "the trainer would compare log-probs of two distributions: use rollout=vllm or rollout=transformers"
        )
    if says == "within top_k" and given["top_k"] is None:
        return (
            f"rollout.top_k must be set where rollout.top_p or min_p leaves tokens out, got null with rollout={name}: "
            "it bounds the list of tokens that are left, which the trainer needs; 100 is usual"
        )
    return None


def groups_can_be_separate(config: DictConfig) -> str | None:
    """`trainer.deterministic` needs a sampler that generates a group by itself, and shapes that ranks don't share."""
    if not OmegaConf.select(config, "trainer.deterministic"):
        return None
    if OmegaConf.select(config, "trainer.strategy") == "fsdp":
        return (
            "trainer.deterministic=true can't be used with trainer.strategy=fsdp, whose ranks add gradients up as they "
            "come: use trainer.strategy=ddp"
        )
    sharing = OmegaConf.select(config, "rollout.sampler.tensor_parallel_size")
    if sharing is not None and sharing > 1:
        return (
            f"trainer.deterministic=true can't be used with rollout.sampler.tensor_parallel_size={sharing}: an engine "
            "that processes share answers the prompts of all at once; set it to 1"
        )
    sampler = _sampler(config)
    if sampler is None or getattr(sampler, "separates_groups", False):
        return None
    return (
        f"trainer.deterministic=true can't be used with rollout={getattr(sampler, 'name', sampler.__name__)}, which "
        "generates in batches of its own making: use rollout=transformers or rollout=vllm"
    )


def _sampler(config: DictConfig) -> Callable[..., Any] | None:
    target = OmegaConf.select(config, "rollout.sampler._target_")
    return None if target is None else locate(target)
