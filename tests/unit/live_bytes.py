"""How many bytes of tensors are alive: every storage that an operation makes, until nothing refers to it any more."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that pass through operations while it is entered; `peak` is the most at once.

    Storages are counted once, however many views they have, and until their last tensor dies, saved ones included.
    What kernels allocate and free within one operation is not seen. `known` are tensors that exist already.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        for tensor in known:
            self.count(tensor)

    def count(self, tensor: torch.Tensor) -> None:
        """Add the tensor's storage, if it isn't counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation and count what it made."""
        output = function(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return output
