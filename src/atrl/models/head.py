"""The vocabulary head, and what is put in its place while the model runs.

Whatever is worked out from the head's input is worked out inside the model's forward pass: there a sharded model's
parameters are together, and its hooks see to the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from atrl.models.policy import response_logits
from atrl.models.prompt_states import logits_after, run_prompts
from atrl.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[[Float[Tensor, "token width"], Float[Tensor, "vocabulary width"] | None], Float[Tensor, "token value"]]
"""Input rows of the trained tokens and the head's weight (None: the rows are logits) → numbers of each token."""

CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale")
"""Settings of models that do more to logits than multiply by the head."""


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The head of `model` if its logits are one matrix product and nothing more; else None."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    changed = any(getattr(config, name, None) not in (None, 1.0) for name in CHANGES_LOGITS)
    return None if changed or type(head) is not nn.Linear or head.bias is not None else head


def read_at_head(
    model: PreTrainedModel, batch: Experience, read: Read, *, share_prompts: bool = False
) -> Float[Tensor, "rollout response value"]:
    """What `read` makes of the rows that predict the trained tokens of `batch`; 0 on padding, which no head sees.

    With `share_prompts` each prompt of the batch is run once, not with each response. The rows are the head's input
    where `plain_head` knows the head, and otherwise the model's own logits, all of which then exist at once.
    """
    mask = batch.response_mask
    prompts = run_prompts(model, batch) if share_prompts else None

    def logits() -> Tensor:
        return response_logits(model, batch) if prompts is None else logits_after(model, batch, prompts)

    head = plain_head(model)
    if head is None:
        return _spread(read(logits()[mask], None), mask)
    # The model gives its last token's row as well, which predicts nothing here.
    with_last = nn.functional.pad(mask, (0, 1))
    trained = with_last.flatten().nonzero().squeeze(-1)

    def at_head(hidden: Float[Tensor, "rollout tokens width"]) -> Float[Tensor, "rollout tokens value"]:
        return _spread(read(hidden.flatten(0, 1).index_select(0, trained), head.weight), with_last)

    with _in_place_of(head, at_head):
        return logits()


def run_layers(model: PreTrainedModel, batch: Experience) -> None:
    """A pass over `batch` for what is read on the way: no logits are made where `plain_head` knows the head."""
    read_at_head(model, batch, lambda rows, weight: rows.new_zeros(len(rows), 1))


def _spread(values: Float[Tensor, "token value"], mask: Tensor) -> Float[Tensor, "rollout tokens value"]:
    """`values` where `mask` is, in its order, and 0 elsewhere."""
    empty = values.new_zeros(mask.numel(), values.shape[-1])
    return empty.index_copy(0, mask.flatten().nonzero().squeeze(-1), values).view(*mask.shape, -1)


@contextmanager
def _in_place_of(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    assert "forward" not in vars(module), "something else stands in the place of the vocabulary head already"
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
