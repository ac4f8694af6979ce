"""How often the vision tower works, and what its gradient is."""

from __future__ import annotations

from torch import Tensor


def count_encodings(policy, monkeypatch) -> list[int]:
    """A list that grows by the number of patches each time that pictures or videos are encoded."""
    encoded, original = [], policy.get_image_features

    def counting(pixels, *rest, **options):
        encoded.append(len(pixels))
        return original(pixels, *rest, **options)

    monkeypatch.setattr(policy, "get_image_features", counting)
    return encoded


def vision_gradient(policy, total: Tensor) -> Tensor:
    """Of `total`, for the tower's first layer."""
    policy.zero_grad()
    total.backward()
    return policy.model.visual.patch_embed.proj.weight.grad.clone()
