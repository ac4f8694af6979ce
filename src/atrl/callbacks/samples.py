"""What the report shows of a few rollouts, in files whose size is bounded: pictures, attention, heads, clusters."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from atrl.callbacks.pictures import Shown, attention_on, shown_pictures
from atrl.credit.attention import AttentionRequest
from atrl.credit.base import CreditScheme
from atrl.credit.head_maps import HeadMapRequest
from atrl.credit.reading import reading_mask
from atrl.models.head import run_layers
from atrl.module import PolicyModule
from atrl.report.heatmaps import MAX_SIDE, MAX_VALUES, heaviest, pool, quantised
from atrl.step import StepRecord, shown_rollouts

HEAD_VALUES = 128 * 1024
"""Cells of all heads' maps of a rollout."""
DENSITY_BINS = 40


class SampleWriter:
    """Appends to `samples.jsonl` and `density.jsonl`.

    Args:
        folder: of the run.
        tokenizer: to show tokens one by one.
        merge_size: image patches per image token along one side; 1 where the model does not merge.
    """

    def __init__(self, folder: Path, *, tokenizer, merge_size: int) -> None:
        self._folder, self._tokenizer, self._merge_size = folder, tokenizer, merge_size

    def open(self) -> None:
        """Make the pictures' folder."""
        (self._folder / "samples").mkdir(exist_ok=True)

    def write(
        self, step: StepRecord, rows: Sequence[dict[str, Any]], heads: dict[int, Tensor], scheme: CreditScheme | None
    ) -> None:
        """The first rollouts of this rank's first groups, out of the step's `rows`, and all densities as a histogram.

        Args:
            heads: by rollout, what `head_maps` found.
            scheme: of the run; one with `regroup` shows its clusters.
        """
        size = len(step.groups[0].rollouts)
        reading = reading_mask(step.groups, self._tokenizer, step.experience.response_mask)
        with (self._folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for number in shown_rollouts(step.experience):
                prompt, length = step.groups[number // size].prompt, len(rows[number]["tokens"])
                shown = shown_pictures(prompt)
                sample = rows[number] | {
                    "images": self._write_images(step.step, number, shown),
                    "timestamps": [entry.timestamps for entry in shown],
                    "density": numbers(None if step.credit is None else step.credit.density, number, length),
                    "reading": None if reading is None else reading[number, :length].tolist(),
                    "entropy": numbers(step.entropy, number, length),
                    **self._attention(step, number, rows[number]["weights"], shown),
                    "clusters": clusters_of(scheme, step, number, length),
                    "heads": self._heads(step, number, heads, shown),
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        if (histogram := density_histogram(step)) is not None:
            with (self._folder / "density.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(histogram) + "\n")

    def _write_images(self, step: int, number: int, shown: Sequence[Shown]) -> list[str]:
        names = [f"samples/{step:06d}_{number:04d}_{index}.png" for index in range(len(shown))]
        for name, entry in zip(names, shown, strict=True):
            entry.picture.save(self._folder / name)
        return names

    def _maps(self, step: StepRecord, number: int, mass: Float[Tensor, "map image"]) -> list[Tensor] | None:
        """[picture] [map, row, column] of `mass` on a rollout's image tokens; None where `attention_on` has none."""
        size = len(step.groups[0].rollouts)
        prompt, pixels = step.groups[number // size].prompt, step.experience.pixels[number]
        return attention_on(prompt, pixels, mass, self._merge_size)

    def _attention(self, step: StepRecord, number: int, weights: list[float], shown: Sequence[Shown]) -> dict[str, Any]:
        """Per picture a list [token][row][column] of the largest mass that any head puts there, and whose tokens."""
        maps = None
        if number in step.attention:
            maps = self._maps(step, number, step.attention[number][: len(weights)])
        if maps is None:
            return {"attention": None, "attended": None}
        pooled = _pooled(maps, shown, MAX_SIDE)
        kept = heaviest(weights, max(1, MAX_VALUES // sum(grid[0].size for grid in pooled)))
        return {
            "attention": [np.round(grid[kept], 4).tolist() for grid in pooled],
            "attended": None if len(kept) == len(weights) else kept,
        }

    def _heads(
        self, step: StepRecord, number: int, heads: dict[int, Tensor], shown: Sequence[Shown]
    ) -> dict[str, Any] | None:
        """Every head's map in bytes, relative to its own largest cell, and that cell's mass."""
        if number not in heads:
            return None
        layers, count, _ = heads[number].shape
        maps = self._maps(step, number, heads[number].flatten(0, 1).cpu())
        if maps is None:
            return None
        side = max(2, min(MAX_SIDE, int((HEAD_VALUES / (layers * count * len(maps))) ** 0.5)))
        pooled = _pooled(maps, shown, side)
        mass = np.concatenate([grid.reshape(layers * count, -1) for grid in pooled], axis=1)
        return {
            "layers": layers,
            "heads": count,
            "grids": [list(grid.shape[1:]) for grid in pooled],
            "levels": base64.b64encode(quantised(mass).tobytes()).decode(),
            "peaks": [float(f"{value:.3g}") for value in mass.max(axis=1)],
        }


def _pooled(maps: Sequence[Tensor], shown: Sequence[Shown], side: int) -> list[np.ndarray]:
    return [pool(grid.double().numpy(), side, entry.frames) for grid, entry in zip(maps, shown, strict=True)]


def head_maps(module: PolicyModule, step: StepRecord) -> dict[int, Float[Tensor, "layer head image"]]:
    """Where each head looks for the anchors of the rollouts that are shown, by rollout; all ranks together.

    Passes of their own, so of the policy as the step leaves it, one update on from the one that sampled. Nothing where
    the scheme reads no attention.
    """
    credit = module.credit
    requests = [] if credit is None or credit.probe is None else credit.scheme.requests
    attentive = [request for request in requests if isinstance(request, AttentionRequest)]
    if not attentive or step.credit is None:
        return {}
    weights = step.credit.weights
    if step.credit.anchors is not None:  # a scheme may give its anchors nothing, and a response may have none
        chosen = step.credit.anchors.any(dim=1, keepdim=True)
        weights = torch.where(chosen, step.credit.anchors.float(), weights)
    found = {}
    with torch.no_grad(), module.timer.phase("evaluate"), module.trainer.precision_plugin.forward_context():
        for number in shown_rollouts(step.experience):
            row = slice(number, number + 1)
            request = HeadMapRequest(
                weights=weights[row], sink_factor=attentive[0].sink_factor, row=attentive[0].row
            )  # fmt: skip
            with credit.probe.capture(step.experience.rows(row), [request]) as recorder:
                run_layers(module.policy, step.experience.rows(row))
            if step.experience.pixels[number]:
                found[number] = recorder.results()[request][0].cpu()
    return found


def clusters_of(scheme: CreditScheme | None, step: StepRecord, number: int, length: int) -> dict[str, Any] | None:
    """The cluster of each token of a rollout and the edge weight between clusters; None where that isn't known."""
    regroup = getattr(scheme, "regroup", None)
    if regroup is None or number not in step.attention or step.credit is None or step.credit.density is None:
        return None
    density = step.credit.density[number, :length].float().cpu().numpy()
    found = regroup(density, step.attention[number][:length].numpy())
    return None if found is None else {"of": found[0].tolist(), "links": found[1].tolist()}


def density_histogram(step: StepRecord) -> dict[str, Any] | None:
    """How many tokens of this rank have which density, anchors and others; None where the scheme has none.

    The last bin ends at the 99.5th percentile and holds what is beyond.
    """
    credit, mask = step.credit, step.experience.response_mask
    if credit is None or credit.density is None or credit.anchors is None:
        return None
    scores = credit.density[mask].double().cpu().numpy()
    top = float(np.quantile(scores, 0.995))
    if not top > 0:
        return None
    bins = np.minimum((scores / top * DENSITY_BINS).astype(int), DENSITY_BINS - 1).clip(0)
    chosen = credit.anchors[mask].cpu().numpy()
    counts = {name: np.bincount(bins[part], minlength=DENSITY_BINS).tolist() for name, part in
              (("anchors", chosen), ("rest", ~chosen))}  # fmt: skip
    return {"step": step.step, "top": float(f"{top:.4g}"), **counts}


def numbers(values: Tensor | None, row: int, length: int) -> list[float] | None:
    """The first `length` numbers of a row, rounded."""
    return None if values is None else [round(value, 5) for value in values[row, :length].tolist()]
