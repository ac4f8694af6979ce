"""Made-up folders of a sweep for the report's tests: what Hydra and the runs leave in them."""

from __future__ import annotations

import csv
import json
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from tests.report_run import summary

CREDIT = {
    "atrl": {"_target_": "atrl.credit.atrl.AtrlCredit", "anchor_ratio": 0.15, "num_clusters": 8, "seed": 0},
    "uniform": {"_target_": "atrl.credit.uniform.UniformCredit"},
    "none": None,
}


def write_job(
    folder: Path,
    *,
    number: int = 0,
    seed: int = 0,
    credit: str = "atrl",
    accuracy: float | None = 0.5,
    curve: list[float] | None = None,
    blank: tuple[float, float] | None = None,
    status: str = "finished",
    error: str = "",
    overrides: list[str] | None = None,
    metrics: dict[str, list[float]] | None = None,
    **changes: Any,
) -> Path:
    """A run with this seed and credit.

    `blank` is its accuracy with blanked pictures before and after, and half as much with others' pictures; `metrics`
    are more columns of its curves. `changes` to its config are given by dotted key with ``__`` for each dot.
    """
    (folder / ".hydra").mkdir(parents=True)
    config: dict[str, Any] = {
        "experiment": "demo", "seed": seed, "credit": CREDIT[credit] and dict(CREDIT[credit]),
        "model": {"_target_": "atrl.models.load.ScratchModel", "seed": seed}, "trainer": {"max_steps": 3, "devices": 1},
        "logger": {"csv": {"save_dir": str(folder)}},
    }  # fmt: skip
    given = []
    for name, value in changes.items():
        key = name.replace("__", ".")
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
        given.append(f"{key}={value}")
    overrides = [f"credit={credit}", *given, f"seed={seed}"] if overrides is None else overrides
    composed = config | {"model": config["model"] | {"seed": "${seed}"}}
    choices = {"credit": credit, "model": "scratch", "experiment": None, "hydra/launcher": "basic"}
    for name, content in {
        "config.yaml": config, ".hydra/config.yaml": composed, ".hydra/overrides.yaml": overrides,
        ".hydra/hydra.yaml": {"hydra": {"runtime": {"choices": choices}}},
    }.items():  # fmt: skip
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    job = {"number": number, "overrides": overrides, "command": "x", "status": status, "error": error}
    (folder / "job.json").write_text(json.dumps(job))
    if status == "finished":
        _finish(folder, seed, accuracy, {"reward/right": curve or [0.1, 0.2, 0.3]} | (metrics or {}), overrides)
        if blank is not None:
            _measure_grounding(folder, blank)
    return folder


def _finish(
    folder: Path, seed: int, accuracy: float | None, curves: dict[str, list[float]], overrides: list[str]
) -> None:
    measured = summary()["accuracy"] | {"before": 0.25, "after": accuracy}
    (folder / "summary.json").write_text(json.dumps(summary(seed=seed, accuracy=measured)))
    (folder / "command.txt").write_text(f"python {shlex.join(['train.py', *overrides])}\n")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss/entropy", "rollout/response_length", *curves])
        for step, values in enumerate(zip_longest(*curves.values(), fillvalue="")):
            writer.writerow([step, 0.3 - 0.01 * step, 50 + step, *values])


def _measure_grounding(folder: Path, blank: tuple[float, float]) -> None:
    def measured(share: float) -> dict[str, Any]:
        return {"accuracy": share, "ci95": [0.0, 1.0], "samples": 128}

    moments = {
        moment: {"true": measured(0.5), "blank": measured(share), "swapped": measured(share / 2)}
        for moment, share in zip(("before", "after"), blank, strict=True)
    }
    (folder / "grounding.json").write_text(json.dumps(moments | {"left_out": 0, "same_answer": 0}))
    path = folder / "metrics.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, share in ((rows[0], blank[0]), (rows[-1], blank[1])):
        row |= {"eval/picture_blank": share, "eval/picture_swapped": share / 2}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_sweep(folder: Path, *, seeds: int = 3, steps: int = 30) -> Path:
    """Anchor ratio × clusters over seeds, with one combination missing, one failed job and one that was not begun."""
    number = 0
    for ratio in (0.05, 0.15, 0.3):
        for clusters in (2, 8, 16):
            if (ratio, clusters) == (0.3, 16):
                continue
            for seed in range(seeds):
                gain = 0.1 * (ratio == 0.15) + 0.02 * (clusters == 8) + 0.01 * ((7 * seed + clusters) % 5)
                write_job(
                    folder / str(number), number=number, seed=seed, accuracy=0.5 + gain,
                    curve=[0.3 + (0.2 + gain) * step / steps + 0.02 * ((5 * step + seed) % 3) for step in range(steps)],
                    credit__anchor_ratio=ratio, credit__num_clusters=clusters,
                )  # fmt: skip
                number += 1
    write_job(
        folder / str(number), number=number, status="failed", error="the sampler hangs: <b>look</b> at hung.txt",
        credit__anchor_ratio=0.3, credit__num_clusters=16,
    )  # fmt: skip
    jobs = [[f"credit.anchor_ratio={r}", f"credit.num_clusters={k}", f"seed={s}"] for r, k, s in [(0.5, 2, 0)]]
    record = {
        "command": "python train.py -m credit.anchor_ratio=0.05,0.15,0.3 seed=0,1,2",
        "jobs": jobs,
        "baseline": None,
    }
    varied = ["credit.anchor_ratio", "credit.num_clusters", "seed"]
    (folder / "sweep.json").write_text(json.dumps(record | {"varied": varied}))
    return folder
