"""Problems from local JSONL, JSON and Parquet files and from Hugging Face datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atrl.data.base import Split, assign_split, check_fraction, check_limit, seeded_subset
from atrl.data.images import check_images
from atrl.data.rows import RowFormat
from atrl.data.tables import Table, read_file, read_hub
from atrl.types import Problem


@dataclass(frozen=True, kw_only=True)
class RowProblems(RowFormat, ABC):
    """Problems from a table a split, or from one table that is cut into splits.

    A split without a table of its own is cut from the train table: a problem goes where the hash of its id
    says (of its content, where it has no id), so the sizes are those asked for on average. Data is read at
    each call.

    Args:
        test_fraction, selection_fraction: share of the train table, for a split that has no table.
        limit: at most this many problems of each split, chosen by `seed`; None for all.
        seed: of the cut and of the choice.
    """

    test_fraction: float = 0.2
    selection_fraction: float = 0.0
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("data.test_fraction", self.test_fraction)
        check_fraction("data.selection_fraction", self.selection_fraction)
        check_limit("data.limit", self.limit)
        if self.test_fraction + self.selection_fraction > 1:
            raise ValueError(
                f"data.test_fraction={self.test_fraction} and "
                f"data.selection_fraction={self.selection_fraction} sum to more than 1: lower one"
            )

    @abstractmethod
    def table_key(self, split: Split) -> str:
        """The attribute, and configuration key, that names the table of `split`."""

    @abstractmethod
    def read(self, table: str, key: str) -> Table:
        """The table of this name, which the configuration key `key` gave."""

    def load(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`, their pictures checked.

        Raises:
            ValueError: as `ProblemSource.load`.
        """
        key = self.table_key(split)
        if not getattr(self, key):
            key = self.table_key("train")
        table = self.read(getattr(self, key), f"data.{key}")
        if not table.rows:
            raise ValueError(f"data.{key}: {table.origin} holds no problems: name another file or split")
        self.check_columns(table.columns, table.origin)
        cut = key == self.table_key("train")
        problems = [problem for problem, split_key in self._problems(table) if not cut or self._cut(split_key) == split]
        if not problems:
            raise ValueError(self._empty(split, table))
        chosen = seeded_subset(problems, self.limit, seed=self.seed)
        check_images(chosen)
        return chosen

    def baseline(self) -> None:
        """None is known for data of unknown kind."""
        return None

    def _problems(self, table: Table) -> Iterator[tuple[Problem, str]]:
        """Every row as a problem, with the key that decides its split."""
        has_ids = self.id_column in table.columns
        seen: dict[str, str] = {}
        for row in table.rows:
            problem_id = self.problem_id(row) if has_ids else f"{table.stem}:{row.number}"
            if problem_id in seen:
                raise ValueError(
                    f"{row.place}: id {problem_id!r} is that of {seen[problem_id]} too: make ids unique, "
                    "or set data.id_column to null"
                )
            seen[problem_id] = row.place
            yield (
                self.to_problem(row, problem_id, table.folder),
                problem_id if has_ids else self.content_key(row),
            )

    def _cut(self, split_key: str) -> Split:
        return assign_split(
            split_key,
            seed=self.seed,
            selection_fraction=self._fraction("selection"),
            test_fraction=self._fraction("test"),
        )

    def _fraction(self, split: Split) -> float:
        return 0.0 if getattr(self, self.table_key(split)) else getattr(self, f"{split}_fraction")

    def _empty(self, split: Split, table: Table) -> str:
        if split == "train":
            return f"{table.origin} has no train split: lower data.test_fraction or data.selection_fraction"
        return (
            f"{table.origin} has no {split} split with data.{split}_fraction={self._fraction(split)} of its "
            f"{len(table.rows)} problems: raise it, or set data.{self.table_key(split)}"
        )


@dataclass(frozen=True, kw_only=True)
class TabularProblems(RowProblems):
    """Problems from local files, each a JSONL (one object a line), a JSON list of objects, or Parquet.

    To score all of a file, set ``test_fraction=1``.

    Args:
        path: training problems, and those of all splits that have no file of their own.
        selection_path, test_path: files of the other splits.
    """

    path: str
    selection_path: str | None = None
    test_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("data.path is empty: give a file of problems, data.path=FILE")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def table_key(self, split: Split) -> str:
        return "path" if split == "train" else f"{split}_path"

    def read(self, table: str, key: str) -> Table:
        return read_file(Path(table).expanduser(), key, self.columns)


@dataclass(frozen=True, kw_only=True)
class HubProblems(RowProblems):
    """Problems from a Hugging Face dataset, or from a local folder that `datasets` can read.

    Pictures stay encoded, in memory, until they are used. Datasets that need code of their own are refused.

    Args:
        name: on the Hub ("owner/name"), or a folder.
        config: the dataset's configuration, where it has several.
        train_split, selection_split, test_split: the dataset's own names; None cuts it from the first.
        revision: branch, tag or commit.
        cache_dir: where `datasets` keeps its files; None for its default.
    """

    name: str
    config: str | None = None
    train_split: str = "train"
    selection_split: str | None = None
    test_split: str | None = None
    revision: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not self.train_split:
            raise ValueError("data.name and data.train_split must not be empty: give a dataset and one of its splits")

    def table_key(self, split: Split) -> str:
        return f"{split}_split"

    def read(self, table: str, key: str) -> Table:
        return read_hub(
            self.name, self.config, table, self.columns, key=key, revision=self.revision, cache_dir=self.cache_dir
        )
