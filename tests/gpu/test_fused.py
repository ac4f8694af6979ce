"""The Triton kernels, compiled and run, on the cases that the unit tests interpret."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atrl.credit.blocks import Block
from tests.unit.fused_cases import (
    CASES,
    CAUSAL_ONLY,
    KEPT,
    REQUEST,
    Case,
    assert_same,
    assert_same_capture,
    assert_same_reduced,
    build,
    capture,
    left_by_earlier_layers,
    reduced_by_kernels,
    reference_lse,
    with_sinks,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-4, torch.float16: 1e-4}
"""Tensor cores add exact products of 16-bit numbers in float32, but cut off where a processor rounds. Scores rounded to
bfloat16 would put masses 2e-3 off."""


GPU_CASES = CASES | {"seen in bfloat16": Case(seen=torch.bfloat16)}


@pytest.mark.parametrize("name", GPU_CASES)
def test_agrees_with_torch_on_the_processor(name):
    from atrl.credit.fused import image_mass, response_mass

    case = GPU_CASES[name]
    block = build(case, "cuda")
    image, response = image_mass(block), response_mass(block)
    assert image.is_cuda and response.is_cuda
    assert_same(image.cpu(), response.cpu(), build(case), atol=TOLERANCE[case.seen or case.dtype])


@pytest.mark.parametrize("name", GPU_CASES)
@pytest.mark.parametrize("factor", [0.0, REQUEST.sink_factor])
def test_without_masses_in_memory_the_same_is_kept_of_them(name, factor):
    case = GPU_CASES[name]
    found = reduced_by_kernels(with_sinks(build(case, "cuda")), factor)
    assert all(part.is_cuda for part in found)
    atol = TOLERANCE[case.seen or case.dtype]
    assert_same_reduced([part.cpu() for part in found], with_sinks(build(case)), factor, atol=atol)


def test_a_given_log_sum_exp_stands_in_for_the_first_pass():
    from atrl.credit.fused import image_mass, response_mass

    block = build(CASES[CAUSAL_ONLY], "cuda")
    block = replace(block, lse=reference_lse(block))
    assert_same(image_mass(block).cpu(), response_mass(block).cpu(), build(CASES[CAUSAL_ONLY]))


def test_readers_on_a_gpu_are_fused_and_make_the_same_of_it(monkeypatch):
    expected = capture(build(CASES["packed rows"], "cuda"), fused=False)
    for name in ("image_mass", "response_mass"):
        monkeypatch.setattr(Block, name, None)  # so that a reader that calls it fails
    assert_same_capture(capture(build(CASES["packed rows"], "cuda"), fused=True), expected)
    assert_same_capture(capture(build(CASES["packed rows"], "cuda"), fused=None), expected)


def test_a_reader_on_a_gpu_makes_no_masses_unless_they_are_asked_for(monkeypatch):
    from atrl.credit import fused

    expected = capture(build(CASES["packed rows"], "cuda"), fused=False, request=KEPT)
    monkeypatch.setattr(Block, "image_mass", None)
    monkeypatch.setattr(fused, "image_mass", None)
    assert_same_capture(capture(build(CASES["packed rows"], "cuda"), fused=None, request=KEPT), expected)


LONG = Case(
    columns=8192,
    width=64,
    query_heads=16,
    key_heads=4,
    heads=tuple(range(16)),
    layout=((0, 0, 8192, 512), (1, 100, 8192, 500)),
    images=(256, 200),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holds_what_it_returns_and_no_rows(dtype):
    """Half a GiB of scores would be needed to hold the rows; what is returned has 18 MiB."""
    from atrl.credit.fused import image_mass, response_mass

    block = build(replace(LONG, dtype=dtype), "cuda")
    image_mass(block)  # the first call also loads the kernels
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    image, response = image_mass(block), response_mass(block)
    torch.cuda.synchronize()
    returned = 4 * (image.numel() + response.numel())
    rows = 4 * len(LONG.heads) * LONG.columns * block.regions.rows.numel()
    peak = torch.cuda.max_memory_allocated() - before
    assert returned <= peak <= 2 * returned < rows / 8


def test_reducing_holds_no_masses():
    """They would be 16 MiB; what is held goes with rows × heads and columns × heads."""
    from atrl.credit.fused_reduce import reduce_image_mass

    block = with_sinks(build(LONG, "cuda"))
    image = left_by_earlier_layers(block)
    reduce_image_mass(block, image, factor=REQUEST.sink_factor)  # the first call also loads the kernels
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    reduce_image_mass(block, image, factor=REQUEST.sink_factor)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 4 * len(LONG.heads) * image.numel() / 8
