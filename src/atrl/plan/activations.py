"""Bytes that a forward pass leaves behind for its backward pass.

Counted from the operations of transformers' Qwen2.5-VL and Qwen3-VL (5.19) and what each saves: a matrix product its
input; an RMS norm its input in float32 and the normalised numbers; a gated feed-forward its gate, the gate's
activation, the other half and their product; attention its queries, keys, values, output and a number a row. Cf.
Korthikanti et al., arXiv 2205.05198, section 4, whose blocks have layer norms and dropout.
"""

from __future__ import annotations

from atrl.plan.job import Job, Precision
from atrl.plan.shape import TextShape, VisionShape

FLOAT = 4
"""Bytes of a float32, which norms compute in."""


def rms_norm(width: float, precision: Precision) -> float:
    """Per row: the input in float32 and the normalised numbers."""
    return width * (FLOAT + precision.residual) + FLOAT


def text_block(text: TextShape, precision: Precision, *, columns: int, flash: bool) -> float:
    """Per token of one block; `columns` is the length of a row of the batch, padding included."""
    compute, queries, keys = precision.compute, text.query_width, text.kv_width
    norms = 2 * rms_norm(text.width, precision)
    # Autocast makes a copy of a product's input each time: for queries, keys, values, gate and other half.
    inputs = (5 if precision.autocast else 2) * text.width * compute
    repeated = keys if flash else queries  # with a mask, keys and values are repeated for every head
    attention = (2 * queries + 2 * repeated) * compute + text.heads * FLOAT
    mask = 0 if flash else columns * compute
    normed = (queries + keys) * (FLOAT + compute) if text.qk_norm else 0
    return norms + inputs + attention + mask + normed + 4 * text.feed_forward * compute


def vision_block(vision: VisionShape, precision: Precision) -> float:
    """Per patch of one block."""
    compute, width = precision.compute, vision.width
    norms = 2 * (rms_norm(width, precision) if vision.gated else width * precision.residual)
    inputs = (3 if precision.autocast and vision.gated else 2) * width * compute
    # Rotated queries and keys; the three of them as they were, because values are a view of that; the output of each
    # window, and all of them joined.
    attention = 7 * width * compute + vision.heads * FLOAT
    return norms + inputs + attention + (4 if vision.gated else 2) * vision.feed_forward * compute


def merger(vision: VisionShape, precision: Precision) -> float:
    """Per patch, over all mergers: norm, first matrix, its activation, second matrix."""
    norm = rms_norm(vision.width, precision) if vision.gated else vision.width * precision.residual
    return (1 + vision.deepstack) * (norm + 3 * vision.width * precision.compute)


def weight_copies(job: Job) -> float:
    """The matrices in `compute` bytes, which autocast makes anew in every forward pass and keeps for its backward."""
    if not job.precision.autocast:
        return 0.0
    text = job.model.text
    blocks = text.block_matrices * (1 if job.checkpointing else text.layers)
    vision = 0 if job.checkpointing else job.model.vision.parameters
    return (blocks + text.embedding + vision) * job.precision.compute


def text_activations(job: Job) -> float:
    """Of the language half over the largest micro-batch."""
    text, precision, tokens = job.model.text, job.precision, job.rows * job.lengths.total
    block = text_block(text, precision, columns=job.lengths.total, flash=job.flash_attention)
    if job.lora_rank is not None:
        block += 7 * job.lora_rank * precision.compute
    between = text.width * precision.residual
    blocks = text.layers * between + block if job.checkpointing else text.layers * block
    ends = rms_norm(text.width, precision) + 2 * text.head_width * precision.residual
    head = job.rows * (job.lengths.response + 1) * text.width * precision.compute
    return tokens * (blocks + ends) + head


def vision_activations(job: Job) -> float:
    """Of the vision tower over the pictures of the largest micro-batch; nothing is kept of a frozen one."""
    if job.freeze_vision or job.lora_rank is not None:
        return 0.0
    vision, precision, patches = job.model.vision, job.precision, job.pictures * job.patches
    block = vision_block(vision, precision)
    between = vision.width * precision.residual
    blocks = vision.layers * between + block if job.checkpointing else vision.layers * block
    rotary = 2 * FLOAT * vision.width / vision.heads
    return patches * (blocks + merger(vision, precision) + rotary)


def activations(job: Job) -> float:
    """All that the largest micro-batch leaves behind up to its logits."""
    return text_activations(job) + vision_activations(job) + weight_copies(job)


def processed_logits(job: Job) -> float:
    """The logits of the largest micro-batch in float32, banned tokens masked."""
    return FLOAT * job.rows * job.lengths.response * job.model.text.vocabulary


def logits(job: Job) -> float:
    """The processed logits, and what measuring their entropy adds for a moment.

    Entropy takes the log-probabilities, their exponential, the same bounded below, and the product: four more.
    """
    return 5 * processed_logits(job)


def masked_logits(job: Job) -> float:
    """Beside the policy's: the logits of the masked picture, for schemes that compare the two."""
    return 2 * processed_logits(job)
