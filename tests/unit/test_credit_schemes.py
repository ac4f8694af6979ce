"""What every credit scheme promises, and what becomes of its weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from atrl.callbacks.anchor_credit import read_tokens, reading_mask, weight_statistics
from atrl.credit import metis
from atrl.credit.atrl import AtrlCredit
from atrl.credit.base import normalise
from atrl.credit.connectivity import connectivity_density
from atrl.credit.uniform import UniformCredit
from atrl.module import spread_advantages
from atrl.types import AttentionCapture, CreditOutput, Experience, Problem, ReadingRule

LAYERS, HEADS = 2, 3
ROWS = [(40, 16), (1, 9), (17, 0), (5, 30), (2, 1), (12, 16)]
"""Response and image tokens of each rollout: one token alone, no picture, fewer than 2·8 tokens, all of them ragged."""
SCHEMES = [
    UniformCredit(),
    *(
        AtrlCredit(reduction=reduction, weights=weights, edges=edges)
        for reduction in ("peak", "mean")
        for weights in ("anchors", "load_map")
        for edges in ("attention", "similarity", "both")
    ),
    AtrlCredit(rest_weight=0.0),
    AtrlCredit(rest_weight=0.0, weights="load_map", num_clusters=16, sink_factor=0),
    AtrlCredit(num_clusters=1, neighbours=1),
]


def non_defaults(scheme) -> str:
    """A short name for a test's id."""
    options = [value for name, value in vars(scheme).items() if value != getattr(type(scheme), name)]
    return "-".join([scheme.name, *map(str, options)])


every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=non_defaults)


def attention(length: int, images: int) -> tuple[Tensor, Tensor]:
    """Softmax rows over `images` columns, the response so far and one more column: their image and response parts."""
    generator = torch.Generator().manual_seed(100 * length + images)
    scores = 2 * torch.randn(LAYERS, HEADS, length, images + length + 1, generator=generator)
    later = torch.ones(length, length, dtype=torch.bool).triu()
    scores[..., images : images + length].masked_fill_(later, float("-inf"))
    mass = scores.softmax(-1)
    return mass[..., :images], mass[..., images : images + length].mean(dim=(0, 1))


def batch_of(rows: list[tuple[int, int]], *, padding: int = 0) -> tuple[Experience, AttentionCapture]:
    """The rollouts `rows` as one batch, padded to the longest and then by `padding`."""
    longest, widest = (max(sizes) + padding for sizes in zip(*rows, strict=True))
    image = torch.zeros(len(rows), LAYERS, HEADS, longest, widest)
    response = torch.zeros(len(rows), longest, longest)
    for row, (length, images) in enumerate(rows):
        image[row, :, :, :length, :images], response[row, :length, :length] = attention(length, images)
    lengths, widths = torch.tensor(rows).T
    mask = torch.arange(longest)[None] < lengths[:, None]
    blank = torch.zeros(len(rows), longest + 1, dtype=torch.long)
    batch = Experience(blank, blank, mask, [{}] * len(rows), torch.zeros(mask.shape))
    return batch, AttentionCapture(image, torch.arange(widest)[None] < widths[:, None], response)


@every_scheme
def test_weights_average_one_over_the_trained_tokens_and_are_zero_elsewhere(scheme):
    batch, capture = batch_of(ROWS)
    weights, mask = scheme(batch, capture).weights, batch.response_mask
    assert weights.shape == mask.shape and weights.isfinite().all() and (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(dim=1) / mask.sum(dim=1), torch.ones(len(ROWS)), atol=1e-6, rtol=0)
    assert weights[1, 0].item() == pytest.approx(1.0)  # the response of one token


@every_scheme
def test_weights_carry_no_gradient(scheme):
    batch, capture = batch_of(ROWS)
    capture.image.requires_grad_()
    capture.response.requires_grad_()
    assert not scheme(batch, capture).weights.requires_grad


@every_scheme
def test_weights_are_deterministic_and_change_nothing_else(scheme):
    batch, capture = batch_of(ROWS)
    state, image, response = torch.get_rng_state(), capture.image.clone(), capture.response.clone()
    first, second = scheme(batch, capture), scheme(batch, capture)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(image, capture.image) and torch.equal(response, capture.response)


@every_scheme
def test_weights_do_not_depend_on_the_rest_of_the_batch(scheme):
    """Each rollout alone, in twos, and in a batch with more padding."""
    together = scheme(*batch_of(ROWS))
    for size in (1, 2):
        for start in range(0, len(ROWS), size):
            part = scheme(*batch_of(ROWS[start : start + size], padding=7 * (size - 1)))
            for row, (length, _) in enumerate(ROWS[start : start + size], start):
                torch.testing.assert_close(
                    part.weights[row - start, :length], together.weights[row, :length], atol=1e-6, rtol=0
                )
                if together.anchors is not None:
                    assert torch.equal(part.anchors[row - start, :length], together.anchors[row, :length])


def test_anchors_get_three_times_the_weight_of_the_rest():
    """Of 12 tokens round(0.25·12) = 3 are anchors: 3·3 + 9·1 = 18 over 12 is 1.5, so the weights are 2 and 2/3."""
    output = AtrlCredit(anchor_ratio=0.25)(*batch_of([(12, 16)]))
    assert output.anchors.sum() == 3
    torch.testing.assert_close(output.weights, torch.where(output.anchors, 2.0, 2 / 3))


@pytest.mark.parametrize("num_clusters", [1, 2, 8, 16])
def test_the_anchor_ratio_holds_for_every_number_of_clusters(num_clusters):
    """round(0.15·40) = 6, round(0.15·5) = 1; without a picture no token is an anchor."""
    output = AtrlCredit(num_clusters=num_clusters)(*batch_of([(40, 16), (5, 30), (17, 0)]))
    assert output.anchors.sum(dim=1).tolist() == [6, 1, 0]


def test_a_cluster_holds_two_tokens_or_more(monkeypatch):
    """K = min(8, ⌊T/2⌋), and METIS is not asked for a single cluster."""
    asked = []
    original = metis.partition

    def partition(starts, *rest, num_clusters, seed):
        asked.append((len(starts) - 1, num_clusters, seed))
        return original(starts, *rest, num_clusters=num_clusters, seed=seed)

    monkeypatch.setattr(metis, "partition", partition)
    AtrlCredit(seed=5)(*batch_of([(length, 4) for length in (40, 16, 15, 5, 4, 3, 2, 1)]))
    assert asked == [(40, 8, 5), (16, 8, 5), (15, 7, 5), (5, 2, 5), (4, 2, 5)]


def test_the_token_that_reads_one_column_is_an_anchor():
    """By the peak; the token that spreads as much mass over the picture is not."""
    batch, capture = batch_of([(12, 16)])
    image = torch.full_like(capture.image, 0.01)
    image[0, 1, 2, 4, 7] = 0.9
    image[0, :, :, 9] = 0.05
    output = AtrlCredit(anchor_ratio=1 / 12)(batch, replace(capture, image=image))
    assert output.anchors[0].nonzero()[:, 0].tolist() == [4]
    spread = AtrlCredit(anchor_ratio=1 / 12, reduction="mean", sink_factor=0)(batch, replace(capture, image=image))
    assert spread.anchors[0].nonzero()[:, 0].tolist() == [9]


def test_without_a_picture_every_token_weighs_the_same():
    for scheme in (AtrlCredit(), AtrlCredit(weights="load_map", rest_weight=0.0)):
        batch, capture = batch_of([(17, 0), (17, 3)])
        output = scheme(batch, replace(capture, image=torch.zeros_like(capture.image)))
        assert (output.weights == 1).all() and not output.anchors.any()


def test_sink_factor_zero_is_off():
    """One column holds most of every row's mass in the first head: four times its even share and more."""
    batch, capture = batch_of([(12, 16)])
    image = capture.image.clone()
    image[0, 0, 0, :, 3] = 5.0
    capture = replace(capture, image=image / 6)
    kept, dropped = (AtrlCredit(sink_factor=factor)(batch, capture).density for factor in (0, 4.0))
    assert torch.equal(kept, connectivity_density(capture.image, reduction="peak"))
    assert (dropped < kept).all()


def test_atrl_needs_attention():
    with pytest.raises(AssertionError, match="needs attention"):
        AtrlCredit()(batch_of([(3, 4)])[0], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ratio": 0.0}, r"credit\.anchor_ratio must be in \(0, 1\], got 0\.0"),
        ({"anchor_ratio": 1.5}, r"credit\.anchor_ratio must be in \(0, 1\], got 1\.5"),
        ({"num_clusters": 0}, r"credit\.num_clusters must be at least 1, got 0"),
        ({"neighbours": 0}, r"credit\.neighbours must be at least 1, got 0"),
        ({"rest_weight": -1.0}, r"credit\.rest_weight must be between 0 and .* got -1\.0 and 3\.0"),
        ({"rest_weight": 4.0}, r"credit\.rest_weight must be between 0 and .* got 4\.0 and 3\.0"),
        ({"rest_weight": 0.0, "anchor_weight": 0.0}, r"credit\.anchor_weight > 0, got 0\.0 and 0\.0"),
        ({"sink_factor": -1.0}, r"credit\.sink_factor must be 0 \(off\) or more, got -1\.0"),
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


def test_uniform_is_bit_identical_to_no_credit():
    batch, _ = batch_of(ROWS)
    advantages = torch.randn(len(ROWS), generator=torch.Generator().manual_seed(0))
    plain, uniform = (
        spread_advantages(advantages, batch.response_mask, credit) for credit in (None, UniformCredit()(batch, None))
    )
    mask = batch.response_mask
    assert torch.equal(plain[mask], uniform[mask])
    assert torch.equal(plain[mask], advantages.repeat_interleave(mask.sum(dim=1)))


def test_weights_and_trajectory_scale_multiply_the_advantage():
    """Row 0: 2·(0.5, 1.5). Row 1: -4·0.25·(1, 1)."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    credit = CreditOutput(torch.tensor([[0.5, 1.5], [1.0, 1.0]]), trajectory_scale=torch.tensor([1.0, 0.25]))
    assert spread_advantages(torch.tensor([2.0, -4.0]), mask, credit).tolist() == [[1.0, 3.0], [-1.0, -1.0]]
    unscaled = replace(credit, trajectory_scale=None)
    assert spread_advantages(torch.tensor([2.0, -4.0]), mask, unscaled).tolist() == [[1.0, 3.0], [-4.0, -4.0]]


def test_weight_statistics_by_hand():
    """Trained weights 0, 1, 2: mean 1, variance (1 + 0 + 1)/3; one of the three is an anchor."""
    weights, mask = torch.tensor([[0.0, 1.0], [2.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    anchors = torch.tensor([[False, False], [True, True]])
    assert weight_statistics(CreditOutput(weights, anchors=anchors), mask) == pytest.approx(
        {"credit/weight_max": 2.0, "credit/weight_std": (2 / 3) ** 0.5, "credit/anchor_fraction": 1 / 3}
    )
    assert "credit/anchor_fraction" not in weight_statistics(CreditOutput(weights), mask)


RULE = ReadingRule(r"\((\d),(\d)\)", count=1)


def test_read_tokens_are_the_digits_of_the_first_reading(processor):
    tokenizer = processor.tokenizer
    token_ids = tokenizer("Aé 😀 is at (2,3), so (4,5).")["input_ids"] + [tokenizer.eos_token_id]
    chosen = read_tokens(token_ids, RULE.spans, tokenizer)
    digits = [place for place, token in enumerate(token_ids) if tokenizer.decode([token]) in "2345"]
    assert [place for place, read in enumerate(chosen) if read] == digits[:2]


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
