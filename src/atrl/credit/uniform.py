"""Plain GRPO's credit: every token the same."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.types import AttentionCapture, CreditOutput, Experience


@dataclass(frozen=True, kw_only=True)
class UniformCredit:
    """Weight 1 on every trained token: bit for bit the same run as one without any credit scheme."""

    name = "uniform"
    needs_attention = False

    def __call__(self, batch: Experience, capture: AttentionCapture | None) -> CreditOutput:
        """Ones on the response mask; `capture` is not looked at."""
        return CreditOutput(weights=batch.response_mask.float())
