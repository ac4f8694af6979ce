"""One answer and its weights, by the code that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.callbacks.pictures import attention_on
from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.bound import BoundCredit, picture_scale
from atrl.credit.probe import AttentionProbe
from atrl.data.templates import banned_token_ids, padding_id
from atrl.evaluation.score import held_out_sampling
from atrl.experience import build_experience
from atrl.forward import ForwardPass, attention_maps
from atrl.models.policy import evaluating

if TYPE_CHECKING:
    from atrl.credit.base import CreditScheme
    from atrl.models.load import LoadedModel
    from atrl.rollout.base import Sampling
    from atrl.rollout.settings import RolloutSettings
    from atrl.types import Problem, RolloutGroup

LOOK = AttentionRequest(neighbours=0, by_picture=True)
"""Every head of every layer: for the heat maps where a scheme reads no attention itself, and for mass by picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """What one scheme makes of the answer."""

    name: str
    weights: Float[Tensor, "token"]
    """Average 1."""
    anchors: Bool[Tensor, "token"] | None
    density: Float[Tensor, "token"] | None
    """The score that the scheme ranks tokens by."""
    entropy: Float[Tensor, "token"]
    """Of the distribution that each token was drawn from, in nats."""
    reading: Bool[Tensor, "token"] | None
    """Which tokens state what was read off the picture, where the problem knows."""
    attention: list[Float[Tensor, "token row column"]] | None
    """By picture, the largest mass that a head which was read puts there; None without a picture laid out in rows."""
    pictures: Float[Tensor, "token picture"] | None
    """Mass on each picture and video of the question, mean over all heads of all layers; None where the model's input
    doesn't show where one ends and the next begins."""

    @property
    def shares(self) -> list[float]:
        """How the tokens, by their weights, divide their mass among the pictures, in all 1; [] without `pictures`."""
        if self.pictures is None:
            return []
        mass = self.weights.double() @ self.pictures.double()
        return (mass / mass.sum().clamp_min(1e-12)).tolist()


def answer(
    problem: Problem,
    loaded: LoadedModel,
    rollout: RolloutSettings,
    sampling: Sampling,
    *,
    instruction: str | None,
    seed: int,
) -> RolloutGroup:
    """One response to `problem`.

    Raises:
        ValueError: if the prompt is longer than ``rollout.max_prompt_tokens``, or can't be built.
    """
    prompt = rollout.prompt_builder(loaded, instruction).build(problem)
    if len(prompt.token_ids) > rollout.max_prompt_tokens:
        raise ValueError(
            f"the prompt has {len(prompt.token_ids)} tokens, pictures included, more than rollout.max_prompt_tokens="
            f"{rollout.max_prompt_tokens}: raise it, or where the model takes no more show a smaller picture"
        )
    sampler = rollout.sampler
    sampler.start(rollout.handle(loaded, [problem]))
    try:
        (group,) = sampler.generate([prompt], sampling, seed=f"{seed}/inspect")
    finally:
        sampler.close()
    return group


def one_answer(rollout: RolloutSettings, *, drawn: bool) -> Sampling:
    """How it is drawn: as training does, or greedily."""
    if drawn:
        return replace(rollout.sampling, group_size=1)
    return held_out_sampling(rollout.sampling, samples=1, greedy=True)


def weigh(
    schemes: dict[str, CreditScheme], group: RolloutGroup, loaded: LoadedModel, *, temperature: float, seed: int
) -> list[Weighed]:
    """What each scheme makes of the one response of `group`: a forward pass each, as a training step does it.

    Args:
        temperature: that training samples at, for log-probs and entropy.
        seed: of schemes that draw lots.

    Raises:
        ValueError: if a scheme masks patches and the processor makes none.
    """
    processor, model = loaded.processor, loaded.model
    banned = banned_token_ids(processor)
    experience = build_experience(
        [group], pad_id=padding_id(processor.tokenizer, banned), device=model.device, seed=f"{seed}/inspect"
    )
    forward_pass = ForwardPass(temperature=temperature, banned_ids=banned)
    found = []
    for name, scheme in schemes.items():
        probe = AttentionProbe(model, [*scheme.requests, LOOK])
        bound = BoundCredit(scheme, probe, picture_scale(scheme, processor), processor.tokenizer)
        scheme.open()
        try:
            batch = bound.prepare(experience, [group])
            with torch.no_grad(), evaluating(model):
                forward = forward_pass(model, batch, bound, read=True)
            credit = bound.assign(batch, [forward.evidence], [bound.begin(batch, forward.evidence)])
        finally:
            scheme.close()
            probe.detach()
        found.append(
            Weighed(
                name=name,
                weights=credit.weights[0].cpu(),
                anchors=_row(credit.anchors),
                density=_row(credit.density),
                entropy=forward.entropy[0].cpu(),
                reading=_row(batch.reading),
                attention=_maps(group, attention_maps(forward.evidence, 0, [0])[0], processor),
                pictures=_by_picture(group, forward.evidence.read[LOOK]),
            )
        )
    return found


def _row(values: Tensor | None) -> Tensor | None:
    return None if values is None else values[0].cpu()


def _by_picture(group: RolloutGroup, capture: AttentionCapture) -> Float[Tensor, "token picture"] | None:
    mass = capture.pictures[0].mean(dim=(0, 1)).cpu()
    # Without grids only runs of image tokens are told apart, which may be parts of a picture, or several.
    return mass if mass.shape[1] == len(group.prompt.images) + len(group.prompt.videos) else None


def _maps(group: RolloutGroup, peak: Float[Tensor, "token image"], processor) -> list[Tensor] | None:
    merge_size = getattr(processor.image_processor, "merge_size", 1)
    return attention_on(group.prompt, group.prompt.pixels, peak, merge_size)


def by_token(values: Tensor | None, digits: int = 5) -> list | None:
    """A list for JSON, of lists where there is more than one number a token."""
    if values is None:
        return None
    return values.tolist() if values.dtype == torch.bool else values.double().numpy().round(digits).tolist()


def token_texts(group: RolloutGroup, tokenizer) -> Sequence[str]:
    """The response's tokens, one by one."""
    from atrl.credit.reading import token_pieces

    return token_pieces(group.rollouts[0].token_ids, tokenizer)
