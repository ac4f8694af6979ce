"""The page and the numbers of an inspection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.inspect.weigh import by_token
from atrl.report.inspection import Inspection, write_inspection
from atrl.report.run_folder import Response

if TYPE_CHECKING:
    from atrl.inspect.weigh import Weighed
    from atrl.types import RolloutGroup


def write_page(
    folder: Path, group: RolloutGroup, tokens: Sequence[str], found: Sequence[Weighed], *, checkpoint: str, drawn: bool
) -> Path:
    """Leave `inspection.html`, `inspection.json` and the pictures in `folder`; the page's path."""
    from atrl.callbacks.pictures import shown_pictures

    problem, shown = group.prompt.problem, shown_pictures(group.prompt)
    images = [f"picture_{number}.png" for number in range(len(shown))]
    for name, entry in zip(images, shown, strict=True):
        entry.picture.save(folder / name)
    common: dict[str, Any] = {
        "problem": problem.id,
        "question": problem.question,
        **({"history": [asdict(turn) for turn in problem.history]} if problem.history else {}),
        "gold": problem.answer,
        "tokens": list(tokens),
        "images": images,
        "timestamps": [entry.timestamps for entry in shown],
    }
    responses = {
        one.name: Response(
            **common,
            **numbers(one),
            attention=None if one.attention is None else [grid.tolist() for grid in one.attention],
        )
        for one in found
    }
    finished = group.rollouts[0].finished
    record = {"checkpoint": checkpoint, "finished": finished, "response": group.texts[0], **common}
    record["pictures"] = by_token(found[0].pictures)
    record["schemes"] = {one.name: numbers(one) for one in found}
    text = json.dumps(record, ensure_ascii=False, indent=1)
    (folder / "inspection.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    how = "drawn as in training" if drawn else "greedy"
    how = how if finished else f"{how}, cut at the limit"
    return write_inspection(folder, Inspection(checkpoint, how, responses, [one.shares for one in found]))


def numbers(one: Weighed) -> dict[str, Any]:
    """By token, ready for JSON."""
    names = ("weights", "anchors", "density", "entropy", "reading")
    return {name: by_token(getattr(one, name)) for name in names}
