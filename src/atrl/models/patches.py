"""The convolution that a vision tower starts with, taken as the matrix product that it is."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class PatchProjection(nn.Conv3d):
    """A convolution over patches that are cut out already: each is one place of its kernel, so one row of a product.

    Qwen's processors hand over patches, [patch, channels · frames · height · width] after flattening, and the model
    makes a convolution of each, which is three times as slow on a CPU (`docs/benchmarks.md`). Parameters, their names
    and shapes stay those of `nn.Conv3d`.
    """

    def forward(self, input: Float[Tensor, "patch channels frames height width"]) -> Float[Tensor, "patch out 1 1 1"]:
        """The product where each input is as large as the kernel, and else the convolution."""
        if tuple(input.shape[2:]) != self.kernel_size:
            return super().forward(input)
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def project_patches(model: nn.Module) -> None:
    """Make the plain convolutions in `model` whose kernels don't overlap `PatchProjection`s, in place."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.stride == module.kernel_size and _plain(module):
            module.__class__ = PatchProjection


def _plain(module: nn.Conv3d) -> bool:
    return module.padding in ((0, 0, 0), "valid") and module.dilation == (1, 1, 1) and module.groups == 1
