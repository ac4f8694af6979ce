"""Samplers whose answers are known beforehand: written down, or read off a picture that says its own number."""

from __future__ import annotations

from PIL import Image

from atrl.types import Problem, Prompt, Rollout, RolloutGroup

RIGHT, WRONG, CUT, NO_ANSWER = "right", "wrong", "cut", "no answer"


def numbered_prompts(count: int) -> list[Prompt]:
    """The n-th problem's answer is n."""
    problems = [Problem(id=f"p{number}", question="?", answer=str(number)) for number in range(count)]
    return [Prompt(problem, [1], pixels={}, images=(), engine_token_ids=[1]) for problem in problems]


def half_picture(number: int) -> Image.Image:
    """Its left half has `number` as red, its right half 0: blanked, it says half of its number."""
    picture = Image.new("RGB", (28, 28))
    picture.paste((number, 0, 0), (0, 0, 14, 28))
    return picture


def pictured_problems(*numbers: int) -> list[Problem]:
    """Each asks for the number of its picture."""
    return [
        Problem(id=f"n{number}", question="<image>?", answer=str(number), images=(half_picture(number),))
        for number in numbers
    ]


class Reader:
    """Answers with the number at the upper left of the picture; "0" without one, and to all until `reads` is set."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.asked: list[tuple[list[str], str]] = []
        """Problems and seed of each call."""

    def generate(self, prompts, sampling, *, seed):
        self.asked.append(([prompt.problem.id for prompt in prompts], seed))
        return [self._group(prompt, sampling.group_size) for prompt in prompts]

    def _group(self, prompt: Prompt, size: int) -> RolloutGroup:
        images = prompt.problem.images
        number = images[0].getpixel((0, 0))[0] if self.reads and images else 0
        return RolloutGroup(
            prompt, [Rollout([1], [0.0], finished=True)] * size, [f"\\boxed{{{number}}}"] * size, policy_version=0
        )


class Scripted:
    """Call by call, what becomes of the samples of each prompt: by its problem's id, a list of the four above."""

    def __init__(self, *calls: dict[str, list[str]]) -> None:
        self._calls = iter(calls)
        self.asked: list[tuple[list[str], str]] = []
        """Problems and seed of each call."""

    def generate(self, prompts, sampling, *, seed):
        self.asked.append(([prompt.problem.id for prompt in prompts], seed))
        script = next(self._calls)
        return [self._group(prompt, script[prompt.problem.id]) for prompt in prompts]

    @staticmethod
    def _group(prompt: Prompt, fates: list[str]) -> RolloutGroup:
        said = {RIGHT: f"\\boxed{{{prompt.problem.answer}}}", NO_ANSWER: "?"}
        rollouts = [Rollout([1], [0.0], finished=fate != CUT) for fate in fates]
        return RolloutGroup(prompt, rollouts, [said.get(fate, "\\boxed{no}") for fate in fates], policy_version=0)
