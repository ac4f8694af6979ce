"""What `study.py` keeps of a run."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

from atrl.own_code import read_sources

MEASURED = ("credit/anchor_recall", "credit/anchor_precision", "credit/anchor_auc", "credit/bimodality")


def read_run(folder: Path) -> dict:
    """Accuracy before and after, the curve of the rollouts' accuracy, how well anchors were found, if it was measured
    the accuracy after training without the right pictures, and checksums of code of one's own.
    """
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = [float(row["reward/right"]) for row in rows if row.get("reward/right")]
    means = {}
    for name in MEASURED:
        values = [float(row[name]) for row in rows if row.get(name)]
        if values:
            means[name.removeprefix("credit/")] = statistics.mean(values)
    kept = {key: summary[key] for key in ("accuracy", "steps", "git_revision", "versions")}
    if (folder / "grounding.json").is_file():
        after = json.loads((folder / "grounding.json").read_text())["after"]
        kept["grounding"] = {side: measured["accuracy"] for side, measured in after.items()}
    if sources := read_sources(folder):
        kept["sources"] = sources
    return kept | {"curve": curve, "anchors": means, "seconds": summary["seconds"]["total"]}
