"""Two controls that tell reading from guessing: the picture blanked, and another problem's picture in its place.

An accuracy says nothing of where the answers came from. What is left of it without the picture was guessed from the
question. With another problem's picture, a policy that reads answers *that* picture and is wrong, and one that only
needs any picture at all before it says what is usual is as right as before.

- **Blanked** is the picture's own size and mean colour. The size keeps the prompt the same token for token, and the
  colour keeps the vision tower within what it knows: black, white or noise would be a new kind of picture, and failing
  on it would show surprise and not blindness. What stays is the tint, so where a problem asks for a colour the blank
  gives a little away and `swapped` is the one to look at.
- **Swapped** deals the pictures out again among problems that have as many: a permutation without a fixed point, so
  both sides hold the same questions and the same pictures, and differ in the pairing alone.

Videos are treated as pictures are. A blanked one has as many frames, at the same times, all in the mean colour of all.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from atrl.data.frames import FrameSampler
from atrl.data.images import open_image
from atrl.data.videos import sample_video
from atrl.evaluation.assignment import cheapest
from atrl.types import Frames, Problem, Prompt, Video

if TYPE_CHECKING:
    from atrl.data.prompts import PromptBuilder

SIDES = {
    "true": "their own pictures",
    "blank": "each picture in its mean colour",
    "swapped": "another problem's pictures",
}
"""What the same problems are shown, by the names that figures have."""

_SAME_PICTURES, _SHARED_PICTURE, _SAME_ANSWER, _OTHER_QUESTION = 100, 12, 4, 1
"""What is wrong with a partner. Two of the lesser faults together weigh less than one of the next worse."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Problems with each other's pictures, in their old order."""

    problems: list[Problem]
    partners: list[str]
    """For each of these the id of the problem whose pictures it has now."""
    left_out: list[str]
    """Ids of those without a picture, or without another problem that has as many pictures and not the same."""
    same_answer: list[str]
    """Ids of those in `problems` whose pictures come from a problem with the same gold answer: they prove nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """The same problems three times, in the same order."""

    true: list[Prompt]
    blank: list[Prompt]
    swapped: list[Prompt]
    left_out: int
    """Problems without a partner, or that are too long with its pictures."""
    same_answer: int
    """Problems in the lists whose partner has the same gold answer."""


def blanked(problems: Iterable[Problem], sampler: FrameSampler) -> list[Problem]:
    """Every picture replaced by one of its size (upright) in its mean colour, and every frame of a video.

    Args:
        sampler: chooses the frames, as for the prompt.

    Raises:
        ValueError: as `open_image` and `sample_video`.
    """
    return [
        replace(
            problem,
            images=tuple(_blank(open_image(image, problem_id=problem.id)) for image in problem.images),
            videos=tuple(_blank_video(sample_video(video, sampler, problem_id=problem.id)) for video in problem.videos),
        )
        for problem in problems
    ]


def swapped(problems: Sequence[Problem], seed: int) -> Swap:
    """Every problem with the pictures and videos of another that has as many of each; sizes may differ.

    A partner's pictures must differ from the problem's own, in whatever order: a data set may ask several questions of
    one picture. Of several none should stay. Its gold answer should differ too, because a swap that keeps the answer
    proves nothing; where one answer is that of more than half of the problems some must keep it, and they are named.
    Among such partners those with the same question come first: only there is it certain that a different gold answer
    is a different answer to *this* question.

    Args:
        problems: with unique ids.
        seed: of the pairing.

    Raises:
        ValueError: as `open_image`.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        counts = [len(problem.images), len(problem.videos)] if problem.videos else [len(problem.images)]
        if any(counts):
            groups["/".join(map(str, counts))].append(index)
    partners: dict[int, int] = {}
    for kinds, members in groups.items():
        chosen = _partners([problems[index] for index in members], random.Random(f"{seed}/swap/{kinds}"))
        partners |= {members[index]: members[partner] for index, partner in chosen.items()}
    pairs = [(problems[index], problems[partners[index]]) for index in sorted(partners)]
    return Swap(
        problems=[replace(problem, images=partner.images, videos=partner.videos) for problem, partner in pairs],
        partners=[partner.id for _, partner in pairs],
        left_out=[problem.id for index, problem in enumerate(problems) if index not in partners],
        same_answer=[problem.id for problem, partner in pairs if _answer(problem) == _answer(partner)],
    )


def sides_in_words(same_answer: int) -> dict[str, str]:
    """What the problems of each side are shown, and of how many of these another's pictures have their gold answer."""
    return SIDES | ({"swapped": f"{SIDES['swapped']}, {same_answer} of the same gold answer"} if same_answer else {})


def check_swap(swap: Swap, *, among: str, raised: str) -> None:
    """Raises ValueError, with which option may be `raised`, where nobody `among` the problems has a partner."""
    if not swap.problems:
        raise ValueError(
            f"grounding=true needs two problems with different pictures, got none among {among}: raise {raised}, or "
            "set grounding=false"
        )


def build_controls(prompts: Sequence[Prompt], builder: PromptBuilder, *, seed: int) -> Controls:
    """The controls of problems whose prompts are built already; of each problem all three prompts fit.

    Raises:
        ValueError: as `open_image`.
    """
    swap = swapped([prompt.problem for prompt in prompts], seed)
    with_others = builder.build_all(swap.problems).prompts
    kept = {prompt.problem.id for prompt in with_others}
    true = [prompt for prompt in prompts if prompt.problem.id in kept]
    return Controls(
        true=true,
        blank=[builder.build(problem) for problem in blanked((prompt.problem for prompt in true), builder.frames)],
        swapped=with_others,
        left_out=len(prompts) - len(true),
        same_answer=len(kept.intersection(swap.same_answer)),
    )


def _blank(picture: Image.Image) -> Image.Image:
    colour = np.asarray(picture).reshape(-1, 3).mean(axis=0).round().astype(int)
    return Image.new("RGB", picture.size, tuple(colour.tolist()))


def _blank_video(frames: Frames) -> Frames:
    colours = [np.asarray(image).reshape(-1, 3).mean(axis=0) for image in frames.images]
    colour = np.mean(colours, axis=0).round().astype(int)
    blank = Image.new("RGB", frames.images[0].size, tuple(colour.tolist()))
    return replace(frames, images=(blank,) * len(frames.images))


def _partners(problems: Sequence[Problem], rng: random.Random) -> dict[int, int]:
    """For each index the one whose pictures it gets; those that no pairing found different pictures for are missing.

    From a random cycle through all, partners are exchanged in pairs for as long as that mends a fault. Where another
    question is not the worst that is left, more than two exchange theirs if that mends it. Then no pairing leaves out
    fewer, and none of those that leave out as few has fewer shared pictures or, after these, equal answers.
    """
    digests = [sorted(picture_digests(problem)) for problem in problems]
    pictures = _numbered([tuple(own) for own in digests])
    answers, questions = (_numbered([of(problem) for problem in problems]) for of in (_answer, lambda p: p.question))
    # Two problems of one picture each share all of them or none.
    shared = _shared(digests) if len(digests[0]) > 1 else None
    order = rng.sample(range(len(problems)), len(problems))
    partner = np.empty(len(problems), dtype=int)
    partner[order] = np.roll(order, 1)
    more = len(problems) + 1

    def faults(problem, other):
        found = (
            _SAME_PICTURES * (pictures[problem] == pictures[other])
            + _SAME_ANSWER * (answers[problem] == answers[other])
            + _OTHER_QUESTION * (questions[problem] != questions[other])
        )
        return found if shared is None else found + _SHARED_PICTURE * shared[problem, other]

    def worse_faults(problem, other):
        """One that is left out has no other fault, and one fault counts more than the next lesser one of all."""
        found = np.where(answers[problem] == answers[other], 1, 0)
        found = found if shared is None else found + more * shared[problem, other]
        return np.where(pictures[problem] == pictures[other], more**2, found)

    def all_faults(problem, other):
        return more * worse_faults(problem, other) + (questions[problem] != questions[other])

    _exchange(partner, order, faults)
    best = cheapest(partner, worse_faults)
    if (best != partner).any():
        _exchange(best, order, all_faults)
        partner = best
    return {index: int(other) for index, other in enumerate(partner) if pictures[index] != pictures[other]}


def _exchange(partner: np.ndarray, order: Sequence[int], faults: Callable[..., np.ndarray]) -> None:
    """Exchange partners in pairs, in place, until no pair mends a fault."""
    everyone = np.arange(len(partner))
    mended = True
    while mended:
        mended = False
        for index in order:
            now = faults(index, partner[index]) + faults(everyone, partner)
            gain = now - faults(index, partner) - faults(everyone, partner[index])
            best = int(gain.argmax())
            if gain[best] > 0:
                partner[[index, best]] = partner[[best, index]]
                mended = True


def _shared(digests: Sequence[Sequence[bytes]]) -> np.ndarray:
    """[problem, problem] whether two have a picture in common."""
    numbers = _numbered([digest for own in digests for digest in own]).reshape(len(digests), -1)
    has = np.zeros((len(digests), numbers.max() + 1), np.float32)
    np.put_along_axis(has, numbers, 1, axis=1)
    return has @ has.T > 0


def _numbered(values: Sequence[Hashable]) -> np.ndarray:
    """[value] a number for each, the same for equal ones."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values])


def picture_digests(problem: Problem) -> tuple[bytes, ...]:
    """The content of the pictures and videos: the same one may lie in several files, or in memory several times.

    Video files are told apart as they are, undecoded.

    Raises:
        ValueError: as `open_image`.
    """
    pictures = [_digest(image, problem) for image in problem.images]
    return (*pictures, *(_video_digest(video, problem) for video in problem.videos))


def _digest(image: Path | Image.Image, problem: Problem) -> bytes:
    opened = open_image(image, problem_id=problem.id)
    return hashlib.sha256(f"{opened.size}".encode() + opened.tobytes()).digest()


def _video_digest(video: Video | Frames, problem: Problem) -> bytes:
    if isinstance(video, Frames):
        return _frames_digest(video.images, repr(video.timestamps), problem)
    if isinstance(video.source, Path):
        return _file_digest(video.source, video.source.stat().st_mtime_ns)
    if isinstance(video.source, bytes):
        return hashlib.sha256(video.source).digest()
    return _frames_digest(video.source, repr(video.fps), problem)


def _frames_digest(frames: Sequence[Path | Image.Image], when: str, problem: Problem) -> bytes:
    """The prompt says when a frame was, so that the same ones at another rate are another video."""
    return hashlib.sha256(b"".join([when.encode(), *(_digest(frame, problem) for frame in frames)])).digest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, changed: int) -> bytes:
    """Kept, as VSI-Bench asks some twenty questions of each video."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _answer(problem: Problem) -> str:
    return problem.answer.strip().casefold()
