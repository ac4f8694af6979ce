"""A run as the planner sees it: sizes, counts and switches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from atrl.plan.shape import ModelShape

MaskedPass = Literal["no", "forward", "gradient"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of numbers."""

    weights: int
    """Of a parameter as it is kept; its gradient and the two states of AdamW take as many each."""
    compute: int
    """Of a number in a matrix product."""
    adapter: int = 4
    """Of a number in an adapter's products: float32 unless the trainer itself computes in less."""
    autocast: bool = False
    """Whether products are taken in `compute` bytes by casting at each of them, which keeps the sums between blocks,
    and a copy of each matrix, beside them; otherwise the whole forward pass is in `compute` bytes."""

    @property
    def residual(self) -> int:
        """Of a number in the sum that runs from block to block."""
        return 4 if self.autocast else self.compute


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A rollout in tokens, padding included: batches are padded to the longest prompt and the longest response."""

    prompt: int
    image: int
    """Of the prompt's tokens."""
    response: int
    response_mean: float
    """Without padding."""

    @property
    def total(self) -> int:
        """Columns of a padded batch."""
        return self.prompt + self.response

    def tokens(self, rollouts: int, prompts: int) -> int:
        """Of a micro-batch that runs so many prompts, padding included."""
        return prompts * self.prompt + rollouts * self.response


@dataclass(frozen=True, kw_only=True)
class CreditCost:
    """What a credit scheme asks of a step."""

    name: str = "none"
    heads_read: int = 0
    """Heads whose attention is read, over all layers."""
    edges: int = 0
    """To other tokens of its response that are read of each token, over all layers."""
    clusters: bool = False
    """Whether each response is cut into clusters, on the CPU."""
    masked: MaskedPass = "no"
    """Whether the policy also sees a masked picture, and whether that pass has a gradient."""
    scores_first: bool = False
    """Whether the whole batch is scored before it is trained on."""
    whole_rows: bool = False
    """Whether it reads what needs a prompt and its response in one pass."""
    background: bool = False
    """Whether other processes work on it during the next forward pass."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What draws the rollouts."""

    name: Literal["vllm", "transformers", "server"]
    """A server is on other devices, which are not planned."""
    weights: int = 4
    """Bytes of a parameter, and of a number in the key-value cache."""
    share: float = 0.4
    """Of the device's memory, for vLLM on a GPU."""
    cache: float | None = None
    """Bytes of vLLM's key-value cache where it is given outright, as on the CPU."""
    sequences: int = 128
    """Responses decoded at a time."""
    tensor_parallel: int = 1
    sleeps: bool = False
    """Whether its memory is free for the update."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that memory and time depend on, but for the hardware."""

    model: ModelShape
    precision: Precision
    lengths: Lengths
    engine: Engine
    credit: CreditCost = CreditCost()
    gpus: int = 1
    gpus_per_node: int = 1
    strategy: Strategy = "ddp"
    cpu_offload: bool = False
    checkpointing: bool = False
    flash_attention: bool = False
    lora_rank: int | None = None
    lora_vision: bool = False
    """Whether vision tower and projector have adapters too."""
    quantized: bool = False
    """Whether the matrices of the language half's blocks are kept in 4 bits."""
    freeze_vision: bool = False
    freeze_projector: bool = False
    prompts: int
    """Of a step, on all GPUs together."""
    group: int
    micro_batch: int
    """Rollouts in a forward pass, at most."""
    micro_batch_tokens: int | None = None
    """That many tokens' worth of them, where the setting counts tokens."""
    share_prompts: bool = False
    """Whether a micro-batch runs each of its prompts once and not with each response."""
    logit_chunk: int | None = None
    """Tokens whose logits exist at a time; None for those of a micro-batch."""
    deterministic: bool = False
    """Whether each group is a micro-batch of its own, and gradients are added up in float64."""
    updates: int = 1
    reference: bool = False

    @property
    def across_nodes(self) -> bool:
        """Whether messages between its GPUs leave a node."""
        return self.gpus > self.gpus_per_node

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimizer states are divided into."""
        return self.gpus if self.strategy == "fsdp" else 1

    @property
    def rank_prompts(self) -> int:
        """Prompts of the GPU that has most of them."""
        return math.ceil(self.prompts / self.gpus)

    @property
    def rank_rollouts(self) -> int:
        """Rollouts of that GPU."""
        return self.rank_prompts * self.group

    @property
    def rows(self) -> int:
        """Rollouts of its largest micro-batch."""
        return min(self.micro_batch, self.rank_rollouts)

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of an update."""
        return math.ceil(self.rank_rollouts / self.micro_batch)

    @property
    def pictures(self) -> int:
        """Different pictures in a micro-batch: a group's is encoded once."""
        # A micro-batch that starts inside a group touches one group more than it has room for.
        aligned = self.rows % self.group == 0 or self.group % self.rows == 0
        return min(self.rank_prompts, math.ceil(self.rows / self.group) + (0 if aligned else 1))

    @property
    def patches(self) -> int:
        """Patches of a prompt's pictures."""
        return self.lengths.image * self.model.vision.patches_per_token

    @property
    def scores_first(self) -> bool:
        """Whether a pass without gradients comes before the update."""
        return self.updates > 1 or self.credit.scores_first

    @property
    def overlaps(self) -> bool:
        """Whether a micro-batch waits for its credit while the next is in its forward pass."""
        return self.credit.background and self.micro_batches > 1 and not self.scores_first

    @property
    def base_parameters(self) -> int:
        """Parameters without adapters."""
        return self.model.parameters

    @property
    def adapter_parameters(self) -> int:
        """Of LoRA (arXiv 2106.09685) on every matrix of the language half's blocks: r · (inputs + outputs) each.

        With `lora_vision` also on those of the tower's blocks and of the mergers.
        """
        if self.lora_rank is None:
            return 0
        text, vision = self.model.text, self.model.vision
        attention = 2 * (text.width + text.query_width) + 2 * (text.width + text.kv_width)
        sides = text.layers * (attention + 3 * (text.width + text.feed_forward))
        if self.lora_vision:
            feed_forward = vision.feed_forward_matrices * (vision.width + vision.feed_forward)
            sides += vision.layers * (6 * vision.width + feed_forward) + (1 + vision.deepstack) * (
                3 * vision.merged_width + vision.out_width
            )
        return self.lora_rank * sides

    @property
    def vision_trained(self) -> bool:
        """Whether gradients go through the vision tower."""
        return not self.freeze_vision if self.lora_rank is None else self.lora_vision

    @property
    def projector_trained(self) -> bool:
        """Whether gradients go through its projector."""
        return not self.freeze_projector if self.lora_rank is None else self.lora_vision

    @property
    def trained_parameters(self) -> int:
        """Parameters with a gradient."""
        if self.lora_rank is not None:
            return self.adapter_parameters
        vision = self.model.vision
        tower = vision.parameters - vision.merger_parameters if self.vision_trained else 0
        return self.model.text.parameters + tower + (vision.merger_parameters if self.projector_trained else 0)
