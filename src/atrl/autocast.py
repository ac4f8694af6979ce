"""Work that the training step's mixed precision is not meant for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_autocast() -> Iterator[None]:
    """Products are taken in the precision of their factors, as outside of a training step."""
    import torch

    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
