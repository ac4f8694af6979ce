"""The Triton kernels without a GPU: interpreted, against `Block`; and compiled, but not run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atrl.credit.attention import fused_available
from atrl.credit.blocks import Block
from atrl.credit.connectivity import remove_sinks
from tests.unit.fused_cases import (
    CASES,
    CAUSAL_ONLY,
    KEPT,
    PACKED,
    REDUCED,
    REQUEST,
    WITHOUT_MASSES,
    Case,
    assert_same,
    assert_same_capture,
    assert_same_reduced,
    build,
    capture,
    left_by_earlier_layers,
    left_by_torch,
    reduced_by_torch,
    reference_lse,
    with_blind_heads,
    with_rows_above_one,
    with_sinks,
)

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SMALLEST_SHARED_MEMORY = 99 * 1024
"""Bytes that one block may use on the GPUs of compute capability 8.6, 8.9 and 12.0, which have the least."""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict:
    """What the kernels find in every case, from a process in which Triton interprets them."""
    path = tmp_path_factory.mktemp("fused") / "results.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    program = [sys.executable, "-m", "tests.unit.fused_cases", str(path)]
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(interpreted, name):
    image, response, _ = interpreted[name]
    assert_same(image, response, build(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_cases_hold_masses_that_could_be_wrong(name):
    """Far above the tolerance, wherever there is a picture or a second token; and a window takes some away."""
    block = build(CASES[name])
    image, response = block.image_mass(), block.response_mass()
    mask = block.regions.row_mask
    image = image.transpose(1, 2)[mask]
    assert not any(CASES[name].images) or image.amax() > 0.04
    assert response.shape[1] == 1 or response[mask].amax() > 0.1
    if CASES[name].window:
        assert ((image == 0) & block.regions.column_mask[mask.nonzero()[:, 0]][:, None]).any()


def test_log_sum_exp_by_float64(interpreted):
    block = build(CASES[CAUSAL_ONLY])
    expected = reference_lse(block)
    for response, (source, rows) in enumerate(zip(block.regions.source, block.regions.rows, strict=True)):
        found = interpreted[CAUSAL_ONLY][2][response]
        torch.testing.assert_close(found, expected[source][block.heads][:, rows].float(), atol=1e-5, rtol=0)


def test_a_row_that_may_look_nowhere_reads_nothing(interpreted):
    """Padding of a packed response points at a column before its sequence starts."""
    image, response, lse = interpreted["packed rows"]
    length = PACKED[2][3]
    assert (lse[2, :, length:] == -torch.inf).all() and lse[2, :, :length].isfinite().all()
    assert (image[2, :, length:] == 0).all() and (response[2, length:] == 0).all()
    assert image[2, :, :length].amax() > 0.1


def test_a_given_log_sum_exp_stands_in_for_the_first_pass(interpreted):
    block = build(CASES[CAUSAL_ONLY])
    assert_same(*interpreted["lse given"], block)
    halved, (total, peak, _) = interpreted["lse of twice the sum given"]
    torch.testing.assert_close(2 * halved, block.image_mass(), atol=1e-5, rtol=0)
    for found, expected in zip((2 * total, 2 * peak), reduced_by_torch(block, 0), strict=False):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_a_kernel_keeps_of_padding_does_not_matter(interpreted):
    assert_same(*interpreted["lse unknown on padding"], build(CASES["several tiles"]))


def test_a_reader_makes_the_same_of_both(interpreted):
    for name in ("capture", "capture in chunks"):
        assert_same_capture(interpreted[name], capture(build(CASES["packed rows"]), fused=False))


@pytest.mark.parametrize(("name", "factor"), REDUCED)
def test_without_masses_in_memory_the_same_is_kept_of_them(interpreted, name, factor):
    assert_same_reduced(interpreted[name, factor], with_sinks(build(CASES[name])), factor)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if any(case.images)])
def test_cases_have_sinks_and_masses_beside_them_and_earlier_layers(name):
    """Leaving a sink out, and what earlier layers left, change what is kept by far more than the tolerance."""
    block, factor = with_sinks(build(CASES[name])), REQUEST.sink_factor
    mask, image = block.regions.row_mask, block.image_mass()
    real, left = mask[:, None, :, None], left_by_torch(block, factor)[0]
    sink = (real & (image > 0)).any(dim=2) & ~(real & (left > 0)).any(dim=2)
    assert sink.any() and (~sink & (left > 0).any(dim=2)).any()
    kept = reduced_by_torch(block, factor)
    for found, whole in zip(kept, reduced_by_torch(block, 0), strict=True):
        assert (found - whole).abs().max() > 1e-3
    for other in (left.amax(dim=1), left_by_earlier_layers(block)):
        assert (kept[2] - other)[mask].max() > 1e-3


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.window])
def test_what_windows_hide_changes_which_columns_are_sinks(name):
    """By far more than the tolerance: kernels that took every column for seen would not agree with torch."""
    block, factor = with_sinks(build(CASES[name])), REQUEST.sink_factor
    mask, image = block.regions.row_mask, block.image_mass()
    as_if_seen = remove_sinks(image, block.regions.column_mask, mask, factor=factor)
    assert ((left_by_torch(block, factor)[0] - as_if_seen).abs() * mask[:, None, :, None]).max() > 0.1


def test_a_reader_makes_the_same_without_masses_in_memory(interpreted):
    """Of two layers; what a kernel would leave in memory can't even be called."""
    for name in WITHOUT_MASSES:
        expected = capture(build(CASES[name]), fused=False, request=KEPT)
        assert_same_capture(interpreted["capture without masses", name], expected)


def test_rows_of_which_sinks_leave_too_little_are_blind(interpreted):
    """Exactly 0, in the two heads alone that have such sinks; so the largest masses are those of the others."""
    block = with_blind_heads()
    real = block.regions.row_mask[:, None].expand(-1, 2, -1)
    total, peak, image = interpreted["with_blind_heads"]
    assert (total[:, :2] == 0).all() and (peak[:, :2] == 0).all()
    assert (total[:, 2:][real] > 0).all() and (peak[:, 2:][real] > 0).all()
    assert torch.equal(reduced_by_torch(block, REQUEST.sink_factor)[0] > 0, total > 0)
    assert_same_reduced((total, peak, image), block, REQUEST.sink_factor)


def test_no_row_beside_sinks_sums_to_more_than_one(interpreted):
    """Over 1 − sink mass alone some would come to more than one and a half."""
    block = with_rows_above_one()
    total, peak, _ = interpreted["with_rows_above_one"]
    mass, left = block.image_mass(), left_by_torch(block, REQUEST.sink_factor)[0]
    kept, rest = (mass * (left > 0)).sum(dim=-1), 1 - (mass * (left == 0)).sum(dim=-1)
    assert ((rest > 0.01) & (kept > 1.5 * rest)).any()
    expected, largest, _ = reduced_by_torch(block, REQUEST.sink_factor)
    assert total.max() < 1 + 1e-6 and expected.max() < 1 + 1e-6
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(peak, largest, atol=1e-4, rtol=0)


def test_fused_wherever_there_is_cuda():
    assert fused_available(torch.device("cuda", 1)) and not fused_available(torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "dtype", "seen", "width", "product"),
    [
        (80, torch.bfloat16, None, 128, "mma.sync"),
        (90, torch.bfloat16, None, 80, "wgmma"),
        (90, torch.float32, None, 128, "fma.rn"),
        (80, torch.float32, torch.bfloat16, 128, "mma.sync"),
        (90, torch.float32, torch.bfloat16, 128, "wgmma"),
    ],
)
def test_compiles_for_gpus(tmp_path, monkeypatch, capability, dtype, seen, width, product):
    """To machine code: in the type that was asked for, float32 not rounded to TF32, and within any GPU's memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    block = build(Case(dtype=dtype, seen=seen, width=width, softcap=50.0))
    for kernel, arguments in launches(block):
        compiled = compile_for(capability, kernel, arguments)
        assert product in compiled.asm["ptx"] and "tf32" not in compiled.asm["ptx"] and compiled.asm["cubin"]
        assert compiled.metadata.shared <= SMALLEST_SHARED_MEMORY


def launches(block: Block) -> list[tuple]:
    """Every kernel, and what it is launched with."""
    from atrl.credit import fused, fused_reduce

    regions, out, flags = block.regions, torch.empty(1), torch.empty(1, dtype=torch.bool)
    wanted = {"lse": out, "at": regions.columns, "at_mask": regions.column_mask, "wanted": 9, "heads_each": 4}
    options = {"out": out} | fused.options_of(block)
    reducing = options | wanted | {"row_mask": regions.row_mask, "sink": flags, "asked": flags, "all_heads": 4}
    reducing |= dict.fromkeys(("total", "peak", "scale", "limit", "image"), out) | {"count": out.int()}
    return [
        (fused._log_sum_exp_kernel, options),
        (fused._mass_kernel, options | wanted),
        (fused_reduce._rows_kernel, reducing),
        (fused_reduce._above_kernel, reducing),
        (fused_reduce._highest_kernel, reducing),
    ]


def specialisation(kernel, arguments: dict) -> list[tuple[str, object]]:
    """What a launch with these arguments is compiled for: of each its type, and what of its value."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import native_specialize_impl

    return [
        ("constexpr", arguments[parameter.name])
        if parameter.is_constexpr
        else native_specialize_impl(
            CUDABackend,
            arguments[parameter.name],
            parameter.is_const,
            not parameter.do_not_specialize,
            not parameter.do_not_specialize_on_alignment,
        )
        for parameter in kernel.params
    ]


def compile_for(capability: int, kernel, arguments: dict):
    """The kernel as a launch with these arguments would compile it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = dict(zip(kernel.arg_names, specialisation(kernel, arguments), strict=True))
    signature = {name: kind for name, (kind, _) in found.items()}
    constants = {name: value for name, (kind, value) in found.items() if kind == "constexpr"}
    aligned = [place for place, (kind, value) in enumerate(found.values()) if kind != "constexpr" and value == "D"]
    source = ASTSource(kernel, signature, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_stages": arguments["num_stages"]})


def test_kernels_are_compiled_once_for_all_parts_of_all_batches():
    """Wherever a part's places begin in memory, and whether lengths are round or 1; not so for queries and keys."""
    whole = build(Case(layout=((0, 0, 45, 9), (1, 13, 45, 9)), images=(5, 5)))
    second = replace(whole, regions=whole.regions.part(slice(1, 2)))
    assert all(getattr(second.regions, name).data_ptr() % 16 for name in ("source", "start", "rows", "columns"))
    other = build(Case(columns=48, layout=((0, 0, 48, 1),), images=(1,), behind=16))
    for one, *others in zip(launches(whole), launches(second), launches(other), strict=True):
        for kernel, arguments in others:
            assert specialisation(kernel, arguments) == specialisation(*one)
        kernel, arguments = one
        moved = arguments | {"query": torch.empty(arguments["query"].numel() + 1)[1:]}
        assert specialisation(kernel, moved) != specialisation(*one)


def test_other_types_are_refused():
    from atrl.credit.fused import image_mass

    block = build(Case(dtype=torch.float64))
    with pytest.raises(AssertionError, match="no fused attention mass of"):
        image_mass(block)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.window is None and case.softcap is None])
def test_torch_makes_the_same_of_a_given_log_sum_exp(name):
    """Whatever hides a column: the future, padding, another sequence of the row."""
    plain = build(CASES[name])
    given = replace(plain, lse=reference_lse(plain))
    image, response = given.image_mass(), given.response_mass()
    assert_same(image, response, plain)
    assert (image[~plain.regions.column_mask[:, None, None].expand_as(image)] == 0).all()
    assert (response[~plain.regions.row_mask] == 0).all()


@pytest.mark.parametrize(
    ("heads", "per_group", "groups", "share"),
    [
        ([0, 1, 2, 3], 2, [0, 1], 2),
        ([0, 1, 2, 3], 4, [0], 4),
        ([0, 1, 2, 3], 1, [0, 1, 2, 3], 1),
        ([1, 2], 2, [0, 1], 1),  # one of either pair
        ([1, 2, 3], 2, [0, 1, 1], 1),  # unequal numbers
        ([3, 1, 0], 4, [0], 3),
        ([2, 0], 2, [1, 0], 1),  # not in the keys' order
        ([0, 2, 1, 3], 2, [0, 1, 0, 1], 1),  # not side by side
    ],
)
def test_heads_that_share_a_key_are_found(heads, per_group, groups, share):
    block = build(Case(query_heads=4, key_heads=4 // per_group, heads=tuple(heads)))
    assert block._shared_keys() == (groups, share)


@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (1, 2), (2,), (1, 3), (2, 1)])
@pytest.mark.parametrize("behind", [0, 33])
def test_queries_side_by_side_are_had_without_a_copy(heads, behind):
    """Two responses of nine tokens at the end of 45 columns: the same bits as by an index, for any part of them."""
    plain = build(Case(heads=heads, behind=behind, starts_known=False))
    assert plain.regions.rows.tolist() == [list(range(35, 44))] * 2
    for kept, first in ((slice(0, 2), 0), (slice(1, 2), 1)):
        by_index = replace(plain, regions=plain.regions.part(kept), lse=reference_lse(plain))
        aligned = replace(by_index, regions=replace(by_index.regions, aligned=(first, 35)))
        for part in (slice(None), slice(0, 9), slice(4, 7)):
            queries = aligned.of_rows(aligned.query, part)
            assert torch.equal(queries, by_index.of_rows(by_index.query, part))
            viewed = queries.untyped_storage().data_ptr() == plain.query.untyped_storage().data_ptr()
            assert viewed == (list(heads) == list(range(heads[0], heads[-1] + 1)))
            assert torch.equal(aligned.of_rows(aligned.lse, part), by_index.of_rows(by_index.lse, part))
        assert torch.equal(aligned.image_mass(), by_index.image_mass())
        assert torch.equal(aligned.response_mass(), by_index.response_mass())


def test_rows_before_the_first_query_go_by_an_index():
    """Padding may point there and gets any query; a view would begin before the tensor does, that is at its end."""
    block = build(Case(behind=33, starts_known=False))
    early = replace(block, regions=replace(block.regions, rows=block.regions.rows - 4, aligned=(0, 31)))
    expected = block.query[:, :, [0, 0, 0, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(early.of_rows(early.query, slice(None)), expected)


@pytest.mark.parametrize("lse_given", [False, True])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.behind])
def test_queries_that_are_left_out_change_nothing(name, lse_given):
    """Those of prompts that were run before; rows of padding, which point there, are masked."""
    case = CASES[name]
    whole, rest = build(replace(case, behind=0)), build(case)
    assert rest.query.shape[2] == whole.query.shape[2] - case.behind > 0
    if lse_given:
        rest = replace(rest, lse=reference_lse(rest))
    mask = whole.regions.row_mask
    image, expected = (block.image_mass().transpose(1, 2)[mask] for block in (rest, whole))
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(rest.response_mass()[mask], whole.response_mass()[mask], atol=1e-6, rtol=0)
