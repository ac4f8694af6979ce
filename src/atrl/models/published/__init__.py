"""The configurations of published checkpoints, as far as they say how large each matrix is.

So that a run can be planned, and its model built without weights, where no hub is reachable. Source: ``config.json`` of
each checkpoint on the Hugging Face hub (Qwen2.5-VL: arXiv 2502.13923, table 1; Qwen3-VL: its model cards).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _by_name() -> dict[str, dict[str, Any]]:
    files = sorted(Path(__file__).parent.glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {entry.pop("name"): entry for entry in found}


def published_names() -> list[str]:
    """Hub names of the checkpoints whose configuration is here."""
    return list(_by_name())


def published_config(name: str) -> dict[str, Any] | None:
    """The ``config.json`` of the checkpoint of that hub name, as far as it says its shape; None if unknown."""
    return _by_name().get(name)
