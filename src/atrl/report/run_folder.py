"""What a run left in its folder, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from atrl.report.details import Clusters, Count, GroupLine, HeadMaps, Histogram, Record, Seconds, Share
from atrl.report.metrics import Curve, read_metrics
from atrl.types import Status

Kind = TypeVar("Kind", bound=Record)


class PairedChange(Record):
    """What became of the same problems: the interval of the change, how many went up and down, McNemar's p-value."""

    problems: Count
    ci95: tuple[FiniteFloat, FiniteFloat]
    gained: Count
    lost: Count
    p: Share


class Accuracy(Record):
    """Accuracy on held-out problems, before and after training; None where it was not measured."""

    before: Share | None
    after: Share | None
    before_ci95: tuple[FiniteFloat, FiniteFloat] | None
    after_ci95: tuple[FiniteFloat, FiniteFloat] | None
    samples: Count | None
    paired: PairedChange | None = None
    """None of earlier runs."""


class Accuracies(Accuracy):
    """Sampled, and greedily at temperature 0."""

    greedy: Accuracy | None = None


class Tokens(Record):
    """Response tokens over the run."""

    generated: Count
    trained: Count


class PeakMemory(Record):
    """In bytes; None without such a device."""

    host: Count | None
    device: Count | None


class Credit(Record):
    """The credit scheme, its settings and what was measured of it; None where it doesn't apply."""

    scheme: str
    anchor_ratio: float | None
    num_clusters: int | Literal["auto"] | None
    anchor_fraction: float | None
    overhead_fraction: float | None
    anchor_recall: float | None


class RolloutFacts(Record):
    """The sampler, and how many prompts were left out for their length."""

    engine: str
    dropped_prompts: Count


class StatusCounts(Record):
    """Rollouts over the run by what became of them."""

    right: Count
    wrong: Count
    unparseable: Count
    truncated: Count


class Summary(Record):
    """`summary.json`."""

    experiment: str
    seed: int | None
    steps: Count
    device: str
    versions: dict[str, str | None]
    git_revision: str | None
    accuracy: Accuracies
    seconds: dict[str, Seconds | None]
    """``total`` and one entry a phase."""
    tokens: Tokens
    peak_memory_bytes: PeakMemory
    credit: Credit
    rollout: RolloutFacts
    rewards: StatusCounts


class Measured(Record):
    """An accuracy with its 95 % interval."""

    accuracy: Share
    ci95: tuple[Share, Share]
    samples: Count


class Controlled(Record):
    """Accuracy on the same problems with their own pictures, with these blanked, and with another problem's."""

    true: Measured
    blank: Measured
    swapped: Measured


class Grounding(Record):
    """`grounding.json`."""

    before: Controlled
    after: Controlled
    left_out: Count = 0
    """Problems without a partner."""
    same_answer: Count = 0
    """Problems whose partner has the same gold answer."""


class Said(Record):
    """Something said before the question."""

    role: str
    text: str


class Response(Record):
    """A response token by token. What the model wrote in it is hostile input."""

    problem: str
    question: str
    gold: str
    tokens: list[str]
    weights: list[Annotated[FiniteFloat, Field(ge=0)]]
    """[token] averages 1."""
    anchors: list[bool] | None = None
    density: list[float | None] | None = None
    reading: list[bool] | None = None
    """[token] whether the token states what was read off the picture, where the data knows."""
    entropy: list[float | None] | None = None
    """[token] in nats."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Of its reward, where it has one."""
    history: list[Said] = Field(default_factory=list)
    """What the question goes on with."""
    images: list[str]
    """Files, relative to the folder, in the order of the marks in `history` and then the question."""
    timestamps: list[Annotated[list[FiniteFloat], Field(min_length=1)] | None] | None = None
    """[image] of a video's strip when each frame is, in seconds; None for a picture."""
    attention: list[Any] | None = None
    """[image] arrays [token, rows, columns]: the largest attention of any layer and head on each image token."""

    attended: list[Count] | None = None
    """The tokens that `attention` is of; None for all."""
    clusters: Clusters | None = None
    heads: HeadMaps | None = None

    @field_validator("attention", mode="before")
    @classmethod
    def _as_arrays(cls, value: Any) -> Any:
        return None if value is None else [np.asarray(image, dtype=float) for image in value]

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        for name in ("weights", "anchors", "density", "reading", "entropy"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.tokens):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.tokens)} tokens")
        for name in ("attention", "timestamps"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.images):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.images)} images")
        maps = len(self.tokens if self.attended is None else self.attended)
        if any(token >= len(self.tokens) for token in self.attended or ()):
            raise ValueError(f"attended names a token beyond the {len(self.tokens)} there are")
        for attention in self.attention or []:
            if attention.ndim != 3 or len(attention) != maps or not attention.size:
                wanted = f"[{maps} tokens][rows][columns]"
                raise ValueError(f"attention must be {wanted}, got shape {list(attention.shape)}")
        if self.clusters is not None and len(self.clusters.of) != len(self.tokens):
            raise ValueError(f"clusters has {len(self.clusters.of)} entries for {len(self.tokens)} tokens")
        if self.heads is not None and len(self.heads.grids) != len(self.images):
            raise ValueError(f"heads has {len(self.heads.grids)} grids for {len(self.images)} images")
        return self


class Sample(Response):
    """One recorded rollout: a line of `samples.jsonl`."""

    step: int
    response: str
    advantage: float
    reward: float
    parts: dict[str, float]
    status: Status


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything the report shows. What the run did not leave is empty or None; only the summary is required."""

    path: Path
    summary: Summary
    metrics: dict[str, Curve]
    samples: list[Sample]
    config: str | None
    command: str | None
    grounding: Grounding | None = None
    groups: list[GroupLine] = field(default_factory=list)
    density: list[Histogram] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read a run's folder.

        Raises:
            ValueError: naming file, place and remedy, if `summary.json` is missing or a file is malformed.
        """
        summary_file = path / "summary.json"
        if not summary_file.is_file():
            raise ValueError(f"{summary_file} not found: name the folder of a finished run, such as outputs/latest")
        metrics_file, grounding = path / "metrics.csv", _read_text(path / "grounding.json")
        return cls(
            path=path,
            summary=_parse(Summary, summary_file.read_text(encoding="utf-8"), str(summary_file)),
            metrics=read_metrics(metrics_file) if metrics_file.is_file() else {},
            samples=_read_lines(Sample, path / "samples.jsonl"),
            config=_read_text(path / "config.yaml"),
            command=_read_text(path / "command.txt"),
            grounding=None if grounding is None else _parse(Grounding, grounding, str(path / "grounding.json")),
            groups=_read_lines(GroupLine, path / "groups.jsonl"),
            density=_read_lines(Histogram, path / "density.jsonl"),
        )


def _read_lines(kind: type[Kind], path: Path) -> list[Kind]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        return [_parse(kind, line, f"{path} line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _parse(kind: type[Kind], text: str, where: str) -> Kind:
    # The standard parser takes NaN and lone surrogates, which a diverged run or a sampler's raw bytes leave.
    try:
        return kind.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {place + ': ' if place else ''}{first['msg']}: write the file again") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}): write the file again") from None
