"""Where a benchmark's rows come from: a local copy of the official files, or the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.data.rows import Row
from atrl.data.tables import Table, read_file, read_hub

if TYPE_CHECKING:
    from atrl.benchmarks.base import Benchmark
    from atrl.data.base import ProblemSource

SPLIT_COLUMN = "hub_split"
"""Says of a row which of several splits it comes from."""


@dataclass(frozen=True, kw_only=True)
class OfficialRows:
    """The rows of a benchmark as its authors publish them.

    Args:
        path: a local JSON (a list, or an object of named rows), JSONL or Parquet file, or several; None reads from the
            Hub what the benchmark names.
        image_folder: where relative image paths start; None for the folder of the file.
        revision: branch, tag or commit on the Hub.
        cache_dir: where `datasets` keeps its files; None for its default.
    """

    path: str | list[str] | None = None
    image_folder: str | None = None
    revision: str | None = None
    cache_dir: str | None = None

    def table(self, benchmark: Benchmark) -> Table:
        """All rows.

        Raises:
            ValueError: if a file or data set can't be read, or holds nothing.
        """
        if self.path:
            paths = [self.path] if isinstance(self.path, str) else list(self.path)
            table = joined([self._file(path, benchmark) for path in paths])
        else:
            table = self._hub(benchmark)
        if not table.rows:
            raise ValueError(f"{table.origin} holds no problems: name another file or split")
        folder = Path(self.image_folder).expanduser() if self.image_folder else table.folder
        return Table(table.origin, table.stem, table.columns, table.rows, folder)

    def _file(self, path: str, benchmark: Benchmark) -> Table:
        names = benchmark.columns.get("id", "id")
        name_column = names if isinstance(names, str) else names[-1]
        return read_file(Path(path).expanduser(), "data.path", benchmark.read_columns(), name_column=name_column)

    def _hub(self, benchmark: Benchmark) -> Table:
        configs = benchmark.config if isinstance(benchmark.config, list) else [benchmark.config]
        splits = [benchmark.split] if isinstance(benchmark.split, str) else list(benchmark.split)
        where = {"revision": self.revision, "cache_dir": self.cache_dir, "key": f"benchmark.{benchmark.name}.split"}
        return joined(
            [
                _with_split(read_hub(benchmark.hub, config, split, benchmark.read_columns(), **where), len(splits) > 1)
                for config in configs
                for split in splits
            ]
        )


def rows_of(source: Any, benchmark: Benchmark) -> Table:
    """The table of `benchmark`, from `OfficialRows` or from the test split of a problem source."""
    return source.table(benchmark) if hasattr(source, "table") else _from_problems(source)


def joined(tables: Sequence[Table]) -> Table:
    """Several tables under each other."""
    first = tables[0]
    if len(tables) == 1:
        return first
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    rows = [row for table in tables for row in table.rows]
    return Table(f"{first.origin} and {len(tables) - 1} more", first.stem, columns, rows, first.folder)


def _with_split(table: Table, named: bool) -> Table:
    if not named:
        return table
    rows = [Row({**row.values, SPLIT_COLUMN: table.stem}, row.place, row.number) for row in table.rows]
    return Table(table.origin, table.stem, [*table.columns, SPLIT_COLUMN], rows, table.folder)


def _from_problems(source: ProblemSource) -> Table:
    problems = source.load("test")
    rows = [
        Row(
            {"id": p.id, "problem": p.question, "answer": p.answer, "images": list(p.images)}, f"problem {p.id}", number
        )
        for number, p in enumerate(problems, start=1)
    ]
    return Table(source.name, source.name, ["id", "problem", "answer", "images"], rows, None)
