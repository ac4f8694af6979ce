"""Finding the heads of a run: from the cache, or on responses that its own sampler draws before the first step."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jaxtyping import Float
from torch import Tensor

from atrl import parallel
from atrl.credit.base import Heads, HeadSearch, PictureMask
from atrl.credit.head_cache import cache_folder, cache_key, load_scores, store_scores
from atrl.credit.heads import calibrate, choose_heads
from atrl.credit.masking import mask_pixels, mask_scale
from atrl.data.loader import PromptLoader
from atrl.evaluation.grounding import blanked
from atrl.experience import build_experience
from atrl.rollout.bound import BoundRollouts
from atrl.rollout.dealing import with_prompts, without_pictures
from atrl.splitting import EvenSplit, TokenBudgetSplit
from atrl.types import Problem, Prompt, RolloutGroup

if TYPE_CHECKING:
    from atrl.data.prompts import PromptBuilder
    from atrl.module import PolicyModule
    from atrl.rollout.base import ResponseSource, Sampling

log = logging.getLogger(__name__)

Item = TypeVar("Item")

RESPONSES = 32
SEED = "heads"
"""Of the calibration responses; no step of a run has it, and a cached choice serves runs of every seed."""
MASK = PictureMask(ratio=0.5)
"""What `dependency` compares with: VPPO's half of the patches (Huang et al., arXiv 2510.09285)."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadCalibration:
    """What a run measures its heads on, and where it leaves what came out.

    Args:
        prompts: of the training split; one response is drawn to each.
        other: the same with the pictures that the criterion compares with; empty where it compares with none.
        folder: of the run.
    """

    prompts: Sequence[Prompt]
    other: Sequence[Prompt]
    folder: Path

    @classmethod
    def prepare(
        cls, search: HeadSearch, problems: Sequence[Problem], builder: PromptBuilder, folder: Path
    ) -> HeadCalibration:
        """`RESPONSES` problems in an order of their own, the same for every run on these data.

        Raises:
            ValueError: as `PromptLoader.take`, where hardly any prompt fits; as `mask_scale`, for `dependency`.
        """
        prompts = PromptLoader(problems, builder, batch_size=RESPONSES, steps=1, seed=0).take(RESPONSES)
        other: list[Prompt] = []
        if search.criterion == "sensitivity":
            blank = blanked((prompt.problem for prompt in prompts), builder.frames)
            other = [builder.build(problem) for problem in blank]
        elif search.criterion == "dependency":
            other = masked_prompts(prompts, builder)
        return cls(prompts, other, folder)

    def choose(self, search: HeadSearch, module: PolicyModule) -> Heads:
        """The heads that the policy of `module` is to be read by, the same on every rank: all must ask.

        Each rank samples its share of the responses, and all read all of them, in step, so that a divided policy stays
        divided. `module.rollouts` must be bound. Scores and choice are written to `heads.json`.

        Raises:
            ValueError: as `choose_heads`, `calibrate` and the sampler, on every rank.
        """
        rollouts = module.rollouts
        assert isinstance(rollouts, BoundRollouts), "no sampler is bound: add the rollout callback to the trainer"
        sampling, first = replace(rollouts.sampling, group_size=1), parallel.rank() == 0
        text = module.policy.config.get_text_config()
        key = cache_key(module.policy, search, self.prompts, sampling, other=self.other)
        path = cache_folder() / f"{key}.json"
        shape = (text.num_hidden_layers, text.num_attention_heads)
        scores = _of_first(load_scores(path, shape) if first else None)
        cached = scores is not None
        if scores is None:
            scores = _of_first(self._measure(search, module, rollouts.sampler, sampling))
        heads = choose_heads(scores, search.count, layers=search.layers)
        if first:
            self._keep(heads, search, scores, path, cached=cached)
        return heads

    def _keep(
        self, heads: Heads, search: HeadSearch, scores: Float[Tensor, "layer head"], path: Path, *, cached: bool
    ) -> None:
        content = {"criterion": search.criterion, "scores": scores.tolist()}
        if not cached:  # and a choice was possible: scores that are all 0 would bar every later run
            store_scores(path, content)
        source = f"the cache ({path}), no response was sampled" if cached else f"{len(self.prompts)} responses"
        log.info(
            "credit.heads=auto: %d of %d heads by %s from %s: %s",
            len(heads), scores.numel(), search.criterion, source, [list(pair) for pair in heads],
        )  # fmt: skip
        chosen = {"cached": cached, "cache_file": str(path), "chosen": heads, **content}
        (self.folder / "heads.json").write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")

    def _measure(
        self, search: HeadSearch, module: PolicyModule, sampler: ResponseSource, sampling: Sampling
    ) -> Float[Tensor, "layer head"]:
        groups = self._sampled(sampler, sampling)
        batch = build_experience(groups, pad_id=module.pad_id, device=module.device, seed=SEED)
        other = [{name: tensor.to(module.device) for name, tensor in prompt.pixels.items()} for prompt in self.other]
        settings = module.optimizer_settings
        budget = settings.micro_batch_tokens  # not the run's own split, which may wait for the other ranks
        split = EvenSplit(size=settings.micro_batch_size) if budget is None else TokenBudgetSplit(max_tokens=budget)
        return calibrate(module.policy, batch, search, other=other or None, run=module.forward_pass, split=split)

    def _sampled(self, sampler: ResponseSource, sampling: Sampling) -> list[RolloutGroup]:
        """A response to each prompt. Pictures are not sent around: every rank has all prompts.

        Raises:
            ValueError: on every rank, the sampler's on any.
        """
        own: list[RolloutGroup] | ValueError
        try:
            groups = sampler.generate(parallel.share(self.prompts), sampling, seed=SEED)
            own = [without_pictures(group) for group in groups]
        except ValueError as error:  # all must stop, or the others would wait for this rank for ever
            own = error
        drawn: list[RolloutGroup] = []
        for part in parallel.gather(own):
            if isinstance(part, ValueError):
                raise part
            drawn += part
        return with_prompts(drawn, self.prompts)


def masked_prompts(prompts: Sequence[Prompt], builder: PromptBuilder) -> list[Prompt]:
    """`prompts` with the patches of `MASK` black."""
    scale = mask_scale(builder.processor, "credit.head_criterion=dependency", "credit.head_criterion=relative_contrast")
    keys = [f"{SEED}/{prompt.key}/0" for prompt in prompts]
    pixels = mask_pixels([prompt.pixels for prompt in prompts], keys, MASK, mean=scale.mean, std=scale.std)
    return [replace(prompt, pixels=masked) for prompt, masked in zip(prompts, pixels, strict=True)]


def _of_first(found: Item) -> Item:
    """What the first rank found: numbers of another GPU may have other last bits, and its disk other files."""
    return parallel.gather(found)[0]
