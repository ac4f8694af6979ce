"""A frozen vision tower runs once in a step for the same pictures, however many passes look at them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from atrl import parallel
from atrl.models.families import vision_tower
from atrl.sharding import is_sharded

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Key = tuple[Hashable, ...]


class _Memory:
    """What towers of equal weights gave, by the pictures that went through them together."""

    def __init__(self) -> None:
        self.key: Key | None = None
        """Of the pictures that are being encoded; None outside of `encoding`."""
        self._found: dict[Key, Any] = {}

    def around(self, forward: Callable[..., Any], *, in_step: bool) -> Callable[..., Any]:
        """`forward`, run only for what is not known yet; with `in_step` on all ranks or on none."""

        def remembered(*arguments: Any, **options: Any) -> Any:
            key = self.key
            assert key is not None, "a vision tower that remembers was not told which pictures it is given"
            known = key in self._found
            if any(parallel.gather(not known)) if in_step else not known:
                self._found[key] = forward(*arguments, **options)
            output = self._found[key]
            return type(output)(**output)  # transformers writes into what it gets

        return remembered


_MEMORIES: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()


@contextmanager
def frozen_vision_once(*models: PreTrainedModel | None) -> Iterator[None]:
    """Meanwhile a vision tower without a trained parameter keeps what it gave, and gives it again.

    `models` start from the same weights, so towers that stay as they are share what they remember. A projection outside
    the tower runs each time. What is remembered is exactly what the tower would give again: pictures are told by the
    tensors they are in, and known only in the company that they were encoded in, whose size changes last bits. It is
    forgotten at the end.
    """
    memory = _Memory()
    with ExitStack() as stack:
        for model in dict.fromkeys(models):  # without its adapters the policy is its own reference
            tower = None if model is None else vision_tower(model)
            if tower is None or any(parameter.requires_grad for parameter in tower.parameters()):
                continue
            assert model not in _MEMORIES, "the vision tower remembers already"
            _MEMORIES[model] = memory
            tower.forward = memory.around(tower.forward, in_step=is_sharded(model))
            stack.callback(_forget, model, tower)
        yield


def _forget(model: nn.Module, tower: nn.Module) -> None:
    del tower.forward, _MEMORIES[model]


@contextmanager
def encoding(model: PreTrainedModel, pictures: Sequence[Hashable]) -> Iterator[None]:
    """Says which pictures `model` encodes meanwhile; their tensors must live as long as they are remembered."""
    memory = _MEMORIES.get(model)
    if memory is None:
        yield
        return
    memory.key = tuple(pictures)
    try:
        yield
    finally:
        memory.key = None
