"""What reading holds at a time, and what it takes of a kernel's log-sum-exps."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_iter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from atrl.credit import blocks as blocks_module
from atrl.credit import query_key
from atrl.credit.attention import AttentionCapture, AttentionReader, AttentionRequest
from atrl.credit.blocks import Block, check_logsumexp, head_index
from atrl.credit.head_maps import HeadMapRequest
from atrl.credit.probe import _RECORDER, Recorder, _register_tap
from atrl.credit.query_key import QueryKeyRequest
from atrl.credit.regions import Regions
from atrl.models.attention import register_attention
from tests.unit.live_bytes import LiveBytes

HEADS, SHARED = 8, 2
CHUNK = 1 << 16


def regions_of(responses: int, columns: int, tokens: int, images: int) -> Regions:
    """Every row a picture, then text, then the response; one row a response."""
    rows = torch.arange(columns - tokens - 1, columns - 1).expand(responses, -1)
    return Regions(
        source=torch.arange(responses),
        start=torch.zeros(responses, dtype=torch.long),
        visible=torch.ones(responses, columns, dtype=torch.bool),
        rows=rows,
        row_mask=torch.ones_like(rows, dtype=torch.bool),
        tokens=rows + 1,
        columns=torch.arange(images).expand(responses, -1),
        column_mask=torch.ones(responses, images, dtype=torch.bool),
    )


def states(responses: int, columns: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((responses, heads, columns, width) for heads in (HEADS, SHARED))
    query, key = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key


def log_sum_exp(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Of causal scores, [row heads query]."""
    scores = scaling * query @ key.repeat_interleave(HEADS // SHARED, dim=1).mT
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).logsumexp(-1)


def held_and_found(request: AttentionRequest, regions: Regions, query, key, lse) -> tuple[int, AttentionCapture]:
    """Bytes that reading three layers takes at most beside what it is given, and what it finds."""
    reader = AttentionReader(request, regions)
    with LiveBytes([query, key, *([] if lse is None else [lse])]) as live:
        before = live.now
        for layer in range(3):
            reader.read_attention(layer, query, key, scaling=0.2, logsumexp=lse)
        found = reader.result()
        return live.peak - before, found


@pytest.mark.parametrize("kept", [False, True], ids=["softmax", "kept"])
@pytest.mark.parametrize(
    ("columns", "tokens", "width"), [(1024, 4, 64), (2048, 4, 32), (512, 128, 16)], ids=["keys", "long", "rows"]
)
def test_a_few_blocks_are_held_beside_the_result(monkeypatch, columns, tokens, width, kept):
    """Of eight responses of eight heads; a block is 256 KiB, and all keys of all heads would be 16 MiB or 4."""
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", CHUNK)
    query, key = states(8, columns, width)
    regions = regions_of(8, columns, tokens, images=64)
    lse = log_sum_exp(query, key, 0.2) if kept else None
    reader = AttentionReader(AttentionRequest(neighbours=0), regions)
    with LiveBytes([query, key, *([lse] if kept else [])]) as live:
        held = live.now
        for layer in range(3):
            reader.read_attention(layer, query, key, scaling=0.2, logsumexp=lse)
        read = live.peak - held
        capture = reader.result()
    result = sum(tensor.nbytes for tensor in (capture.total, capture.peak, capture.image))
    assert result < read < 6 * 4 * CHUNK + 2 * result
    assert live.peak - held < 6 * 4 * CHUNK + 4 * result


def test_small_layers_are_read_together_once_they_fill_a_chunk(monkeypatch):
    """Queries and keys of one are 8 · 32 · 4 + 2 · 32 · 4 = 1,280 numbers, of three more than a chunk of 3,500; what is
    read is the same to the bit."""
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", 3500)
    regions, layers = regions_of(1, 32, 6, images=8), [[state + n for state in states(1, 32, 4)] for n in range(5)]
    read: list[int] = []
    original = AttentionReader._read_layer
    monkeypatch.setattr(
        AttentionReader, "_read_layer", lambda self, layer, whole: read.append(layer) or original(self, layer, whole)
    )

    def capture() -> tuple[list[list[int]], list]:
        reader, progress = AttentionReader(AttentionRequest(neighbours=2), regions), []
        read.clear()
        for number, states_of in enumerate(layers):
            for _ in range(2):  # a layer may run again, for its gradients
                reader.read_attention(number, *states_of, scaling=0.2)
            progress.append(list(read))
        found = [part for part in tree_iter(fields_of(reader.result())) if part is not None]
        return [*progress, list(read)], found

    progress, found = capture()
    assert progress == [[], [], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4]]
    monkeypatch.setattr("atrl.credit.attention.exceed_a_chunk", lambda layers: True)
    progress, at_once = capture()
    assert progress == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert len(found) == len(at_once) == 6 and all(map(torch.equal, found, at_once))


@pytest.mark.parametrize("kept", [False, True], ids=["softmax", "kept"])
@pytest.mark.parametrize("factor", [0.0, 1.5, 4.0])
def test_rows_on_a_large_picture_are_held_some_at_a_time(monkeypatch, kept, factor):
    """512 tokens on 1,024 image tokens would be 2 MiB a head; a block is 256 KiB. Sinks are the same as of whole heads:
    half of them have some, with a factor of 1.5 as with 4."""
    query, key = states(2, 2048, 16)
    query[:, :4] += 2 * key[:, :1, 7:8].expand(-1, 4, -1, -1)  # to half of the heads a column is a sink
    regions = regions_of(2, 2048, tokens=512, images=1024)
    lse = log_sum_exp(query, key, 0.2) if kept else None
    request = AttentionRequest(neighbours=0, sink_factor=factor)
    whole_held, whole = held_and_found(request, regions, query, key, lse)
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", CHUNK)
    held, found = held_and_found(request, regions, query, key, lse)
    result = sum(tensor.nbytes for tensor in (found.total, found.peak, found.image))
    assert held < 6 * 4 * CHUNK + 4 * result < whole_held
    for name in ("total", "peak", "image"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-6, rtol=1e-5)
    every = AttentionReader(AttentionRequest(neighbours=0, sink_factor=0), regions)
    every.read_attention(0, query, key, scaling=0.2, logsumexp=lse)
    removed = (every.result().total[:, 0] - found.total[:, 0]).abs().amax(dim=-1) > 1e-3
    assert bool(removed.any()) is (factor > 0) and not removed.all()


@pytest.mark.parametrize("kept", [False, True], ids=["softmax", "kept"])
def test_edges_are_held_by_rows(monkeypatch, kept):
    """768 tokens on each other would be 2.25 MiB a response and head; a block is 256 KiB. Up to rounding, what larger
    blocks make of it."""
    query, key = states(2, 1024, 16)
    regions = regions_of(2, 1024, 768, images=4)
    lse = log_sum_exp(query, key, 0.2) if kept else None
    request = AttentionRequest(neighbours=8, sink_factor=0)

    _, expected = held_and_found(request, regions, query, key, lse)
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", CHUNK)
    held, found = held_and_found(request, regions, query, key, lse)
    edges = found.edges
    assert edges.targets.shape == edges.strengths.shape == (2, 3, 768, 8)
    result = sum(tensor.nbytes for tensor in (found.total, found.peak, found.image, edges.targets, edges.strengths))
    assert held < 6 * 4 * CHUNK + 2 * result < 2 * 768 * 768 * 4
    torch.testing.assert_close(edges.strengths, expected.edges.strengths, atol=1e-6, rtol=0)


def fields_of(result) -> list:
    """All that a reader found, edges too."""
    if torch.is_tensor(result):
        return [result]
    values = [getattr(result, field.name) for field in fields(result)]
    return [fields_of(value) if is_dataclass(value) else value for value in values]


def block(**changes) -> Block:
    query, key = states(2, 40, 8)
    lse = log_sum_exp(query, key, 0.3)
    whole = Block(query, key, list(range(HEADS)), regions_of(2, 40, 6, images=10), 0.3, None, None, lse)
    return replace(whole, **changes)


def test_a_kernel_s_own_log_sum_exp_is_accepted():
    """As it comes, and as another order of additions would have it."""
    check_logsumexp(block())
    check_logsumexp(block(lse=block().lse + 1e-4))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda lse: lse / 0.6931472,
        lambda lse: lse.flip(1),
        lambda lse: lse.roll(1, dims=2),
        lambda lse: lse * torch.nan,
    ],
    ids=["to the base 2", "other heads", "other rows", "no number"],
)
def test_anything_else_is_noticed(wrong):
    with pytest.raises(AssertionError, match=r"the attention kernel keeps .* set model\.attention=eager"):
        check_logsumexp(block(lse=wrong(block().lse)))


def requests_of(regions: Regions) -> list:
    """One of every reader of queries and keys."""
    weights = regions.row_mask.float()
    return [
        AttentionRequest(neighbours=3, sink_factor=1.5),
        HeadMapRequest(weights=weights, sink_factor=1.5, row="predicting"),
        QueryKeyRequest(detail=True),
    ]


def test_under_autocast_what_is_taken_is_rounded_and_no_more(monkeypatch):
    """The layer's queries have 16 MiB and half of that in bfloat16, its keys a quarter; a block is 256 KiB."""
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", CHUNK)
    monkeypatch.setattr(query_key, "CHUNK_ELEMENTS", CHUNK)
    query, key = states(8, 1024, 64)
    regions = regions_of(8, 1024, 4, images=64)
    register_attention("constant", lambda module, query, *rest, **options: (query.new_zeros(1),), masks_of="sdpa")
    tapped = ALL_ATTENTION_FUNCTIONS[_register_tap("constant")]
    for request in requests_of(regions):
        recorder = Recorder({request: request.reader(None, regions)})
        token = _RECORDER.set(recorder)
        try:
            with torch.autocast("cpu", torch.bfloat16), LiveBytes([query, key]) as live:
                before = live.now
                tapped(SimpleNamespace(layer_idx=0), query, key, None, None, scaling=0.2)
                assert live.peak - before < 8 * 4 * CHUNK < query.nbytes // 4
        finally:
            _RECORDER.reset(token)


@pytest.mark.parametrize("kept", [False, True], ids=["softmax", "kept"])
@pytest.mark.parametrize("aligned", [None, (0, 33)], ids=["by an index", "by a view"])
def test_rounding_what_is_taken_leaves_the_bits_of_rounding_everything(aligned, kept):
    whole = block()
    regions = replace(whole.regions, aligned=aligned)
    options = {"scaling": 0.3, "logsumexp": whole.lse if kept else None}
    for request in requests_of(regions):
        results = []
        for rounded in (False, True):
            states = [part.bfloat16() if rounded else part for part in (whole.query, whole.key)]
            reader = request.reader(None, regions)
            reader.read_attention(0, *states, **options, dtype=None if rounded else torch.bfloat16)
            results.append([part for part in tree_iter(fields_of(reader.result())) if torch.is_tensor(part)])
        found, expected = results
        assert len(found) == len(expected) > 0
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        unrounded = request.reader(None, regions)
        unrounded.read_attention(0, whole.query, whole.key, **options)
        assert not torch.equal(next(tree_iter(fields_of(unrounded.result()))), expected[0])


def test_the_check_holds_a_few_blocks_and_looks_at_every_row_of_them(monkeypatch):
    """64 of 768 rows over 1024 columns, of which one copy would be 3 MiB; a block is 256 KiB."""
    query, key = states(1, 1024, 16)
    lse = log_sum_exp(query, key, 0.2)
    whole = Block(query, key, [0, 1], regions_of(1, 1024, 768, images=64), 0.2, None, None, lse)
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", CHUNK)
    with LiveBytes([query, key, lse]) as live:
        before = live.now
        check_logsumexp(whole)
        assert live.peak - before < 6 * 4 * CHUNK
    lse[0, 0, whole.regions.rows[0, 63]] += 1
    with pytest.raises(AssertionError, match="the attention kernel keeps"):
        check_logsumexp(whole)


def test_the_first_log_sum_exp_is_checked_though_a_window_comes_first():
    """A layer with a window keeps none. On a CPU none is checked unless that is asked for, and only one ever is."""
    right = block()
    wrong = right.lse.flip(1)

    def read(*kept: torch.Tensor, **options) -> None:
        reader = AttentionReader(AttentionRequest(neighbours=0), right.regions, **options)
        reader.read_attention(0, right.query, right.key, scaling=0.3, sliding_window=20)
        for layer, lse in enumerate(kept, start=1):
            reader.read_attention(layer, right.query, right.key, scaling=0.3, logsumexp=lse)
        reader.result()

    with pytest.raises(AssertionError, match="the attention kernel keeps"):
        read(wrong, check=True)
    read(right.lse, wrong, check=True)
    read(wrong)


def test_heads_are_copied_to_a_device_once(monkeypatch):
    """A GPU is waited for with every list that becomes a tensor there: for new layers of the same shapes none does."""
    whole = block()

    def read() -> None:
        for request in (AttentionRequest(neighbours=2), QueryKeyRequest()):
            reader = request.reader(None, whole.regions)
            for layer, lse in enumerate((None, whole.lse)):
                reader.read_attention(layer, whole.query, whole.key, scaling=0.3, logsumexp=lse)

    copied, original = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, **options: copied.append(args) or original(*args, **options))
    head_index.cache_clear()
    read()
    assert copied
    copied.clear()
    read()
    assert not copied
