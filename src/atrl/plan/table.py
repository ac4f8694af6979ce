"""The plan as text."""

from __future__ import annotations

from dataclasses import fields

from atrl.plan.advice import advice, problems
from atrl.plan.duration import TimePlan, concurrent, plan_time
from atrl.plan.hardware import GIB, Hardware
from atrl.plan.job import Job
from atrl.plan.memory import MOMENTS, plan_memory


def render(job: Job, hardware: Hardware, title: str) -> str:
    """Memory of a GPU, time of a step, and what to change where it does not fit."""
    lines = [title, _summary(job, hardware), "", *_memory(job, hardware), "", *_time(job, plan_time(job, hardware))]
    found = problems(job, hardware)
    if not found:
        return "\n".join([*lines, "", f"fits, {_spare(job, hardware) / GIB:.1f} GiB to spare"])
    changes = advice(job, hardware)
    enough = changes[-1] != "…"
    hint = f"fits with {' '.join(changes)}" if enough else f"does not fit even with {' '.join(changes[:-1])}"
    return "\n".join([*lines, "", *(f"does not fit: {line}" for line in found), hint])


def _summary(job: Job, hardware: Hardware) -> str:
    lengths = job.lengths
    return (
        f"{job.model.name}: {_count(job.base_parameters)} parameters, {_count(job.trained_parameters)} trained; "
        f"{job.gpus} × {hardware.name}, {job.strategy}\n"
        f"{job.prompts} prompts × {job.group} responses of {lengths.response} tokens at most "
        f"({lengths.response_mean:.0f} on average) to {lengths.prompt} ({lengths.image} of the picture)"
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _memory(job: Job, hardware: Hardware) -> list[str]:
    plan = plan_memory(job, hardware)
    rows = [f"{'GiB a GPU':<16}" + "".join(f"{moment:>10}" for moment in MOMENTS)]
    for part in plan.parts:
        if any(getattr(part, moment) for moment in MOMENTS):
            rows.append(f"{part.name:<16}" + "".join(f"{getattr(part, moment) / GIB:>10.2f}" for moment in MOMENTS))
    rows.append(f"{'all':<16}" + "".join(f"{plan.total(moment) / GIB:>10.2f}" for moment in MOMENTS))
    rows.append(f"{'of':<16}{hardware.memory_gib:>10.2f}")
    if job.engine.name == "vllm":
        rows.append(f"responses decoded at a time: {concurrent(job, hardware)}")
    return rows


def _time(job: Job, plan: TimePlan) -> list[str]:
    left_out = "rewards and evaluation" + (", and the server's rollouts" if job.engine.name == "server" else "")
    rows = [f"{'seconds a step':<16}"]
    rows += [f"{field.name:<16}{getattr(plan, field.name):>10.2f}" for field in fields(plan)]
    return [*rows, f"{'all':<16}{plan.total:>10.2f}  (without {left_out})"]


def _spare(job: Job, hardware: Hardware) -> float:
    return hardware.memory - plan_memory(job, hardware).peak
