"""What the schemes share that cut responses into clusters: processes that do it while the model goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from atrl.credit import metis
from atrl.credit.background import Background
from atrl.credit.base import CreditScheme
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class ClusteringCredit(CreditScheme):
    """A scheme that may hand the responses of a micro-batch to METIS; each response's weights depend on it alone.

    Args:
        workers: processes that cluster while the model does its next forward pass; 0 clusters in between, "auto" is as
            many as cores are idle, and one if none of several is.
    """

    workers: int | Literal["auto"] = "auto"
    _background: Background = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers != "auto" and self.workers < 0:
            raise ValueError(
                f"credit.workers must be 0 (cluster in the training process) or more, got {self.workers}: try auto"
            )
        object.__setattr__(self, "_background", Background(self.workers, option="credit.workers"))

    @property
    def cuts(self) -> bool:
        """Whether these options ask for clusters at all."""
        return True

    @property
    def works_elsewhere(self) -> bool:
        """With worker processes, METIS runs beside the next forward pass."""
        return self._background.is_open

    def open(self) -> None:
        """Start the clustering processes, if there is something to cut."""
        if self.cuts:
            self._background.open(metis.prepare_worker)

    def close(self) -> None:
        """Stop them."""
        self._background.close()

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and densities of every response."""
        return self.begin(batch, evidence)()


def filled(
    start: Shaped[Tensor, "rollout response"], rows: Sequence[int], values: Sequence[Shaped[np.ndarray, "token"]]
) -> Shaped[Tensor, "rollout response"]:
    """A copy of `start` whose `rows` begin with `values`."""
    array = start.cpu().numpy().copy()
    for row, own in zip(rows, values, strict=True):
        array[row, : len(own)] = own
    return torch.from_numpy(array).to(start.device)
