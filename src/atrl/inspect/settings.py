"""The top level of ``conf/inspect.yaml``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """What is asked, of which checkpoint, and how it is answered."""

    checkpoint: str
    question: str | None = None  # with <image> and <video> marks, or with pictures and videos in front
    image: str | list[str] | None = None  # files
    video: str | list[str] | None = None
    problem: int | None = None  # number of a problem of the test split instead, from 0
    sample: bool = False  # draw as training does; False takes the likeliest token each time
    seed: int = 0
    threads: int | None = None  # null for all cores
    verbose: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError where two things are asked, or what no data set and no machine has."""
        if self.question is not None and self.problem is not None:
            raise ValueError(f"question and problem={self.problem} are both set: leave one of them out")
        if self.problem is not None and (self.images or self.videos):
            raise ValueError(f"problem={self.problem} has its own pictures: leave image and video out, or problem")
        if self.problem is not None and self.problem < 0:
            raise ValueError(f"problem must be 0 or more, got {self.problem}: problems are counted from 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}: null takes all cores")

    @property
    def images(self) -> list[str]:
        """The files of the pictures."""
        return _listed(self.image)

    @property
    def videos(self) -> list[str]:
        """The files of the videos."""
        return _listed(self.video)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
