"""Whether engine and training fit on a GPU, worked out by hand; no GPU is asked."""

from __future__ import annotations

import pytest
import torch

from atrl.rollout.memory import check_engine_memory, training_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("share", "free", "training"),
    [(0.4, 79, 47), (0.9, 72, 0), (0.5, 60, 20)],
)
def test_what_fits_to_the_byte(share: float, free: int, training: int) -> None:
    """Of 80 GiB: 32 + 47 = 79, 72 = 72, 40 + 20 = 60."""
    check_engine_memory(share=share, free=free * GIB, total=80 * GIB, training=training * GIB)
    with pytest.raises(ValueError, match="asks for"):
        check_engine_memory(share=share, free=free * GIB - 1, total=80 * GIB, training=training * GIB)


@pytest.mark.parametrize(
    ("share", "free", "training", "numbers", "remedy"),
    [
        # 72 > 70; 70 / 80 = 0.875, rounded down
        (0.9, 70, 0, "=0.9 asks for 72.0 GiB of the GPU's 80.0 GiB, but 70.0 GiB are free", "try 0.87$"),
        # 32 > 79 - 48 = 31; 31 / 80 = 0.3875
        (0.4, 79, 48, "optimizer will need 48.0 GiB of them", "try 0.38$"),
        # 20 - 48 < 0
        (0.4, 20, 48, "20.0 GiB are free", "nothing is left for an engine; free the GPU"),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_lower(share, free, training, numbers: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"rollout.sampler.gpu_memory_utilization=.*: .*{remedy}") as caught:
        check_engine_memory(share=share, free=free * GIB, total=80 * GIB, training=training * GIB)
    assert numbers in str(caught.value)
    if remedy.startswith("try"):  # the value that it names is right
        value = float(remedy.removeprefix("try ").removesuffix("$"))
        check_engine_memory(share=value, free=free * GIB, total=80 * GIB, training=training * GIB)


def test_training_holds_weights_and_two_moments_of_those_that_are_trained() -> None:
    """10 float32 trained: 40 + 80 bytes; 6 bfloat16 frozen: 12 bytes."""
    model = torch.nn.Module()
    model.trained = torch.nn.Parameter(torch.zeros(10))
    model.frozen = torch.nn.Parameter(torch.zeros(6, dtype=torch.bfloat16), requires_grad=False)
    assert training_bytes(model) == 132
