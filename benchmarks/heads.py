"""How well heads that are chosen without labels find the tokens that read the picture, on sampled responses.

    python benchmarks/heads.py [CHECKPOINT] [--task geometry|easy_vqa] [--tokens 64]

Heads are scored on 32 responses to training problems, as a run's `credit.heads=auto` does, and judged on 64 responses
to test problems. The last line is one JSON object: the area under the curve of each head's peaks, and by criterion the
rank correlation of scores and areas, with the density's area and the recall of its 15 % densest tokens for several
numbers of heads. "labels" ranks heads by the areas themselves: a bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.agreement import area_under_curve
from atrl.credit.base import Criterion, HeadSearch, top_tokens
from atrl.credit.calibration import HeadCalibration
from atrl.credit.connectivity import relative_peaks
from atrl.credit.heads import calibrate, choose_heads, read_heads
from atrl.credit.reading import reading_mask
from atrl.data.easy_vqa import EasyVqaProblems
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.rollout.base import Sampling
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler
from atrl.splitting import EvenSplit
from atrl.types import Experience, Problem, Prompt, RolloutGroup

TASKS = {"geometry": GeometryProblems, "easy_vqa": EasyVqaProblems}
CRITERIA: tuple[Criterion, ...] = ("dependency", "relative_contrast", "contrast", "sensitivity")
COUNTS = (1, 2, 4, 6, 8)
TEST_RESPONSES = 64
ANCHOR_RATIO = 0.15


def main(checkpoint: str, task: str, tokens: int) -> None:
    """Score the heads, judge the scores."""
    loaded = PretrainedModel(path=checkpoint).load(None)
    builder, source = PromptBuilder(processor=loaded.processor), TASKS[task]()
    scores = {name: scored(loaded, builder, source.load("train"), name, tokens) for name in CRITERIA}

    prompts = builder.build_all(source.load("test")[:TEST_RESPONSES]).prompts
    batch, groups = sampled(loaded, prompts, max_response_tokens=tokens)
    reading = reading_of(groups, loaded, batch, checkpoint, task)
    capture = read_heads(loaded.model, batch, search_by("contrast"))
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


def scored(
    loaded: LoadedModel, builder: PromptBuilder, problems: Sequence[Problem], criterion: Criterion, tokens: int
) -> Float[Tensor, "layer head"]:
    """Every head by `criterion`, as at a run's start."""
    made = HeadCalibration.prepare(search_by(criterion), problems, builder, Path())
    batch, _ = sampled(loaded, list(made.prompts), max_response_tokens=tokens)
    other = [prompt.pixels for prompt in made.other] or None
    run = ForwardPass(temperature=1.0, banned_ids=())
    return calibrate(loaded.model, batch, search_by(criterion), other=other, run=run, split=EvenSplit(size=16))


def reading_of(
    groups: list[RolloutGroup], loaded: LoadedModel, batch: Experience, checkpoint: str, task: str
) -> Bool[Tensor, "rollout response"]:
    """Which tokens truly read.

    Raises:
        ValueError: if none does, as of a checkpoint that has learned something else.
    """
    reading = reading_mask(groups, loaded.processor.tokenizer, batch.response_mask)
    if reading is None or not reading.any():
        raise ValueError(f"none of {batch.size} responses of {checkpoint} reads: is it a checkpoint of --task {task}?")
    return reading


def command(main: Callable[..., None], description: str | None) -> None:
    """Call `main` with what the command line says, as `finders.py` does too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny", help="'tiny', a folder or a hub name (default tiny)")
    parser.add_argument("--task", choices=list(TASKS), default="geometry", help="whose problems (default geometry)")
    parser.add_argument("--tokens", type=int, default=64, help="longest response (default 64)")
    try:
        main(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))


def search_by(criterion: Criterion) -> HeadSearch:
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
    command(main, __doc__)
