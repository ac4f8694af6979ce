"""Patches through a matrix product are patches through the convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atrl.models.load import PretrainedModel
from atrl.models.patches import PatchProjection, project_patches


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_the_convolution(bias):
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 5, (2, 4, 4), (2, 4, 4), bias=bias).double()
    other = nn.Conv3d(3, 5, (2, 4, 4), (2, 4, 4), bias=bias).double()
    other.load_state_dict(plain.state_dict())
    project_patches(other)
    assert type(other) is PatchProjection
    patches = torch.randn(7, 3, 2, 4, 4, dtype=torch.float64)
    upstream = torch.randn(7, 5, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(other(patches), plain(patches))
    for module in (plain, other):
        module(patches).backward(upstream)
    for own, expected in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_a_whole_picture_is_still_convolved():
    plain = nn.Conv3d(1, 2, (1, 2, 2), (1, 2, 2))
    picture = torch.arange(16.0).view(1, 1, 1, 4, 4)
    expected = plain(picture)
    project_patches(plain)
    assert plain(picture).shape == (1, 2, 1, 2, 2)
    assert torch.equal(plain(picture), expected)


@pytest.mark.parametrize(
    "changed", [{"stride": 1}, {"padding": 1}, {"dilation": 2}, {"groups": 2}], ids=lambda changed: next(iter(changed))
)
def test_other_convolutions_are_left_alone(changed):
    options = {"kernel_size": (2, 2, 2), "stride": (2, 2, 2)} | changed
    model = nn.Sequential(nn.Conv3d(2, 2, **options), nn.Conv2d(2, 2, 2, 2))
    project_patches(model)
    assert [type(module) for module in model] == [nn.Conv3d, nn.Conv2d]


def test_a_loaded_policy_has_it(tmp_path):
    model = PretrainedModel().load(tmp_path).model
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    assert [type(module) for module in convolutions] == [PatchProjection]
