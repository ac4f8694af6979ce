"""What vLLM is asked to sample, by the engine in this process and by a server alike; vLLM itself is not imported."""

from __future__ import annotations

from typing import Any

from atrl.rollout.base import ModelHandle, Sampling, request_seed
from atrl.rollout.transformers import end_token_ids
from atrl.types import Prompt

LOWEST_TEMPERATURE = 0.01
"""vLLM raises smaller ones to this, which would falsify the log-probabilities."""

TIES = 8
"""More log-probabilities than `top_k` are asked for: tokens that tie with the last of them are kept as well."""


def check_temperature(sampling: Sampling) -> None:
    """Raises ValueError, in one line, for a temperature that vLLM would change."""
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"rollout.temperature must be 0 or at least {LOWEST_TEMPERATURE} with vLLM, got {sampling.temperature}"
        )


def sampling_options(
    prompt: Prompt, sampling: Sampling, handle: ModelHandle, seed: str, *, banned_bias: float
) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`: `group_size` responses, with the log-probs of the sampled tokens.

    Where `sampling` leaves tokens out, also with those of all that are left.

    Args:
        prompt, sampling, handle, seed: as a sampler gets them.
        banned_bias: is added to the logits of the tokens that must not be sampled.
    """
    assert sampling.top_k is not None or not sampling.truncates, "a list of tokens without end: see rollout/checks.py"
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "max_tokens": sampling.max_response_tokens,
        "seed": request_seed(seed, prompt.key),
        "stop_token_ids": list(end_token_ids(handle)),
        # A bias is one vectorised addition. `allowed_token_ids` would list the whole vocabulary in every request (newer
        # engines refuse more than 1024), and `bad_words` loops over requests in Python.
        "logit_bias": dict.fromkeys(handle.banned_ids, banned_bias),
        "logprobs": sampling.top_k + TIES if sampling.truncates else 0,
        "detokenize": False,
    }
