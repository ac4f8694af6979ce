"""Tables as they were stored, in memory: JSONL, JSON and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atrl.data.rows import Row
from atrl.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were stored, nothing interpreted yet."""

    origin: str
    """What errors call it."""
    stem: str
    """What ids start with, where the rows have none."""
    columns: list[str]
    """Every column there is; rows may hold fewer."""
    rows: list[Row]
    folder: Path | None
    """Where relative image paths start."""


def read_file(path: Path, key: str, columns: Collection[str], *, name_column: str | None = None) -> Table:
    """The table in a local file; of Parquet only `columns` are read.

    With `name_column` a JSON file may also be one object of named rows, as several benchmarks publish theirs: each
    name then stands in that column of its row, where the row has none itself.

    Raises:
        ValueError: naming the file, and the line where there is one, if it is missing, empty or broken.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix.lower() in readers)
        raise ValueError(
            f"{key}: {path} is a folder: name a file in it ({', '.join(found[:5]) or 'it has none to read'})"
        )
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key}: {path} does not exist{did_you_mean(path.name, siblings) or ': correct the path.'}")
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{key}: {path} has the suffix {path.suffix!r}, which is none of {', '.join(readers)}: convert it"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{key}: {path} is an empty file: name one that holds problems")
    try:
        if name_column and path.suffix.lower() == ".json":
            names, rows = _read_named(path, name_column)
        else:
            names, rows = readers[path.suffix.lower()](path, columns)
    except OSError as error:
        raise ValueError(f"{key}: {path} can't be read ({one_line(error)}): check the file") from error
    return Table(str(path), path.stem, names, rows, path.parent)


def _read_jsonl(path: Path, columns: Collection[str]) -> tuple[list[str], list[Row]]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"line {number} of {path.name}"
            if line.strip():
                rows.append(Row(_as_object(_parse_json(line, path, number), place), place, number))
    return _union(rows), rows


def _read_json(path: Path, columns: Collection[str]) -> tuple[list[str], list[Row]]:
    return _list_of_rows(_parse_json(path.read_bytes(), path), path)


def _list_of_rows(content: Any, path: Path) -> tuple[list[str], list[Row]]:
    if not isinstance(content, list):
        raise ValueError(f"{path} holds {_json_kind(content)}: write a list of objects, or one object a line as .jsonl")
    rows = [
        Row(_as_object(values, place), place, number)
        for number, values in enumerate(content, start=1)
        for place in [f"row {number} of {path.name}"]
    ]
    return _union(rows), rows


def _read_named(path: Path, name_column: str) -> tuple[list[str], list[Row]]:
    content = _parse_json(path.read_bytes(), path)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        return _list_of_rows(content, path)
    rows = [
        Row({name_column: name} | values, f"{name!r} of {path.name}", number)
        for number, (name, values) in enumerate(content.items(), start=1)
    ]
    return _union(rows), rows


def read_hub(
    name: str,
    config: str | None,
    split: str,
    columns: Collection[str],
    *,
    key: str = "data.split",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Table:
    """One split of a Hugging Face dataset, or of a local folder that `datasets` can read; of it only `columns`.

    Pictures stay encoded. Datasets that need code of their own are refused.

    Raises:
        ValueError: if the dataset can't be loaded, or has no such split.
    """
    from datasets import load_dataset

    try:
        splits = load_dataset(name, config, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # network, file system, parser and builder errors have no common base
        raise ValueError(
            f"dataset {name!r} can't be loaded ({type(error).__name__}: {one_line(error)}): "
            "check data.name, data.config, data.revision and the network"
        ) from error
    if split not in splits:
        raise ValueError(
            f"{key}: dataset {name} has no split {split!r}{did_you_mean(split, splits) or '.'} "
            f"Its splits are {', '.join(splits)}"
        )
    origin, names = f"{name} ({split})", splits[split].column_names
    kept = splits[split].select_columns([column for column in columns if column in names])
    values = kept.with_format("arrow")[:].to_pylist() if kept.column_names else [{}] * len(kept)
    return Table(origin, split, names, numbered(values, origin), Path(name) if Path(name).is_dir() else None)


def _read_parquet(path: Path, columns: Collection[str]) -> tuple[list[str], list[Row]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        values = parquet.read_table(path, columns=[name for name in columns if name in names]).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no sound Parquet file ({one_line(error)}): write it again") from error
    return names, numbered(values, path.name)


def _parse_json(data: bytes, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno} of {path.name}"
        hint = ", or name it .jsonl if it has one object a line" if not line and error.msg == "Extra data" else ""
        raise ValueError(f"{place}: broken JSON at character {error.colno} ({error.msg}): repair it{hint}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number too long, brackets too deep
        place = f"line {line} of {path.name}" if line else path.name
        raise ValueError(f"{place}: broken JSON ({one_line(error)}): repair it") from error


def _as_object(values: Any, place: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        hint = " (a file that is one list is .json)" if isinstance(values, list) else ""
        raise ValueError(f"{place}: a problem must be a JSON object, not {_json_kind(values)}{hint}")
    return values


def _json_kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return kinds.get(type(value), f"{value!r}")


def _union(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def numbered(values: Sequence[dict[str, Any]], origin: str) -> list[Row]:
    """Rows that know their place, counted from 1."""
    return [Row(row, f"row {number} of {origin}", number) for number, row in enumerate(values, start=1)]


def one_line(error: Exception) -> str:
    """The message of another library's error, fit for a line of ours."""
    return " ".join(str(error).split())
