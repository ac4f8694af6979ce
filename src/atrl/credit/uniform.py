"""Plain GRPO's credit: every token the same."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.credit.base import CreditScheme
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class UniformCredit(CreditScheme):
    """Weight 1 on every trained token: bit for bit the same run as one without any credit scheme."""

    name = "uniform"
    is_uniform = True

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Ones on the response mask; `evidence` is not looked at."""
        return CreditOutput(weights=batch.response_mask.float())
