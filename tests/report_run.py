"""A made-up run folder for the report's tests: what a run of the geometry task leaves, and some rougher rollouts."""

from __future__ import annotations

import base64
import csv
import json
import math
import random
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HOSTILE = "</script></span><img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
COMMAND = "python train.py experiment=demo trainer.max_steps=120"

_WORDINGS = (
    "Let us look at the picture. Point A sits at ({ax},{ay}), while B lies at ({bx},{by}). It is {dx} across, and "
    "along the other axis {dy}. So the answer is \\boxed{{{answer}}}",
    "From the picture, A is at ({ax},{ay}) and B is at ({bx},{by}). Adding {dx} and {dy} gives the distance. Hence "
    "\\boxed{{{answer}}}",
    "I see B at ({bx},{by}); point A sits at ({ax},{ay}). The steps are {dx} across and {dy} up or down. Answer: "
    "\\boxed{{{answer}}}",
)


def summary(**changes) -> dict:
    """A run's summary with some of its top-level entries replaced."""
    return {
        "experiment": "demo", "seed": 0, "steps": 120, "device": "cpu",
        "versions": {"atrl": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm": "0.32.0"},
        "git_revision": "3f1c9a7be2d04c5588aa10b6c7f2e9d4b1a60e57",
        "accuracy": {
            "before": 0.441, "after": 0.869, "before_ci95": [0.399, 0.484], "after_ci95": [0.837, 0.896],
            "samples": 512,
        },
        "seconds": {
            "total": 171.4, "rollout": 68.2, "reward": 3.1, "score": 21.7, "credit": 2.9, "update": 58.4, "sync": 1.6,
            "evaluate": 9.8,
        },
        "tokens": {"generated": 798_314, "trained": 771_902},
        "peak_memory_bytes": {"host": 2_310_000_000, "device": None},
        "credit": {
            "scheme": "atrl", "anchor_ratio": 0.15, "num_clusters": 8, "anchor_fraction": 0.152,
            "overhead_fraction": 0.0169, "anchor_recall": 0.74,
        },
        "rollout": {"engine": "vllm", "dropped_prompts": 0},
        "rewards": {"right": 11_204, "wrong": 3_790, "unparseable": 241, "truncated": 125},
    } | changes  # fmt: skip


def grounding() -> dict:
    """What a run measured with its pictures blanked and swapped."""
    moments = {
        "before": {"true": (0.445, 0.362, 0.531), "blank": (0.117, 0.072, 0.184), "swapped": (0.102, 0.06, 0.166)},
        "after": {"true": (0.859, 0.789, 0.909), "blank": (0.125, 0.078, 0.193), "swapped": (0.086, 0.049, 0.147)},
    }
    measured = {
        moment: {name: {"accuracy": a, "ci95": [low, high], "samples": 128} for name, (a, low, high) in found.items()}
        for moment, found in moments.items()
    }
    return measured | {"left_out": 0, "same_answer": 3}


def write_run(folder: Path, *, steps: int = 120, samples: int = 24, rough: bool = True) -> Path:
    """Fill `folder` as a run does: `samples` geometry rollouts over `steps` steps, and with `rough` four odd ones."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    (folder / "summary.json").write_text(json.dumps(summary(steps=steps)), encoding="utf-8")
    (folder / "grounding.json").write_text(json.dumps(grounding()), encoding="utf-8")
    _write_metrics(folder / "metrics.csv", steps, rng)
    rollouts = [geometry_sample(folder, i, 1 + i * steps // samples, rng) for i in range(samples)]
    if rough:
        rollouts += rough_samples(folder, steps, rng)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rollouts), encoding="utf-8")
    write_details(folder, steps, rng)
    config = "algorithm:\n  clip_low: 0.2\n  clip_high: 0.28\ncredit:\n  anchor_ratio: 0.15\nseed: 0\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "command.txt").write_text(COMMAND + "\n", encoding="utf-8")
    return folder


def write_details(folder: Path, steps: int, rng: random.Random) -> None:
    """Four groups of eight a step, ever more of them right, one with hostile texts; densities at the first and last."""
    lines = []
    for step in range(1, steps + 1):
        for number in range(4):
            right = min(8, round(8 * (0.3 + 0.6 * step / steps) + rng.uniform(-2, 2)))
            statuses = {"right": [right, 50 * right, 1.1 * right], "wrong": [8 - right, 60 * (8 - right), 0.1]}
            lines.append(
                {
                    "step": step, "problem": f"train-{step}-{number}", "question": "<image>How far is it?", "gold": "3",
                    "response": f"It is \\boxed{{{number}}}", "statuses": {k: v for k, v in statuses.items() if v[0]},
                }
            )  # fmt: skip
    lines.append(dict.fromkeys(("problem", "question", "gold", "response"), HOSTILE) | {
        "step": steps, "statuses": {"unparseable": [8, 900, 0.0]}})  # fmt: skip
    (folder / "groups.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bins = {"top": 3.0, "anchors": [0, 0, 2, 5], "rest": [30, 20, 5, 0]}
    histograms = [{"step": step, **bins} for step in dict.fromkeys((1, steps))]
    (folder / "density.jsonl").write_text("".join(json.dumps(line) + "\n" for line in histograms), encoding="utf-8")


def write_large_run(folder: Path, *, tokens: int = 4096, frames: int = 64) -> Path:
    """Ten rollouts as long as they get, each over a video, with all that a run records within its bounds."""
    (folder / "samples").mkdir(parents=True)
    rng = random.Random(3)
    (folder / "summary.json").write_text(json.dumps(summary(steps=10)), encoding="utf-8")
    _gradient((8 * 256, frames // 8 * 144)).save(folder / "samples/strip.png")
    words = ["We", " look", " at", " frame", " 12", ",", " where", " the", " marker", " moves", ".", "\n"]
    text = [words[i % len(words)] for i in range(tokens)]
    kept = sorted(rng.sample(range(tokens), 256))
    spots = _blobs(len(kept), 32, 32)
    levels = base64.b64encode(bytes(rng.randrange(256) for _ in range(28 * 28 * 12 * 12))).decode()
    clusters = {"of": [i * 64 // tokens for i in range(tokens)], "links": [[rng.randrange(99)] * 64 for _ in range(64)]}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number in range(10):
            rollout = _rollout(
                text, None, rng, step=number + 1, problem=f"video-{number}", status="right" if number % 2 else "wrong",
                reward=1.0, advantage=0.3, parts={"exact": 1.0}, question="<video>What moves in frame 12?", gold="B",
                images=["samples/strip.png"], timestamps=[[i / 2 for i in range(frames)]], attention=[spots],
                attended=kept, clusters=clusters,
                heads={"layers": 28, "heads": 28, "grids": [[12, 12]], "levels": levels, "peaks": [0.1] * 784},
            )  # fmt: skip
            file.write(json.dumps(rollout) + "\n")
    return folder


def geometry_sample(folder: Path, index: int, step: int, rng: random.Random) -> dict:
    """A rollout of the distance task; later steps are right more often."""
    a, b = [(rng.randrange(7), rng.randrange(7)) for _ in range(2)]
    right = rng.random() < 0.35 + step / 160
    seen = a if right else (a[0], (a[1] + 2) % 7)
    dx, dy = abs(seen[0] - b[0]), abs(seen[1] - b[1])
    text = rng.choice(_WORDINGS).format(
        ax=seen[0], ay=seen[1], bx=b[0], by=b[1], dx=dx, dy=dy, answer=dx + dy
    )  # fmt: skip
    tokens = re.findall(r"\\boxed|\s?[A-Za-z]+|\d|\s?[^\sA-Za-z\d]|\s", text)
    coordinates = [match.span(group) for match in re.finditer(r"\((\d),(\d)\)", text) for group in (1, 2)]
    starts = np.cumsum([0, *map(len, tokens)])
    reading = [any(start == span[0] for span in coordinates) for start in starts[:-1]]
    name = f"samples/{index:03d}.png"
    _draw_points(a, b).save(folder / name)
    attention = [_look(a if i % 2 else b, 0.5 if reading[i] else 0.04, rng) for i in range(len(tokens))]
    clusters = {"of": [i % 3 for i in range(len(tokens))], "links": [[9, 2, 0], [2, 8, 4], [0, 4, 7]]}
    cells = bytes([255, 0] * 8 + [0] * 15 + [255])
    heads = {
        "layers": 2,
        "heads": 1,
        "grids": [[4, 4]],
        "levels": base64.b64encode(cells).decode(),
        "peaks": [0.2, 0.4],
    }
    return _rollout(
        tokens, reading, rng, step=step, problem=f"train-{rng.randrange(8192)}", images=[name], attention=[attention],
        clusters=clusters, heads=heads,
        question="<image>What is the Manhattan distance of A and B?", gold=str(abs(a[0] - b[0]) + abs(a[1] - b[1])),
        status="right" if right else "wrong", reward=1.1 if right else 0.1,
        advantage=rng.gauss(0.7 if right else -0.8, 0.3), parts={"exact": float(right), "format": 1.0},
    )  # fmt: skip


def rough_samples(folder: Path, steps: int, rng: random.Random) -> list[dict]:
    """A hostile response, one of 4,096 tokens over two large pictures, one that was cut, and one without a picture."""
    hostile = _rollout(
        ["Look", ": ", HOSTILE, "\n", "\u202eright to left", "\x00\x1b[31m", "\ud83d", "", " done"], None, rng, step=2,
        problem=HOSTILE, question=f"<image>{HOSTILE}", gold=HOSTILE, status="unparseable", reward=0.0, advantage=-1.2,
        parts={HOSTILE: 0.0}, images=["samples/missing.png"],
    )  # fmt: skip
    for name, size in (("samples/photo.jpg", (1400, 900)), ("samples/tall.png", (300, 700))):
        _gradient(size).save(folder / name)
    words = ["We", " compare", " the", " two", " pictures", ",", " where", " line", " $AB$", " meets", ".", "\n"]
    long_tokens = [words[i % len(words)] for i in range(4096)]
    long = _rollout(
        long_tokens, None, rng, step=steps - 1, problem="k12-0417", status="truncated", reward=0.0, advantage=-0.4,
        question="<image>\nFirst picture.\n<image>\nHow do the lines of both pictures differ?", gold="\\frac{3}{4}",
        parts={"exact": 0.0, "format": 0.0}, images=["samples/photo.jpg", "samples/tall.png"],
        attention=[_blobs(len(long_tokens), 12, 18), _blobs(len(long_tokens), 14, 6)],
    )  # fmt: skip
    cut = _rollout(
        re.findall(r"\s?\S+", "The picture shows a grid and I count the cells again and again and again"), None, rng,
        step=steps // 3, problem="train-77", question="Without a picture: what is 3 + 4?", gold="7", status="truncated",
        reward=0.0, advantage=0.0, parts={"exact": 0.0, "format": 0.0}, images=[],
    ) | {"anchors": None, "density": None}  # fmt: skip
    return [hostile, long, cut]


def _rollout(tokens: list[str], reading: list[bool] | None, rng: random.Random, **rest) -> dict:
    """Weights as AT-RL gives them: 3 to the densest 15 %, 1 to the rest, rescaled to mean 1."""
    density = [rng.uniform(0, 0.2) + (0.6 if reading and reading[i] else 0) for i in range(len(tokens))]
    threshold = sorted(density, reverse=True)[max(1, round(0.15 * len(tokens))) - 1]
    anchors = [value >= threshold for value in density]
    mean = sum(3 if anchor else 1 for anchor in anchors) / len(tokens)
    return {
        "response": "".join(tokens), "tokens": tokens, "weights": [(3 if anchor else 1) / mean for anchor in anchors],
        "anchors": anchors, "density": density, "reading": reading, "entropy": [rng.expovariate(4) for _ in tokens],
        "attention": None,
    } | rest  # fmt: skip


def _look(point: tuple[int, int], strength: float, rng: random.Random) -> list[list[float]]:
    """[4][4] attention on a 7×7 grid's picture, centred on `point`."""
    column, row = point[0] * 4 / 7, (6 - point[1]) * 4 / 7
    near = lambda r, c: math.exp(-((r + 0.2 - row) ** 2 + (c + 0.2 - column) ** 2))  # noqa: E731
    return [[round(0.01 * rng.random() + strength * near(r, c), 5) for c in range(4)] for r in range(4)]


def _blobs(tokens: int, rows: int, columns: int) -> list:
    """[tokens][rows][columns]: a spot that wanders over the picture."""
    t, r, c = np.ogrid[:tokens, :rows, :columns]
    row, column = rows * (0.5 + 0.4 * np.sin(t / 40)), columns * (0.5 + 0.4 * np.cos(t / 60))
    spot = np.exp(-((r - row) ** 2 + (c - column) ** 2) / 6)
    return np.round(0.1 * spot, 4).tolist()


def _draw_points(a: tuple[int, int], b: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", (112, 112), "white")
    canvas = ImageDraw.Draw(picture)
    for line in range(8, 112, 16):
        canvas.line([(line, 0), (line, 112)], fill="#dddddd")
        canvas.line([(0, line), (112, line)], fill="#dddddd")
    for (x, y), colour in ((a, "#d62728"), (b, "#1f77b4")):
        centre = (8 + 16 * x, 8 + 16 * (6 - y))
        canvas.ellipse([centre[0] - 7, centre[1] - 7, centre[0] + 7, centre[1] + 7], fill=colour)
    return picture


def _gradient(size: tuple[int, int]) -> Image.Image:
    """A picture with noise, which PNG packs badly, as it does photographs."""
    noise = np.random.default_rng(0).integers(0, 60, (size[1], size[0], 3))
    slope = np.linspace(60, 190, size[0])[None, :, None]
    return Image.fromarray((noise + slope).astype(np.uint8))


def _write_metrics(path: Path, steps: int, rng: random.Random) -> None:
    """As Lightning's CSVLogger: training and evaluation in rows of their own, every other cell empty."""
    rows = []
    for step in range(1, steps + 1):
        right = 0.44 + 0.43 * (1 - math.exp(-step / 45)) + rng.gauss(0, 0.03)
        unparseable, truncated = 0.05 * math.exp(-step / 20), 0.03 * math.exp(-step / 15)
        row = {
            "step": step, "epoch": 0,
            "reward/mean": right + 0.1, "reward/exact": right, "reward/format": 1 - unparseable,
            "reward/right": right, "reward/wrong": 1 - right - unparseable - truncated,
            "reward/unparseable": unparseable, "reward/truncated": truncated,
            "rollout/response_length": 52 + rng.gauss(0, 1.5), "rollout/tokens_per_second": 7800 + rng.gauss(0, 300),
            "loss/policy": rng.gauss(0, 0.02), "loss/clip_share": abs(rng.gauss(0.01, 0.004)),
            "loss/gradient_norm": 0.6 + abs(rng.gauss(0, 0.2)), "loss/entropy": 0.32 * math.exp(-step / 90),
            "credit/anchor_fraction": 0.15 + rng.gauss(0, 0.002), "credit/anchor_recall": 0.6 + 0.15 * step / steps,
            "credit/weight_max": 2.3 + rng.gauss(0, 0.02), "credit/seconds": 0.024 + rng.gauss(0, 0.001),
            "time/rollout": 0.57 + rng.gauss(0, 0.03), "time/reward": 0.025, "time/score": 0.18, "time/credit": 0.024,
            "time/update": 0.49 + rng.gauss(0, 0.02), "time/sync": 0.013, "memory/host": 2.1e9 + 2e8 * step / steps,
            "lr-AdamW": 1e-4,
        }  # fmt: skip
        rows.append(row)
        if step % 20 == 0:
            rows.append({"step": step, "epoch": 0, "eval/accuracy": right + rng.gauss(0, 0.01)})
            with_picture = {"true": right, "blank": 0.12, "swapped": 0.1 - 0.02 * step / steps}
            rows.append({"step": step, "epoch": 0, **{f"eval/picture_{k}": v for k, v in with_picture.items()}})
    with path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
