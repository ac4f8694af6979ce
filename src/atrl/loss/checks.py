"""What must hold between an algorithm and the rest of a config; `config.CHECKS` lists these rules."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from atrl.schema import locate


def overlong_fits_the_response(config: DictConfig) -> str | None:
    """The overlong penalty falls over the last tokens that a response may have, so there must be as many."""
    cache = OmegaConf.select(config, "algorithm.overlong.cache_tokens")
    limit = OmegaConf.select(config, "rollout.max_response_tokens")
    if cache is None or limit is None or cache <= limit:
        return None
    return (
        f"algorithm.overlong.cache_tokens must be at most rollout.max_response_tokens={limit}, got {cache}: "
        "null is a fifth of the limit"
    )


def credit_suits_the_loss(config: DictConfig) -> str | None:
    """A loss with one ratio a response has no place for weights that differ within it."""
    targets = [OmegaConf.select(config, f"{key}._target_") for key in ("algorithm.loss", "credit")]
    if None in targets:
        return None
    loss, credit = map(locate, targets)
    if getattr(loss, "accepts_token_credit", True) or _is_uniform(config.credit):
        return None
    scheme, form = getattr(credit, "name", credit.__name__), loss.__name__
    return (
        f"credit={scheme} can't be used with {form}, whose ratio and clip are per response: "
        "use algorithm=gspo_token, which weighs tokens, or credit=none"
    )


def correction_suits_the_loss(config: DictConfig) -> str | None:
    """A loss with one ratio a response has no place for corrections that differ within it."""
    targets = [OmegaConf.select(config, f"algorithm.{key}._target_") for key in ("loss", "correction")]
    if None in targets:
        return None
    loss, correction = map(locate, targets)
    unit = OmegaConf.select(config, "algorithm.correction.unit")
    if getattr(loss, "accepts_token_credit", True) or unit == "sequence":
        return None
    return (
        f"algorithm.correction={correction.__name__} can't be used with {loss.__name__}, whose ratio and clip are per "
        "response: use algorithm/correction=sequence_mask or sequence_truncate, or algorithm=gspo_token"
    )


def _is_uniform(node: DictConfig) -> bool:
    """What the class says; where that depends on the schemes that it is made of (a product), what these say."""
    uniform = getattr(locate(node["_target_"]), "is_uniform", False)
    return uniform if isinstance(uniform, bool) else all(_is_uniform(part) for part in node.get("schemes") or ())
