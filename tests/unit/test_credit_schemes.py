"""AT-RL's own choices, and what becomes of a scheme's weights. What all schemes promise: test_credit_invariants.py."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from credit_evidence import HEADS, LAYERS, ROWS, batch_of, evidence_of, reduced

from atrl.callbacks.anchor_credit import weight_statistics
from atrl.credit import metis
from atrl.credit.atrl import AtrlCredit
from atrl.credit.attention import AttentionCapture, Edges
from atrl.credit.base import normalise, normalise_batch, top_tokens
from atrl.credit.bound import spread_advantages
from atrl.credit.reading import read_tokens, reading_mask
from atrl.credit.uniform import UniformCredit
from atrl.types import CreditOutput, Evidence, Problem, ReadingRule


def assign(scheme, rows) -> CreditOutput:
    return scheme.assign(batch_of(rows), evidence_of(scheme, rows))


def assign_masses(scheme, image: torch.Tensor) -> CreditOutput:
    """For one response, from every head's mass on every image token: [layer head response image]."""
    length, width = image.shape[2:]
    part = reduced(image, torch.zeros(image.shape[0], length, length), scheme.requests[0])
    capture = AttentionCapture(
        total=part["total"][None],
        peak=part["peak"][None],
        image=part["image"][None],
        image_mask=torch.ones(1, width, dtype=torch.bool),
        edges=Edges(*(part[None] for part in part["edges"])),
    )
    batch = batch_of([(length, width)])
    blank = torch.zeros(1, length)
    return scheme.assign(batch, Evidence(blank, blank, {scheme.requests[0]: capture}))


def test_anchors_get_three_times_the_weight_of_the_rest():
    """Of 12 tokens round(0.25·12) = 3 are anchors: 3·3 + 9·1 = 18 over 12 is 1.5, so the weights are 2 and 2/3."""
    output = assign(AtrlCredit(anchor_ratio=0.25), [(12, 16)])
    assert output.anchors.sum() == 3
    torch.testing.assert_close(output.weights, torch.where(output.anchors, 2.0, 2 / 3))


@pytest.mark.parametrize("num_clusters", [1, 2, 8, 16])
def test_the_anchor_ratio_holds_for_every_number_of_clusters(num_clusters):
    """round(0.15·40) = 6, round(0.15·5) = 1; without a picture no token is an anchor."""
    output = assign(AtrlCredit(num_clusters=num_clusters), [(40, 16), (5, 30), (17, 0)])
    assert output.anchors.sum(dim=1).tolist() == [6, 1, 0]


def test_a_cluster_holds_two_tokens_or_more(monkeypatch):
    """K = min(8, ⌊T/2⌋), and METIS is not asked for a single cluster."""
    asked = []
    original = metis.partition

    def partition(starts, *rest, num_clusters, seed):
        asked.append((len(starts) - 1, num_clusters, seed))
        return original(starts, *rest, num_clusters=num_clusters, seed=seed)

    monkeypatch.setattr(metis, "partition", partition)
    assign(AtrlCredit(seed=5), [(length, 4) for length in (40, 16, 15, 5, 4, 3, 2, 1)])
    assert asked == [(40, 8, 5), (16, 8, 5), (15, 7, 5), (5, 2, 5), (4, 2, 5)]


def test_auto_cuts_into_the_root_of_the_tokens(monkeypatch):
    """√40 is 6.3, √12 3.5 (3.46, so 3) and √5 2.2; √3 is 1.7, but of 3 tokens ⌊3/2⌋ = 1 part needs no METIS."""
    asked = []
    original = metis.partition

    def partition(*graph, num_clusters, seed):
        asked.append(num_clusters)
        return original(*graph, num_clusters=num_clusters, seed=seed)

    monkeypatch.setattr(metis, "partition", partition)
    assign(AtrlCredit(num_clusters="auto"), [(40, 4), (12, 4), (5, 4), (3, 4)])
    assert asked == [6, 3, 2]


def test_the_token_that_reads_one_column_is_an_anchor():
    """By the peak; the token that spreads as much mass over the picture is not."""
    image = torch.full((LAYERS, HEADS, 12, 16), 0.01)
    image[1, 2, 4, 7] = 0.9
    image[:, :, 9] = 0.05
    # One token is the anchor of its cluster, whichever tokens share it, if clusters rank by their peak.
    by_peak = assign_masses(AtrlCredit(anchor_ratio=1 / 12, rank_clusters="peak", reduction="peak"), image)
    assert by_peak.anchors[0].nonzero()[:, 0].tolist() == [4]
    by_mean = AtrlCredit(anchor_ratio=1 / 12, reduction="mean", sink_factor=0, rank_clusters="peak")
    assert assign_masses(by_mean, image).anchors[0].nonzero()[:, 0].tolist() == [9]


def test_without_a_picture_every_token_weighs_the_same():
    for scheme in (AtrlCredit(), AtrlCredit(weights="load_map", rest_weight=0.0)):
        output = assign_masses(scheme, torch.zeros(LAYERS, HEADS, 17, 3))
        assert (output.weights == 1).all() and not output.anchors.any()


def test_sink_factor_zero_is_off():
    """One column holds most of every row's mass in the first head: four times its even share and more."""
    image = torch.rand(LAYERS, HEADS, 12, 16, generator=torch.Generator().manual_seed(0)) / 20
    image[0, 0, :, 3] = 5.0
    image = image / 6
    kept, dropped = (
        assign_masses(AtrlCredit(sink_factor=factor, reduction="peak"), image).density for factor in (0, 4.0)
    )
    torch.testing.assert_close(kept[0], image.amax(dim=(0, 1, 3)))
    assert (dropped < kept).all()


def test_response_edges_are_read_only_where_the_graph_has_them():
    assert AtrlCredit(neighbours=5, edges="both").requests[0].neighbours == 5
    assert AtrlCredit(edges="similarity").requests[0].neighbours == 0
    assert AtrlCredit(num_clusters=1).requests[0].neighbours == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ratio": 0.0}, r"credit\.anchor_ratio must be in \(0, 1\], got 0\.0"),
        ({"anchor_ratio": 1.5}, r"credit\.anchor_ratio must be in \(0, 1\], got 1\.5"),
        ({"num_clusters": 0}, r"credit\.num_clusters must be at least 1, got 0"),
        ({"neighbours": 0}, r"credit\.neighbours must be at least 1, got 0"),
        ({"rest_weight": -1.0}, r"credit\.rest_weight must be between 0 and .* got -1\.0 and 3\.0: try 1 and 3$"),
        ({"rest_weight": 4.0}, r"credit\.rest_weight must be between 0 and .* got 4\.0 and 3\.0"),
        ({"rest_weight": 0.0, "anchor_weight": 0.0}, r"credit\.anchor_weight > 0, got 0\.0 and 0\.0"),
        ({"sink_factor": -1.0}, r"credit\.sink_factor must be 0 \(off\) or more, got -1\.0"),
        ({"top_heads": 0}, r"credit\.top_heads must be at least 1, got 0"),
        ({"workers": -1}, r"credit\.workers must be 0 .* or more, got -1: try auto$"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        AtrlCredit(**options)


def test_normalise_by_hand():
    """[1, 3] over their mean 2; zeros become ones; masked entries count for nothing, NaN included; no token is 0."""
    weights = torch.tensor([[1.0, 3.0, 7.0], [0.0, 0.0, 5.0], [0.0, 2.0, float("nan")], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert normalise(weights, mask).tolist() == [[0.5, 1.5, 0], [1, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_normalise_batch_by_hand():
    """Four trained tokens over a sum of 8; the second response stays at nothing. All zeros become ones."""
    weights = torch.tensor([[1.0, 7.0], [0.0, 0.0], [5.0, 5.0]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0]], dtype=torch.bool)
    assert normalise_batch(weights, mask).tolist() == [[0.5, 3.5], [0, 0], [0, 0]]
    assert normalise_batch(0 * weights, mask).tolist() == [[1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38])
def test_weights_too_small_to_scale_are_none(size):
    """3 over such a sum is beyond float32. A sum of 1e-37 is not."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    weights = torch.tensor([[0.0, size, 0.0, 0.0], [0.0, size, 0.0, 0.0]])
    assert torch.equal(normalise(weights, mask), mask.float())
    kept = normalise(torch.tensor([[0.0, 1e-37, 0.0, 0.0], [5e-38, 5e-38, 0.0, 0.0]]), mask)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))


def test_weights_too_large_to_scale_are_none():
    """Their sum is no number, and nor would the weights be. A sum of 3e38 is one."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = normalise(torch.tensor([[2e38, 2e38, 1.0], [1e38, 2e38, 0.0]]), mask)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 0.0]]))


@pytest.mark.parametrize("broken", [float("inf"), -float("inf"), float("nan")])
def test_weights_that_are_no_numbers_are_not_mended(broken):
    """A run must stop at them, and not train with uniform credit under the scheme's name."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    found = normalise(torch.tensor([[1.0, broken, 1.0], [1.0, 3.0, broken]]), mask)
    assert not found[0].isfinite().all()
    assert found[1].tolist() == [0.5, 1.5, 0.0]


def test_top_tokens_by_hand():
    """round(0.5·3) = 2 of three; the earlier of two equals; masked scores, however large, never.

    Nor a score of 0: of two places one is filled, or neither. Nor any where all are equal, as a single one is.
    """
    scores = torch.tensor(
        [
            [0.2, -0.1, 0.2, 9.0],
            [-5.0, 9.0, 9.0, 9.0],
            [0.1, 0.2, 0.1, 9.0],
            [0.1, 0.1, 0.1, 9.0],
            [0.0, 0.0, 0.4, 9.0],
            [0.0, 0.0, 0.0, 9.0],
        ]
    )
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], *[[1, 1, 1, 0]] * 4], dtype=torch.bool)
    expected = [[0, 0], [0, 2], [2, 0], [2, 1], [4, 2]]
    assert top_tokens(scores, mask, ratio=0.5).nonzero().tolist() == expected


def test_uniform_is_bit_identical_to_no_credit():
    batch = batch_of(ROWS)
    advantages = torch.randn(len(ROWS), generator=torch.Generator().manual_seed(0))
    uniform = UniformCredit().assign(batch, None)
    plain, weighted = (spread_advantages(advantages, batch.response_mask, credit) for credit in (None, uniform))
    mask = batch.response_mask
    assert torch.equal(plain[mask], weighted[mask])
    assert torch.equal(plain[mask], advantages.repeat_interleave(mask.sum(dim=1)))


def test_weights_and_trajectory_scale_multiply_the_advantage():
    """Row 0: 2·(0.5, 1.5). Row 1: -4·0.25·(1, 1)."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    credit = CreditOutput(torch.tensor([[0.5, 1.5], [1.0, 1.0]]), trajectory_scale=torch.tensor([1.0, 0.25]))
    assert spread_advantages(torch.tensor([2.0, -4.0]), mask, credit).tolist() == [[1.0, 3.0], [-1.0, -1.0]]
    unscaled = replace(credit, trajectory_scale=None)
    assert spread_advantages(torch.tensor([2.0, -4.0]), mask, unscaled).tolist() == [[1.0, 3.0], [-4.0, -4.0]]
    one = CreditOutput(torch.ones(2, 1), trajectory_scale=credit.trajectory_scale)  # a response of a single token
    assert spread_advantages(torch.tensor([2.0, -4.0]), mask[:, :1], one).tolist() == [[2.0], [-1.0]]


@pytest.mark.parametrize(
    "credit_on, expected",
    [
        ("all", [[1.0, 3.0], [-1.0, -3.0], [0.0, 0.0]]),
        ("positive", [[1.0, 3.0], [-2.0, -2.0], [0.0, 0.0]]),
        ("negative", [[2.0, 2.0], [-1.0, -3.0], [0.0, 0.0]]),
    ],
)
def test_weights_reach_only_rollouts_whose_advantage_has_the_sign(credit_on, expected):
    mask = torch.ones(3, 2, dtype=torch.bool)
    credit = CreditOutput(weights=torch.tensor([[0.5, 1.5]] * 3))
    advantages, scale = torch.tensor([2.0, -2.0, 0.0]), torch.tensor([0.5, 4.0, 2.0])
    assert spread_advantages(advantages, mask, credit, credit_on=credit_on).tolist() == expected
    scaled = spread_advantages(advantages, mask, replace(credit, trajectory_scale=scale), credit_on=credit_on)
    assert scaled.tolist() == (torch.tensor(expected) * scale[:, None]).tolist()  # of every rollout, weighed or not


def test_weight_statistics_by_hand():
    """Trained weights 0, 1, 2: mean 1, variance (1 + 0 + 1)/3; one of the three is an anchor."""
    weights, mask = torch.tensor([[0.0, 1.0], [2.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    anchors = torch.tensor([[False, False], [True, True]])
    assert weight_statistics(CreditOutput(weights, anchors=anchors), mask) == pytest.approx(
        {"credit/weight_max": 2.0, "credit/weight_std": (2 / 3) ** 0.5, "credit/anchor_fraction": 1 / 3}
    )
    assert "credit/anchor_fraction" not in weight_statistics(CreditOutput(weights), mask)


def test_agreement_with_reading_tokens_by_hand():
    """Of five tokens two read and three are anchors; one is both."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    anchors = torch.tensor([[True, True, True, False, False]])
    reading = torch.tensor([[True, False, False, True, False]])
    metrics = weight_statistics(CreditOutput(torch.ones(1, 5), anchors=anchors), mask, reading)
    assert metrics["credit/anchor_recall"] == 1 / 2 and metrics["credit/anchor_precision"] == 1 / 3
    metrics = weight_statistics(CreditOutput(torch.ones(1, 5), anchors=torch.zeros_like(mask)), mask, reading)
    assert metrics["credit/anchor_recall"] == 0  # of no anchors there is no share that reads
    assert "credit/anchor_precision" not in metrics


RULE = ReadingRule(r"\((\d),(\d)\)", count=1)


def test_read_tokens_are_the_digits_of_the_first_reading(processor):
    tokenizer = processor.tokenizer
    token_ids = tokenizer("Aé 😀 is at (2,3), so (4,5).")["input_ids"] + [tokenizer.eos_token_id]
    chosen = read_tokens(token_ids, RULE.spans, tokenizer)
    digits = [place for place, token in enumerate(token_ids) if tokenizer.decode([token]) in "2345"]
    assert [place for place, read in enumerate(chosen) if read] == digits[:2]


def test_reading_sees_the_spaces_that_a_decoder_takes_from_the_first_token():
    """As SentencePiece's do: token by token " a red circle. It is red" would be one word, without a match."""
    pieces = [" a", " red", " circle", ".", " It", " is", " red"]
    decode = {"decode": lambda self, ids: "".join(pieces[token] for token in ids).removeprefix(" ")}
    rule = ReadingRule(r"\b(red|blue)\b", count=1)
    chosen = read_tokens(list(range(7)), rule.spans, type("Tokenizer", (), decode)())
    assert [place for place, read in enumerate(chosen) if read] == [1]


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_read_if_one_of_its_characters_is(seed):
    """Against characters marked one by one: tokens without text, spans that share a token, groups without a match."""
    generator = random.Random(seed)
    pieces = ["".join(generator.choices("abc", k=generator.choice((0, 1, 1, 2, 5)))) for _ in range(30)]
    length = sum(map(len, pieces))
    spans = [tuple(sorted(generator.choices(range(length + 1), k=2))) for _ in range(3)] + [(-1, -1), (7, 7)]
    tokenizer = type("Tokenizer", (), {"decode": lambda self, ids: "".join(pieces[token] for token in ids)})()
    marked = {place for start, stop in spans for place in range(start, stop)}
    ends = list(itertools.accumulate(map(len, pieces)))
    expected = [not marked.isdisjoint(range(end - len(piece), end)) for end, piece in zip(ends, pieces, strict=True)]
    assert read_tokens(list(range(30)), lambda text: spans, tokenizer) == expected


def test_reading_mask_covers_trained_tokens_of_problems_with_a_rule(processor):
    token_ids = processor.tokenizer("At (2,3)")["input_ids"]
    rollouts = [
        SimpleNamespace(token_ids=token_ids),
        SimpleNamespace(token_ids=token_ids[:-2]),
    ]  # the second stops at "(2,"

    def group(rule: ReadingRule | None):
        return SimpleNamespace(prompt=SimpleNamespace(problem=Problem("p", "?", "!", reading=rule)), rollouts=rollouts)

    mask = torch.ones(4, len(token_ids), dtype=torch.bool)
    mask[[1, 3], -2:] = False
    found = reading_mask([group(None), group(RULE)], processor.tokenizer, mask)
    pieces = [processor.tokenizer.decode([token]) for token in token_ids]
    assert found[2].nonzero()[:, 0].tolist() == [pieces.index("2"), pieces.index("3")]
    assert not found[[0, 1, 3]].any()
    mask[2, pieces.index("3")] = False
    untrained = reading_mask([group(None), group(RULE)], processor.tokenizer, mask)
    assert untrained[2].nonzero()[:, 0].tolist() == [pieces.index("2")]
    assert reading_mask([group(None)], processor.tokenizer, mask[:2]) is None
