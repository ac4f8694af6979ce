"""Memory of one GPU, part by part, at the three moments of a step when it is fullest."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.plan.activations import FLOAT, activations, after_attention, compared_logits, kept_logits, logits
from atrl.plan.hardware import Hardware
from atrl.plan.job import Job
from atrl.rollout.room import room_at_the_end

CHUNK = 5 * 16 * 2**20
"""What reading attention holds for a moment: a handful of blocks (`credit/attention.py`)."""
DOUBLE = 8
"""Bytes of a float64, in which the transformers sampler draws, and a deterministic run adds gradients up."""

FOUR_BITS = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a NormalFloat (arXiv 2305.14314): 4 bits, for each 64 a constant of 8, for each 256 of these one of 32."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes of one part while rollouts are drawn, at the height of an update, and in the optimizer's step."""

    name: str
    rollout: float = 0.0
    update: float = 0.0
    step: float = 0.0


MOMENTS = ("rollout", "update", "step")


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes."""

    parts: tuple[Part, ...]

    def total(self, moment: str) -> float:
        """Bytes at one of `MOMENTS`."""
        return sum(getattr(part, moment) for part in self.parts)

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment."""
        return max(map(self.total, MOMENTS))

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)


def plan_memory(job: Job, hardware: Hardware) -> MemoryPlan:
    """Everything that a GPU holds."""
    return MemoryPlan(
        (
            _always("weights", weights(job)),
            Part(name="gathered", rollout=_gathered_between_updates(job), update=gathered(job), step=0.0),
            Part(name="gradients", update=_gradients_at_the_height(job), step=gradients(job)),
            _always(
                "optimizer", 0.0 if job.cpu_offload else 2 * gradients(job), step=_optimizer_scratch(job, hardware)
            ),
            Part(name="activations", update=activations(job) * (2 if job.overlaps else 1)),
            Part(name="logits", update=logits(job) + (kept_logits(job) if job.overlaps else 0.0)),
            Part(name="credit", update=credit(job)),
            _always("reference", reference(job)),
            Part(name="batch", update=batch(job), step=batch(job)),
            *_engine(job, hardware),
            _always("reserved", hardware.reserved),
        )
    )


def weights(job: Job) -> float:
    """Of the policy, in this GPU's keeping; adapters are float32 whatever they adapt."""
    if job.cpu_offload:
        return 0.0
    text = job.model.text
    saved = text.layers * text.block_matrices * (job.precision.weights - FOUR_BITS) if job.quantized else 0.0
    return (job.base_parameters * job.precision.weights - saved + job.adapter_parameters * FLOAT) / job.shards


def gradients(job: Job) -> float:
    """Of what is trained, in the bytes that it is kept in."""
    if job.cpu_offload:
        return 0.0
    return job.trained_parameters * _trained_bytes(job) / job.shards


def reference(job: Job) -> float:
    """The frozen policy that the KL term compares with; with LoRA it is the policy without its adapters.

    It waits in host memory where the policy does.
    """
    if not job.reference or job.lora_rank is not None or job.cpu_offload:
        return 0.0
    return job.base_parameters * job.precision.weights / job.shards


def gathered(job: Job) -> float:
    """With FSDP: what is put together for a while.

    Embedding, output matrix, projector and what else is outside the blocks from the first block to the last; one block
    at work and the next on its way; in the backward pass a block's gradients, also in float32 to be added up.
    """
    if job.strategy != "fsdp":
        return 0.0
    text, vision, compute = job.model.text, job.model.vision, job.precision.compute
    blocks = text.layers * text.block_parameters + vision.layers * vision.block_parameters
    return (job.base_parameters - blocks) * compute + text.block_parameters * (3 * compute + FLOAT)


def credit(job: Job) -> float:
    """What the scheme's evidence takes while a micro-batch is at work: attention that is read, or a masked picture."""
    cost, lengths = job.credit, job.lengths
    read = 0.0
    if cost.heads_read:
        per_token = 2 * cost.heads_read + lengths.image + 2 * cost.edges
        read = FLOAT * job.rows * lengths.response * per_token
        # While layers are read there are no logits yet, and nothing of the last block's second half.
        read += max(0.0, min(CHUNK, _rows_of_scores(job)) - logits(job) - after_attention(job))
    compared = compared_logits(job) - logits(job)  # which are not there at the same time
    if cost.scores_first:  # then there are no activations yet
        compared -= activations(job)
    compared = max(0.0, compared)
    masked = {"no": 0.0, "forward": compared, "gradient": compared + activations(job)}
    return read + masked[cost.masked]


def batch(job: Job) -> float:
    """The step's rollouts as tensors: pictures in float32, and ids, masks and log-probs of every token."""
    pictures = job.rank_prompts * job.patches * job.model.vision.patch_numbers * FLOAT
    tokens = job.rank_rollouts * (2 * DOUBLE * job.lengths.total + 3 * FLOAT * job.lengths.response)
    return pictures * (1 if job.credit.masked == "no" else 2) + tokens


def cache_per_token(job: Job) -> float:
    """Keys and values of one token in all layers, on one of the engine's GPUs.

    Where there are more of these than heads of keys, each has one such head, which others have too.
    """
    text = job.model.text
    heads = max(1, text.kv_heads // job.engine.tensor_parallel)
    return 2 * text.layers * heads * text.head_width * job.engine.weights


def cache_needed(job: Job) -> float:
    """For as many sequences at a time as the engine would like to decode, prompts shared by their group."""
    sequences = min(job.engine.sequences, job.rank_rollouts * job.engine.tensor_parallel)
    return sequences * cache_per_token(job) * (job.lengths.prompt / job.group + job.lengths.response)


def _engine(job: Job, hardware: Hardware) -> tuple[Part, ...]:
    engine = job.engine
    if engine.name == "server":
        return ()
    if engine.name == "transformers":  # it generates with the policy itself
        rows = min(max(engine.sequences // job.group, 1) * job.group, job.rank_rollouts)
        drawn = rows * job.model.text.vocabulary * (3 * FLOAT + DOUBLE)
        return (Part(name="sampler cache", rollout=_sampled_columns(job, rows) * cache_per_token(job) + drawn),)
    held = job.base_parameters * engine.weights / engine.tensor_parallel
    # vLLM takes its share of the device whole: what weights leave is its cache, less what a forward pass needs.
    cache = (
        engine.cache if engine.cache is not None else engine.share * hardware.memory - held - hardware.engine_scratch
    )
    scratch = 0.0 if engine.cache is not None else hardware.engine_scratch
    parts = {"vLLM weights": held, "vLLM cache": max(cache, 0.0), "vLLM scratch": scratch}
    awake = 0.0 if engine.sleeps else 1.0
    return tuple(Part(name=name, rollout=size, update=awake * size, step=awake * size) for name, size in parts.items())


def _sampled_columns(job: Job, rows: int) -> int:
    """Of the transformers sampler, for `rows` responses at a time; in float32 a group has its prompt in common."""
    if job.group > 1 and job.engine.weights == FLOAT and not job.precision.autocast:
        return rows // job.group * job.lengths.prompt + rows * room_at_the_end(1, job.lengths.response)
    return rows * room_at_the_end(job.lengths.prompt, job.lengths.total)


def _always(name: str, size: float, step: float = 0.0) -> Part:
    return Part(name=name, rollout=size, update=size, step=size + step)


def _trained_bytes(job: Job) -> int:
    return FLOAT if job.lora_rank is not None else job.precision.weights


def _gradients_at_the_height(job: Job) -> float:
    # The first micro-batch's backward pass makes them while activations go; from the second on they are there before.
    if job.micro_batches == 1:
        return 0.0
    return job.trained_parameters * DOUBLE if job.deterministic else gradients(job)


def _optimizer_scratch(job: Job, hardware: Hardware) -> float:
    """AdamW: on a GPU the roots of all second moments at once; on a CPU two temporaries of one matrix at a time.

    Gradients of several whole policies are added up in one message, which is a copy of them.
    """
    message = gradients(job) if job.strategy == "ddp" and job.gpus > 1 else 0.0
    if hardware.is_cpu:
        largest = max(job.model.text.embedding, job.model.text.width * job.model.text.feed_forward)
        return max(message, 2 * largest * _trained_bytes(job))
    return max(message, gradients(job))


def _gathered_between_updates(job: Job) -> float:
    """With FSDP: the whole policy, where it generates itself, as products take it.

    For an engine one matrix at a time is put together; the largest is the embedding.
    """
    if job.strategy != "fsdp":
        return 0.0
    if job.engine.name == "transformers":
        return (job.base_parameters + job.adapter_parameters) * job.precision.compute
    return job.model.text.embedding * FLOAT


def _rows_of_scores(job: Job) -> float:
    return 5 * FLOAT * job.rows * job.model.text.heads * job.lengths.response * job.lengths.total
