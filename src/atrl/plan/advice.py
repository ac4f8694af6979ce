"""What does not fit, and which setting mends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from atrl.plan.hardware import GIB, Hardware
from atrl.plan.job import Job
from atrl.plan.memory import MOMENTS, cache_per_token, plan_memory


@dataclass(frozen=True)
class Remedy:
    """A change of one setting."""

    setting: str
    """As it is written on the command line."""
    change: Callable[[Job], Job]


def problems(job: Job, hardware: Hardware) -> list[str]:
    """What does not fit, a line each; empty where all does."""
    plan, found = plan_memory(job, hardware), []
    for moment in MOMENTS:
        over = plan.total(moment) - hardware.memory
        if over > 0:
            largest = max(plan.parts, key=lambda part: getattr(part, moment))
            found.append(
                f"{moment}: {plan.total(moment) / GIB:.1f} GiB of {hardware.memory_gib:.1f}, {over / GIB:.1f} too "
                f"many; most are {largest.name}, {getattr(largest, moment) / GIB:.1f}"
            )
    if job.engine.name == "vllm":
        room, one = plan.part("vLLM cache").rollout, job.lengths.total * cache_per_token(job)
        if room < one:
            found.append(
                f"rollout: vLLM's cache of {room / GIB:.2f} GiB holds no response, which takes {one / GIB:.2f}"
            )
    return found


def remedies(job: Job) -> Iterator[Remedy]:
    """Single changes that the run would take, the cheapest in time first."""
    return (remedy for remedy in _changes(job) if _is_taken(remedy.change(job)))


def _is_taken(job: Job) -> bool:
    """What `config.CHECKS` and vLLM ask of the settings that are changed here."""
    ways = job.engine.tensor_parallel
    if job.strategy == "fsdp" and (job.quantized or job.deterministic or job.prompts % job.gpus):
        return False
    return not (ways > 1 and (job.deterministic or job.gpus % ways or job.model.text.heads % ways))


def _changes(job: Job) -> Iterator[Remedy]:
    if job.engine.name == "vllm" and not job.engine.sleeps and job.engine.cache is None:
        yield _engine("rollout.sampler.sleep_level=2", sleeps=True)
    size = 1 if job.deterministic else job.micro_batch
    while size > 1:
        size //= 2
        yield _micro_batch(job, size)
    if not job.checkpointing:
        yield Remedy("trainer.activation_checkpointing=true", lambda job: replace(job, checkpointing=True))
    if job.strategy == "ddp" and job.gpus > 1:
        yield Remedy("trainer.strategy=fsdp", _divided)
    if job.engine.name == "vllm" and job.engine.cache is None:
        for share in (0.3, 0.5, 0.6, 0.7, 0.8):
            yield _engine(f"rollout.sampler.gpu_memory_utilization={share}", share=share)
        ways = job.engine.tensor_parallel * 2
        while ways <= min(job.gpus, job.gpus_per_node):
            yield _engine(f"rollout.sampler.tensor_parallel_size={ways}", tensor_parallel=ways)
            ways *= 2
    if job.lora_rank is None:
        yield Remedy("model/lora=language", lambda job: replace(job, lora_rank=16))
    for factor in (2, 4, 8):
        nodes = factor * max(1, job.gpus // job.gpus_per_node)
        if factor * job.gpus <= job.prompts and job.gpus >= job.gpus_per_node:
            yield _more_gpus(f"trainer.num_nodes={nodes}", factor)


def advice(job: Job, hardware: Hardware) -> list[str]:
    """The settings that make the job fit: one if one does, else changes that together do; empty where none is needed.

    A list that ends in "…" is not enough.
    """
    if not problems(job, hardware):
        return []
    for remedy in remedies(job):
        if not problems(remedy.change(job), hardware):
            return [remedy.setting]
    chosen: dict[str, str] = {}
    changed = job
    while problems(changed, hardware):
        best = max(remedies(changed), key=lambda remedy: _gain(changed, remedy, hardware), default=None)
        if best is None or _gain(changed, best, hardware) <= 0:
            return [*chosen.values(), "…"]
        changed = best.change(changed)
        chosen[best.setting.partition("=")[0]] = best.setting
    return list(chosen.values())


def _gain(job: Job, remedy: Remedy, hardware: Hardware) -> float:
    return _lack(job, hardware) - _lack(remedy.change(job), hardware)


def _lack(job: Job, hardware: Hardware) -> float:
    """Bytes beyond the memory, of all moments, and what the engine's cache lacks for one response."""
    plan = plan_memory(job, hardware)
    lack = sum(max(0.0, plan.total(moment) - hardware.memory) for moment in MOMENTS)
    if job.engine.name == "vllm":
        held = job.base_parameters * job.engine.weights / job.engine.tensor_parallel
        room = hardware.memory * job.engine.share - held - hardware.engine_scratch
        if job.engine.cache is None:
            lack += max(0.0, job.lengths.total * cache_per_token(job) - room)
    return lack


def _micro_batch(job: Job, rollouts: int) -> Remedy:
    """So many rollouts of full length at a time, by the setting that counts them."""
    if job.micro_batch_tokens is None:
        return Remedy(
            f"optimizer.micro_batch_size={rollouts}",
            # A single rollout runs whole (`OptimizerSettings.runs_prompts_once`).
            lambda job: replace(job, micro_batch=rollouts, share_prompts=job.share_prompts and rollouts > 1),
        )
    tokens = job.lengths.tokens(rollouts, math.ceil(rollouts / job.group) if job.share_prompts else rollouts)
    return Remedy(
        f"optimizer.micro_batch_tokens={tokens}",
        lambda job: replace(job, micro_batch=rollouts, micro_batch_tokens=tokens),
    )


def _divided(job: Job) -> Job:
    """FSDP casts whole blocks, where whole policies have single products cast."""
    engine = job.engine
    if engine.name == "transformers":
        engine = replace(engine, weights=job.precision.compute)
    return replace(job, strategy="fsdp", precision=replace(job.precision, autocast=False), engine=engine)


def _more_gpus(setting: str, factor: int) -> Remedy:
    return Remedy(setting, lambda job: replace(job, gpus=factor * job.gpus))


def _engine(setting: str, **change) -> Remedy:
    return Remedy(setting, lambda job: replace(job, engine=replace(job.engine, **change)))
