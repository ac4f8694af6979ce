"""What finds the tokens that read the picture, without a label: attention, doubt, or what another picture changes.

    python benchmarks/finders.py [CHECKPOINT] [--task geometry|easy_vqa] [--tokens 64]

128 responses, of at most `--tokens` tokens, are sampled to test problems. Each row is a score a token: the area under
its curve against the tokens that truly read, which the generator knows, and how many of these are among the 15 % of a
response's tokens that score highest. Scores by another picture are the divergence KL(π(·|picture) ‖ π(·|other)) in nats
from the same policy that sees it with patches black, in its mean colour, with its patches in another order, or that
sees another problem's. Then how many tokens hold a share of the divergence from half of the patches and from another
order, and how many of them read. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from heads import ANCHOR_RATIO, TASKS, area, command, reading_of, sampled, search_by
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.base import Hiding, PictureMask, top_tokens
from atrl.credit.connectivity import relative_peaks
from atrl.credit.dependency import above_rounding
from atrl.credit.heads import read_heads
from atrl.credit.masking import mask_pixels
from atrl.credit.visual_dependency import fewest_tokens
from atrl.data.prompts import PromptBuilder
from atrl.evaluation.grounding import blanked
from atrl.forward import ForwardPass
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.models.policy import evaluating, picture_inputs
from atrl.splitting import EvenSplit
from atrl.types import Experience, Prompt

RESPONSES, PIECES = 128, EvenSplit(size=16)
MASSES = (0.8, 0.9, 0.95, 0.98, 0.99)
HALF, ORDER = "50% of patches black", "patches in another order"
Pixels = Sequence[dict[str, Tensor]]


def main(checkpoint: str, task: str, tokens: int) -> None:
    """Sample, score by each finder, judge."""
    loaded = PretrainedModel(path=checkpoint).load(None)
    builder, problems = PromptBuilder(processor=loaded.processor), TASKS[task]().load("test")
    drawn = [problems[number] for number in random.Random(0).sample(range(len(problems)), RESPONSES)]
    prompts = builder.build_all(drawn).prompts
    batch, groups = sampled(loaded, prompts, max_response_tokens=tokens)
    reading = reading_of(groups, loaded, batch, checkpoint, task)
    others = other_pictures(loaded, builder, prompts, batch)
    scores = by_attention(loaded, batch) | by_other_pictures(loaded, batch, others)
    result = {name: judged(name, score, batch.response_mask, reading) for name, score in scores.items()}
    fewest = {
        name: {mass: held(name, scores[name], mass, batch.response_mask, reading) for mass in MASSES}
        for name in (HALF, ORDER)
    }
    tokens_in_all = batch.response_mask.sum().item()
    shares = {"reading_share": reading.sum().item() / tokens_in_all, "tokens_of_a_response": tokens_in_all / batch.size}
    print(json.dumps(shares | {"fewest": fewest, "finders": result}))


def judged(name: str, score: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"],
           reading: Bool[Tensor, "rollout response"]) -> dict[str, float]:  # fmt: skip
    """Area and recall; printed as well."""
    anchors = top_tokens(torch.where(mask, score.float(), 0.0), mask, ratio=ANCHOR_RATIO)
    found = {"area": area(score, mask, reading), "recall": (anchors & reading).sum().item() / reading.sum().item()}
    print(f"{name:26} area {found['area']:.3f}  recall {found['recall']:.2f}")
    return found


def held(name: str, score: Float[Tensor, "rollout response"], mass: float, mask: Bool[Tensor, "rollout response"],
         reading: Bool[Tensor, "rollout response"]) -> dict[str, float]:  # fmt: skip
    """Of the fewest tokens that hold `mass` of a response's dependency their share, recall and precision; printed as
    well."""
    anchors = fewest_tokens(above_rounding(score.float(), mask), mask, mass=mass)
    both, chosen = (anchors & reading).sum().item(), anchors.sum().item()
    found = {"share": chosen / mask.sum().item(), "recall": both / reading.sum().item(), "precision": both / chosen}
    print(f"{mass:<5}of {name:25}" + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return found


def by_attention(loaded: LoadedModel, batch: Experience) -> dict[str, Float[Tensor, "rollout response"]]:
    """The density of all heads, each head's own, and attention that is followed through the layers."""
    capture = read_heads(loaded.model, batch, search_by("contrast"))
    relative = relative_peaks(capture, batch.response_mask)
    heads = {f"head {divmod(head, capture.peak.shape[2])}": relative[:, head] for head in range(relative.shape[1])}
    flow = torch.cat([rolled_out(loaded, PIECES.piece(batch, rows)) for rows in PIECES.slices(batch)])
    return {"density, all heads": relative.mean(dim=1), **heads, "attention rollout": flow}


@torch.no_grad()
def rolled_out(loaded: LoadedModel, batch: Experience) -> Float[Tensor, "rollout response"]:
    """The largest share of one image token in the row that predicts each token, layers multiplied.

    Attention rollout: ``Π_l (I + A_l) / 2`` with A_l the mean over heads, Abnar and Zuidema, arXiv 2005.00928.
    """
    model, before = loaded.model, loaded.model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        pictures = picture_inputs(model, batch.input_ids, batch.attention_mask, batch.pixels)
        layers = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
                       output_attentions=True, **pictures).attentions  # fmt: skip
    finally:
        model.set_attn_implementation(before)
    itself = torch.eye(batch.input_ids.shape[1])
    flow = itself.expand(batch.size, -1, -1)
    for layer in layers:
        flow = (itself + layer.mean(dim=1)) / 2 @ flow
    image = batch.input_ids == model.config.image_token_id
    return (flow * image[:, None]).amax(dim=2)[:, batch.prompt_length - 1 : -1]


def by_other_pictures(
    loaded: LoadedModel, batch: Experience, others: dict[str, Pixels]
) -> dict[str, Float[Tensor, "rollout response"]]:
    """The entropy with the picture, and the divergence from what is said with each of the others."""
    run = ForwardPass(temperature=1.0, banned_ids=())
    shown = {name: replace(batch, pixels=list(pixels)) for name, pixels in others.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in ("entropy", *others)}
    with torch.no_grad(), evaluating(loaded.model):
        for rows in PIECES.slices(batch):
            own = run.scores(loaded.model, PIECES.piece(batch, rows))
            found["entropy"].append(own.entropy)
            for name, other in shown.items():
                scores = run.scores(loaded.model, PIECES.piece(other, rows), against=own.rows)
                found[name].append(scores.divergence)
    return {name: torch.cat(parts) for name, parts in found.items()}


def other_pictures(
    loaded: LoadedModel, builder: PromptBuilder, prompts: Sequence[Prompt], batch: Experience
) -> dict[str, Pixels]:
    """By name, what is shown in place of each rollout's picture; all are of the same size."""
    scale = loaded.processor.image_processor

    def masked(ratio: float, by: Hiding = "black") -> Pixels:
        mask = PictureMask(ratio=ratio, seed=0, by=by)
        return mask_pixels(batch.pixels, batch.keys, mask, mean=scale.image_mean, std=scale.image_std)

    blank = [builder.build(problem).pixels for problem in blanked((one.problem for one in prompts), builder.frames)]
    return {
        **{f"{ratio:.0%} of patches black": masked(ratio) for ratio in (0.25, 0.75, 1.0)},
        HALF: masked(0.5),
        "mean colour": blank,
        "another problem's picture": [*batch.pixels[1:], batch.pixels[0]],
        ORDER: masked(1.0, "shuffled"),
    }


if __name__ == "__main__":
    command(main, __doc__)
