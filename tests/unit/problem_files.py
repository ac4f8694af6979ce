"""Small problem files for the tests of the loaders."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

from PIL import Image


def png(colour: str = "red") -> bytes:
    """A 2×2 picture of one colour, encoded."""
    stream = BytesIO()
    Image.new("RGB", (2, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def row(index: int = 0, **changes) -> dict:
    """A sound row with the default column names, save for `changes`."""
    return {"id": f"p{index}", "problem": "<image>How many?", "answer": "2", "images": ["a.png"], **changes}


def add_pictures(folder: Path) -> Path:
    """`folder` with a red `a.png` and a blue `sub/b.png` in it."""
    (folder / "sub").mkdir()
    (folder / "a.png").write_bytes(png("red"))
    (folder / "sub/b.png").write_bytes(png("blue"))
    return folder


def write_jsonl(folder: Path, *rows: dict, name: str = "problems.jsonl") -> str:
    """A file of `rows` in `folder`; its path."""
    path = folder / name
    path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return str(path)
