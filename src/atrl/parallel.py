"""What several processes that train one policy tell each other; each call is a no-op in a single process.

Every rank must make the same calls, in the same order and with values of the same shapes unless a function says
otherwise: ranks that do not agree wait for each other. Where another rank has ended, each raises the RuntimeError of
torch.distributed.

Every rank takes its share of the prompts and of nothing else: advantages, totals, weights' statistics and metrics are
those of the global batch, and gradients are added up. So the split over ranks changes rounding and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")


def rank() -> int:
    """This process's number among those that train together; 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's consecutive share of `items`; the shares in order of rank are `items`.

    Of n items rank r gets those from ⌊n·r/world⌋ to ⌊n·(r+1)/world⌋; none where there are fewer items than ranks.
    """
    count, world, this = len(items), world_size(), rank()
    return items[count * this // world : count * (this + 1) // world]


def sums(values: Iterable[float]) -> list[float]:
    """Each number added up over the ranks, in float64; every rank must pass as many."""
    values = [float(value) for value in values]
    if world_size() == 1 or not values:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def leave_group() -> None:
    """Leave the process group for good; nobody is waited for.

    Lightning sees to that for NCCL alone; gloo's threads would still run while the interpreter ends around them.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather(item: Item) -> list[Item]:
    """The `item` of every rank, in order of rank, on every rank.

    Raises:
        PicklingError, AttributeError, TypeError: as pickle, where `item` can't be pickled and this rank is not alone.
    """
    if world_size() == 1:
        return [item]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, item)
    return found


def gather_to_first(item: Item) -> list[Item] | None:
    """The `item` of every rank, in order of rank, on the first rank; None on the others, which receive nothing.

    Raises:
        PicklingError, AttributeError, TypeError: as `gather`.
    """
    if world_size() == 1:
        return [item]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(item, found)
    return found


def gather_rows(tensor: Float[Tensor, "row *rest"]) -> Float[Tensor, "all_rows *rest"]:
    """The rows of every rank's tensor, in order of rank, on every rank.

    Ranks may have different numbers of rows, and of columns in dimension 1, which are filled up with 0 to the most.
    """
    if world_size() == 1:
        return tensor
    parts = [part.to(tensor.device) for part in gather(tensor.detach().cpu())]
    if tensor.ndim > 1:
        width = max(part.shape[1] for part in parts)
        after = (0, 0) * (tensor.ndim - 2)
        parts = [nn.functional.pad(part, (*after, 0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks, in one message; a sharded model's are that already.

    A parameter that this rank's rollouts did not touch (the vision tower, where no prompt has a picture) counts as 0.
    One that no rank's did keeps no gradient, as in a single process: AdamW would move it on zeros.
    """
    if world_size() == 1 or any(isinstance(parameter, DTensor) for parameter in parameters):
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    touched = sums(parameter.grad is not None for parameter in trained)
    trained = [parameter for parameter, ranks in zip(trained, touched, strict=True) if ranks]
    if not trained:
        return
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = nn.utils.parameters_to_vector([parameter.grad for parameter in trained])
    dist.all_reduce(flat)
    start = 0
    for parameter in trained:
        end = start + parameter.numel()
        parameter.grad.copy_(flat[start:end].view_as(parameter))
        start = end


def _device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
