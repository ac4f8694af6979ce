"""A sampler whose answers are written down beforehand, for what is done with rollouts."""

from __future__ import annotations

from atrl.types import Problem, Prompt, Rollout, RolloutGroup

RIGHT, WRONG, CUT, NO_ANSWER = "right", "wrong", "cut", "no answer"


def numbered_prompts(count: int) -> list[Prompt]:
    """The n-th problem's answer is n."""
    problems = [Problem(id=f"p{number}", question="?", answer=str(number)) for number in range(count)]
    return [Prompt(problem, [1], pixels={}, images=(), engine_token_ids=[1]) for problem in problems]


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
