"""Seconds of a step by phase: operations over what the device computes, bytes over what it reads and sends.

A multiplication and an addition count as two operations. The backward pass takes twice the forward pass, and with
recomputed activations three times (Korthikanti et al., arXiv 2205.05198); frozen matrices take no gradient of their own
and so half of that. Decoding reads all weights and the cache for every token (Pope et al., arXiv 2211.05102).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from atrl.plan.hardware import Hardware
from atrl.plan.job import Job
from atrl.plan.memory import cache_needed, cache_per_token, plan_memory

CLUSTER_SECONDS = 0.025 / 1000
"""Of graph, METIS and weights, for a token of a response on one core (`docs/benchmarks.md`)."""


@dataclass(frozen=True)
class TimePlan:
    """Seconds of a step. Not in them: rewards, evaluation, and what is lost between phases."""

    rollout: float
    score: float
    credit: float
    update: float
    sync: float

    @property
    def total(self) -> float:
        """Of the phases."""
        return self.rollout + self.score + self.credit + self.update + self.sync


def plan_time(job: Job, hardware: Hardware) -> TimePlan:
    """Every phase of a step."""
    rate = hardware.operations(job.precision.compute)
    training = training_operations(job) / rate
    messages = communication(job) / hardware.link(across_nodes=job.across_nodes) if job.gpus > 1 else 0.0
    clusters = job.rank_rollouts * job.lengths.response_mean * CLUSTER_SECONDS / max(hardware.cores, 1.0)
    return TimePlan(
        rollout=_rollout(job, hardware),
        score=_scoring_passes(job) * forward_operations(job) / rate,
        credit=reading_operations(job) / rate + (clusters if job.credit.clusters else 0.0),
        # Gathering the next block goes on beside the block at work, so the longer of the two counts.
        update=job.updates * max(training, messages),
        sync=_sync(job, hardware),
    )


def text_operations(job: Job, tokens: float, columns: float) -> float:
    """Of the language half's blocks for `tokens`, each of which looks at `columns` others."""
    text = job.model.text
    return text.layers * tokens * (2 * text.block_matrices + 4 * text.query_width * columns)


def vision_operations(job: Job, pictures: int) -> float:
    """Of the tower and its mergers."""
    vision, patches = job.model.vision, pictures * job.patches
    matrices = 4 * vision.width**2 + (3 if vision.gated else 2) * vision.width * vision.feed_forward
    windowed = job.patches if vision.window is None else min(job.patches, (vision.window // vision.patch) ** 2)
    seen = vision.full_layers * job.patches + (vision.layers - vision.full_layers) * windowed
    merged = vision.patches_per_token * vision.width
    mergers = (1 + vision.deepstack) * merged * (merged + vision.out_width) / vision.patches_per_token
    blocks = 2 * vision.layers * matrices + 4 * vision.width * seen
    return patches * (2 * vision.patch_numbers * vision.width + blocks + 2 * mergers)


def head_operations(job: Job) -> float:
    """Of the logits of one GPU's rollouts."""
    return 2 * job.rank_rollouts * job.lengths.response * job.model.text.embedding


def forward_operations(job: Job) -> float:
    """Of one pass over one GPU's rollouts, padding included; every column of a kernel with a mask is computed."""
    columns = job.lengths.total / 2 if job.flash_attention else job.lengths.total
    if job.share_prompts:
        prompt, behind = job.lengths.prompt - 1, job.lengths.response + 1
        text = text_operations(job, _pictures(job) * prompt, prompt / 2 if job.flash_attention else prompt)
        text += text_operations(job, job.rank_rollouts * behind, columns)
    else:
        text = text_operations(job, job.rank_rollouts * job.lengths.total, columns)
    return text + head_operations(job) + vision_operations(job, _pictures(job))


def training_operations(job: Job) -> float:
    """Of forward and backward passes over one GPU's rollouts, with those of the masked picture."""
    vision = vision_operations(job, _pictures(job))
    text = forward_operations(job) - vision
    again = 1 if job.checkpointing else 0
    trained = (3 if job.lora_rank is None else 2) + again
    whole = text * trained + vision * (trained if job.vision_trained else 1)
    masked = {"no": 0.0, "forward": forward_operations(job), "gradient": whole}[job.credit.masked]
    return whole + masked


def reading_operations(job: Job) -> float:
    """Of reading attention: scores, softmax and reductions of every head (as in `benchmarks/credit_overhead.py`).

    Every column for a row's log-sum-exp, then the picture's again: some kernels keep it, but not within checkpointing.
    The same once more, with the response's columns, where its edges are read.
    """
    lengths, text = job.lengths, job.model.text
    columns = lengths.total + lengths.image + (lengths.total + lengths.response if job.credit.edges else 0)
    scores = (2 * text.head_width + 5) * lengths.response * columns
    reductions = 6 * lengths.response * lengths.image + (lengths.response**2 if job.credit.edges else 0)
    return job.rank_rollouts * job.credit.heads_read * (scores + reductions)


def communication(job: Job) -> float:
    """Bytes that a GPU sends in an update.

    With FSDP every micro-batch gathers the weights for its forward and again for its backward pass, and adds gradients
    up in float32; all of that twice where prompts are run before their responses. Otherwise gradients are added up
    once, sent and returned.
    """
    share = (job.gpus - 1) / job.gpus
    if job.strategy == "fsdp":
        gathered = 2 * job.base_parameters * job.precision.compute
        passes = job.micro_batches * (2 if job.share_prompts else 1)
        return passes * share * (gathered + job.trained_parameters * 4)
    return 2 * share * job.trained_parameters * job.precision.weights


def _pictures(job: Job) -> int:
    """Encoded by one GPU in a pass over its rollouts: a group's once, but again in every micro-batch it is cut into."""
    if job.micro_batch >= job.group:
        return job.micro_batches * job.pictures if job.micro_batches > 1 else job.rank_prompts
    return job.micro_batches


def _scoring_passes(job: Job) -> int:
    masked = 1 if job.credit.masked != "no" and job.scores_first else 0
    return (1 + masked if job.scores_first else 0) + (1 if job.reference else 0)


def _rollout(job: Job, hardware: Hardware) -> float:
    """Prompts once a group, then a token at a time for as many responses as the cache holds; 0 for a server's.

    A divided policy that generates itself is put together before.
    """
    if job.engine.name == "server":
        return 0.0
    engine, lengths = job.engine, job.lengths
    sequences = job.rank_rollouts * engine.tensor_parallel
    number = job.precision.compute if engine.name == "transformers" else engine.weights
    rate = hardware.operations(number) * engine.tensor_parallel
    prompts = job.rank_prompts * engine.tensor_parallel
    prefill = text_operations(job, prompts * lengths.prompt, lengths.prompt / 2) + vision_operations(job, prompts)
    at_once = min(sequences, concurrent(job, hardware))
    rounds = sequences / at_once
    context = lengths.prompt + lengths.response_mean / 2
    weights = (job.model.text.parameters - (0 if job.model.text.tied else job.model.text.embedding)) * engine.weights
    read = weights / engine.tensor_parallel + at_once * context * cache_per_token(job)
    computed = text_operations(job, at_once, context) + 2 * at_once * job.model.text.embedding
    token = max(read / hardware.bandwidth, computed / rate) + _tensor_parallel_token(job, hardware, at_once)
    seconds = prefill / rate + math.ceil(rounds) * lengths.response_mean * token
    if engine.name == "transformers" and job.shards > 1:
        seconds += job.base_parameters * job.precision.compute / hardware.link(across_nodes=job.across_nodes)
    return seconds


def concurrent(job: Job, hardware: Hardware) -> int:
    """Responses that the engine decodes at a time: as many as it is asked to, and as its cache has room for."""
    asked = min(job.engine.sequences, job.rank_rollouts * job.engine.tensor_parallel)
    if job.engine.name == "transformers":
        return asked
    room = plan_memory(job, hardware).part("vLLM cache").rollout
    return max(1, min(asked, int(room / (cache_needed(job) / asked))))


def _tensor_parallel_token(job: Job, hardware: Hardware, rows: int) -> float:
    """Two sums over the engine's GPUs in every block, sent and returned."""
    ways = job.engine.tensor_parallel
    if ways == 1:
        return 0.0
    sent = 2 * (ways - 1) / ways * 2 * job.model.text.layers * rows * job.model.text.width * job.engine.weights
    return sent / hardware.link(across_nodes=ways > job.gpus_per_node)


def _sync(job: Job, hardware: Hardware) -> float:
    """New weights for the engine: gathered from all GPUs, read and written once."""
    if job.engine.name != "vllm":
        return 0.0
    copied = job.base_parameters * (job.precision.weights + job.engine.weights) / hardware.bandwidth
    if job.shards == 1:
        return copied
    return copied + job.base_parameters * job.precision.weights / hardware.link(across_nodes=job.across_nodes)
