"""What travels to and from vLLM's `/inference/v1/generate`: ids and pictures there, ids and log-probs back."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from atrl.rollout.base import ModelHandle, Sampling, request_seed
from atrl.rollout.transformers import end_token_ids
from atrl.types import Prompt, Rollout

if TYPE_CHECKING:
    from PIL.Image import Image

BANNED_BIAS = -1e30
"""Added to a banned token's logit: its probability is exactly 0 in float32, and JSON knows no infinity."""


def generate_request(prompt: Prompt, sampling: Sampling, handle: ModelHandle, seed: str) -> dict[str, Any]:
    """The body that asks for `group_size` responses to `prompt`, with its pictures as PNG."""
    request: dict[str, Any] = {
        "token_ids": prompt.engine_token_ids,
        "return_token_ids": True,
        "sampling_params": {
            "n": sampling.group_size,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_response_tokens,
            "seed": request_seed(seed, prompt.key),
            "stop_token_ids": list(end_token_ids(handle)),
            "logit_bias": {str(token): BANNED_BIAS for token in handle.banned_ids},
            "logprobs": 0,
            "detokenize": False,
        },
    }
    if prompt.images:
        request["content_parts"] = [{"type": "image_url", "url": data_url(image)} for image in prompt.images]
    return request


def check_prompt(prompt: Prompt, ids: Sequence[int], url: str) -> None:
    """Raises ValueError, in one line, unless the server made exactly the trainer's prompt of what it was sent."""
    if list(ids) == prompt.token_ids:
        return
    both = zip(ids, prompt.token_ids, strict=False)
    same = min(len(ids), len(prompt.token_ids))
    place = next((place for place, (there, here) in enumerate(both) if there != here), same)
    raise ValueError(
        f"problem {prompt.problem.id}: {url} expands the prompt to {len(ids)} tokens and the trainer's processor to "
        f"{len(prompt.token_ids)}, and they differ from token {place} on: serve the checkpoint whose processor made "
        "the prompt"
    )


def read_rollout(choice: dict[str, Any], ends: Sequence[int], problem: str) -> Rollout:
    """One of the responses in the server's answer; `ends` are the tokens that end one."""
    ids, steps = choice["token_ids"], choice["logprobs"]["content"]
    assert [step["token_id"] for step in steps] == ids, f"problem {problem}: log-probs are those of other tokens"
    logprobs = [float(step["logprob"]) for step in steps]
    assert all(math.isfinite(value) and value > -9999 for value in logprobs), (
        f"problem {problem}: the server sampled a token of probability 0"  # -9999 is how it writes -inf and NaN
    )
    return Rollout(token_ids=ids, logprobs=logprobs, finished=ids[-1] in ends)


def data_url(image: Image) -> str:
    """`image` as a ``data:`` URL of a PNG, which keeps every pixel; without what else its file may have held."""
    from PIL import Image as images

    buffer = BytesIO()
    images.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
