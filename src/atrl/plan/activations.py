"""Bytes that a forward pass leaves behind for its backward pass.

Counted from the operations of transformers' Qwen2.5-VL and Qwen3-VL (5.19) and what each saves: a matrix product its
input; an RMS norm its input in float32 and the normalised numbers; a gated feed-forward its gate, the gate's
activation, the other half and their product; attention its queries, keys, values, output and a number a row. A frozen
matrix saves nothing and a frozen norm its input alone, but an adapter saves its own input and what its first matrix
makes of it; where the model is bfloat16 and the adapter float32, that input is a copy for each. Cf.
Korthikanti et al., arXiv 2205.05198, section 4, whose blocks have layer norms and dropout.
"""

from __future__ import annotations

from atrl.plan.job import Job, Precision
from atrl.plan.shape import TextShape, VisionShape

FLOAT = 4
"""Bytes of a float32, which norms compute in."""


def rms_norm(width: float, precision: Precision, *, frozen: bool = False) -> float:
    """Per row: the input in float32 and, for the gradient of its weight, the normalised numbers."""
    return width * (FLOAT + (0 if frozen else precision.residual)) + FLOAT


def text_block(
    text: TextShape,
    precision: Precision,
    *,
    columns: int,
    flash: bool,
    keys_per_query: float = 1.0,
    lora_rank: int | None = None,
) -> float:
    """Per token of one block; `columns` is the length of a row of its keys, padding included.

    Where a prompt was run before, there are more `keys_per_query` than 1.
    """
    compute, queries, keys, frozen = precision.compute, text.query_width, text.kv_width, lora_rank is not None
    norms = 2 * rms_norm(text.width, precision, frozen=frozen)
    # Autocast makes a copy of a product's input each time: for queries, keys, values, gate and other half.
    inputs: float = (5 if precision.autocast else 2) * text.width * compute
    if frozen:
        inputs = _adapter_inputs(
            precision, shared=5 * text.width, saved=2 * text.width, other=queries, product=text.feed_forward
        )
        inputs += 7 * lora_rank * precision.adapter
    repeated = keys if flash else queries  # with a mask, keys and values are repeated for every head
    attention = (2 * queries + 2 * repeated * keys_per_query) * compute + text.heads * FLOAT
    mask = 0 if flash else columns * compute
    normed = (queries + keys) * (FLOAT + (0 if frozen else compute)) if text.qk_norm else 0
    return norms + inputs + attention + mask + normed + 4 * text.feed_forward * compute


def _adapter_inputs(precision: Precision, *, shared: float, saved: float, other: float, product: float) -> float:
    """Inputs of the adapters of a block, beside what its operations save anyway.

    `shared` counts the numbers of those that several layers read once for each layer, `saved` once; `other` is the
    attention's output and `product` the feed-forward's, which both are saved as they are.
    """
    if precision.adapter > precision.compute:
        return (shared + other + product) * precision.adapter - product * precision.compute
    return (shared if precision.autocast else saved) * precision.compute


def vision_block(vision: VisionShape, precision: Precision, *, lora_rank: int | None = None) -> float:
    """Per patch of one block."""
    compute, width, frozen = precision.compute, vision.width, lora_rank is not None
    norms = 2 * (rms_norm(width, precision, frozen=frozen) if vision.gated else width * precision.residual)
    inputs: float = (3 if precision.autocast and vision.gated else 2) * width * compute
    if frozen:
        read = (3 if vision.gated else 2) * width
        inputs = _adapter_inputs(precision, shared=read, saved=2 * width, other=width, product=vision.feed_forward)
        inputs += (2 + vision.feed_forward_matrices) * lora_rank * precision.adapter
    # Rotated queries and keys; the three of them as they were, because values are a view of that; the output of each
    # window, and all of them joined.
    attention = 7 * width * compute + vision.heads * FLOAT
    return norms + inputs + attention + (4 if vision.gated else 2) * vision.feed_forward * compute


def merger(vision: VisionShape, precision: Precision, *, frozen: bool = False) -> float:
    """Per patch, over all mergers: norm, first matrix, its activation, second matrix; frozen, norm and activation."""
    norm = rms_norm(vision.width, precision, frozen=frozen) if vision.gated else vision.width * precision.residual
    return (1 + vision.deepstack) * (norm + (1 if frozen else 3) * vision.width * precision.compute)


def weight_copies(job: Job) -> float:
    """The matrices in `compute` bytes, which autocast makes anew in every forward pass and keeps for its backward."""
    if not job.precision.autocast:
        return 0.0
    text = job.model.text
    blocks = text.block_matrices * (1 if job.checkpointing else text.layers)
    vision = 0 if job.checkpointing or not job.vision_trained else job.model.vision.parameters
    return (blocks + text.embedding + vision) * job.precision.compute


def text_activations(job: Job) -> float:
    """Of the language half over the largest micro-batch."""
    text, precision, frozen = job.model.text, job.precision, job.lora_rank is not None
    head = 0 if frozen else job.rows * (job.lengths.response + 1) * text.width * precision.compute
    if not job.share_prompts:
        return _pass_activations(job, job.rows * job.lengths.total, job.lengths.total) + head
    prompt, behind = job.lengths.prompt - 1, job.lengths.response + 1
    kept = 2 * text.layers * text.kv_width * precision.compute if job.checkpointing else 0  # else counted in the blocks
    prompts = _pass_activations(job, job.pictures * prompt, prompt) + job.pictures * prompt * kept
    keys_per_query = job.lengths.total / behind
    return prompts + _pass_activations(job, job.rows * behind, job.lengths.total, keys_per_query) + head


def _pass_activations(job: Job, tokens: int, columns: int, keys_per_query: float = 1.0) -> float:
    """Of one pass over `tokens`, up to the head."""
    text, precision, rank = job.model.text, job.precision, job.lora_rank
    block = text_block(
        text,
        precision,
        columns=columns,
        flash=job.flash_attention,
        keys_per_query=keys_per_query,
        lora_rank=rank,
    )
    between = text.width * precision.residual
    blocks = text.layers * between + block if job.checkpointing else text.layers * block
    ends = rms_norm(text.width, precision, frozen=rank is not None) + 2 * text.head_width * precision.residual
    return tokens * (blocks + ends)


def after_attention(job: Job) -> float:
    """Of the language half, what is not there yet when the attention of its last block has been read."""
    text, precision, frozen = job.model.text, job.precision, job.lora_rank is not None
    norms = 2 * rms_norm(text.width, precision, frozen=frozen)
    product = (1 if precision.autocast or not frozen else 0) * text.width * precision.compute
    behind = job.lengths.response + 1 if job.share_prompts else job.lengths.total
    return job.rows * behind * (norms + product + 4 * text.feed_forward * precision.compute)


def vision_activations(job: Job) -> float:
    """Of the vision tower over the pictures of the largest micro-batch; nothing is kept of a frozen one."""
    vision, precision, patches = job.model.vision, job.precision, job.pictures * job.patches
    if not job.vision_trained:
        return patches * merger(vision, precision) if job.projector_trained else 0.0
    block = vision_block(vision, precision, lora_rank=job.lora_rank)
    between = vision.width * precision.residual
    blocks = vision.layers * between + block if job.checkpointing else vision.layers * block
    rotary = 2 * FLOAT * vision.width / vision.heads
    merged = merger(vision, precision, frozen=not job.projector_trained)
    return patches * (blocks + merged + rotary)


def activations(job: Job) -> float:
    """All that the largest micro-batch leaves behind up to its logits, and a matrix that is unpacked from 4 bits."""
    unpacked = job.model.text.width * job.model.text.feed_forward * job.precision.compute if job.quantized else 0
    return text_activations(job) + vision_activations(job) + weight_copies(job) + unpacked


def chunk_of_logits(job: Job) -> float:
    """One float32 number for each token of the vocabulary, for as many tokens as are looked at together."""
    tokens = job.rows * job.lengths.response
    chunk = tokens if job.logit_chunk is None else min(tokens, job.logit_chunk)
    return FLOAT * chunk * job.model.text.vocabulary


def kept_logits(job: Job) -> float:
    """What stays of the logits until the backward pass: the probabilities of a micro-batch that is a single chunk."""
    whole = job.logit_chunk is None or job.rows * job.lengths.response <= job.logit_chunk
    return chunk_of_logits(job) if whole else 0.0


def logits(job: Job) -> float:
    """A chunk's logits twice over, forward (as they are and processed) or backward (kept, and their gradient).

    In the backward pass the gradient of the output matrix grows beside them.
    """
    return 2 * chunk_of_logits(job) + job.model.text.embedding * job.precision.compute


def compared_logits(job: Job) -> float:
    """While the policy's log-probs are compared with those of the masked picture: a chunk of both, of their
    difference, of the probabilities and of the product, and a byte for where there are any; and what either pass keeps.
    """
    passes = 0 if job.credit.scores_first else 1 if job.credit.masked == "forward" else 2
    return 5.25 * chunk_of_logits(job) + passes * kept_logits(job)
