"""How well heads that are chosen without labels find the tokens that read the picture, on sampled responses.

    python benchmarks/heads.py [CHECKPOINT]

Heads are scored on 32 responses to training problems, as a run's `credit.heads=auto` does, and judged on 64 responses
to test problems. The last line is one JSON object: the area under the curve of each head's peaks, and by criterion the
rank correlation of scores and areas, with the density's area and the recall of its 15 % densest tokens for several
numbers of heads. "labels" ranks heads by the areas themselves: a bound.
"""

from __future__ import annotations

import argparse
import json

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.agreement import area_under_curve
from atrl.credit.base import HeadSearch, top_tokens
from atrl.credit.calibration import RESPONSES
from atrl.credit.connectivity import relative_peaks
from atrl.credit.heads import calibrate, choose_heads, read_heads
from atrl.credit.reading import reading_mask
from atrl.data.geometry import GeometryProblems
from atrl.data.loader import PromptLoader
from atrl.data.prompts import PromptBuilder
from atrl.evaluation.grounding import blanked
from atrl.experience import build_experience
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.rollout.base import Sampling
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler
from atrl.types import Experience, Prompt, RolloutGroup

CRITERIA = ("relative_contrast", "contrast", "sensitivity")
COUNTS = (1, 2, 4, 6, 8)
TEST_RESPONSES = 64
ANCHOR_RATIO = 0.15


def main(checkpoint: str) -> None:
    """Score the heads, judge the scores."""
    loaded = PretrainedModel(path=checkpoint).load(None)
    builder, source = PromptBuilder(processor=loaded.processor), GeometryProblems()
    prompts = PromptLoader(source.load("train"), builder, batch_size=1, steps=1, seed=0).take(RESPONSES)
    batch, _ = sampled(loaded, prompts)
    blank = [
        builder.build(problem).pixels for problem in blanked((prompt.problem for prompt in prompts), builder.frames)
    ]
    searches = {name: search_by(name) for name in CRITERIA}
    scores = {name: calibrate(loaded.model, batch, search, blank=blank) for name, search in searches.items()}

    batch, groups = sampled(loaded, builder.build_all(source.load("test")[:TEST_RESPONSES]).prompts)
    reading = reading_mask(groups, loaded.processor.tokenizer, batch.response_mask)
    capture = read_heads(loaded.model, batch, searches["contrast"])
    peaks, relative = capture.peak.flatten(1, 2), relative_peaks(capture, batch.response_mask)
    areas = torch.tensor([area(peaks[:, head], batch.response_mask, reading) for head in range(peaks.shape[1])])
    areas = areas.double().view(scores["contrast"].shape)
    print("area of each head's peaks, a row a layer:")
    print("\n".join("  ".join(f"{value:.3f}" for value in layer) for layer in areas.tolist()))
    result = {
        name: judged(name, ranking, areas, relative, batch.response_mask, reading)
        for name, ranking in (scores | {"labels": areas}).items()
    }
    print(json.dumps({"areas": areas.tolist(), "criteria": result}))


def search_by(criterion: str) -> HeadSearch:
    """As the schemes' defaults have it."""
    return HeadSearch(count=1, criterion=criterion, layers=None, row="predicting", sink_factor=4.0)


def sampled(
    loaded: LoadedModel, prompts: list[Prompt], group_size: int = 1, *, max_response_tokens: int = 64
) -> tuple[Experience, list[RolloutGroup]]:
    """`group_size` responses to each prompt."""
    sampler = TransformersSampler()
    sampler.start(RolloutSettings(sampler=sampler).handle(loaded, []))
    sampling = Sampling(group_size=group_size, max_response_tokens=max_response_tokens)
    groups = sampler.generate(prompts, sampling, seed="heads")
    return build_experience(groups, pad_id=loaded.processor.tokenizer.pad_token_id), groups


def area(values: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], reading: Tensor) -> float:
    """Over the tokens of all responses together."""
    return area_under_curve(values[mask], reading[mask])


def judged(name: str, scores: Tensor, areas: Tensor, relative: Tensor, mask: Tensor, reading: Tensor) -> dict:
    """Rank correlation, and by number of heads the area and recall of the density; printed as well."""
    result: dict = {"rank_correlation": rank_correlation(scores.flatten(), areas.flatten()), "area": {}, "recall": {}}
    for count in (*COUNTS, scores.numel()):
        chosen = [layer * scores.shape[1] + head for layer, head in choose_heads(scores, count)]
        density = torch.where(mask, relative[:, chosen].mean(dim=1), 0.0)
        anchors = top_tokens(density, mask, ratio=ANCHOR_RATIO)
        result["area"][count] = area(density, mask, reading)
        result["recall"][count] = (anchors & reading).sum().item() / reading.sum().item()
    shown = [f"{count}: {result['area'][count]:.3f} / {result['recall'][count]:.2f}" for count in result["area"]]
    print(f"{name:18} rank correlation {result['rank_correlation']:+.2f}, area / recall of " + ", ".join(shown))
    return result


def rank_correlation(one: Float[Tensor, "head"], other: Float[Tensor, "head"]) -> float:
    """Spearman's, for numbers without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny", help="'tiny', a folder or a hub name (default tiny)")
    try:
        main(parser.parse_args().checkpoint)
    except ValueError as error:
        parser.error(str(error))
