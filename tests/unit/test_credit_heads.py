"""Scores of heads by hand, the choice among them, and the model that gives both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import rollout_batch

from atrl.credit.anchor_only import AnchorOnlyCredit
from atrl.credit.atrl import AtrlCredit
from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.base import HeadSearch
from atrl.credit.entropy import EntropyCredit
from atrl.credit.heads import calibrate, choose_heads, head_scores, read_heads
from atrl.credit.low_connectivity import LowConnectivityCredit
from atrl.credit.probe import AttentionProbe
from atrl.credit.product import ProductCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.forward import ForwardPass
from atrl.models.policy import response_logits
from atrl.splitting import EvenSplit, TokenBudgetSplit

DENSITY = [AtrlCredit, TokenLevelCredit, AnchorOnlyCredit, LowConnectivityCredit]


def capture_of(peak: list) -> AttentionCapture:
    """From peaks [rollout layer head response]."""
    peak = torch.tensor(peak)
    return AttentionCapture(
        total=peak,
        peak=peak,
        image=torch.zeros(peak.shape[0], peak.shape[3], 1),
        image_mask=torch.ones(peak.shape[0], 1, dtype=torch.bool),
        edges=None,
    )


PEAKS = capture_of(
    [
        [[[0.1, 0.3, 9.0], [0.4, 0.4, 9.0]], [[0.0, 0.0, 9.0], [0.6, 1.0, 9.0]]],  # the last token is padding
        [[[0.1, 0.1, 0.4], [0.1, 0.2, 0.3]], [[0.0, 0.0, 0.3], [0.5, 0.5, 0.5]]],
    ]
)
MASK = torch.tensor([[True, True, False], [True, True, True]])
"""Of two tokens and of three: the responses weigh 2/5 and 3/5."""


def test_relative_contrast_by_hand():
    """std/mean of the first: 0.1/0.2, 0, blind, 0.2/0.8; of the second: √0.02/0.2, √(0.02/3)/0.2, √0.02/0.1, 0."""
    first, second = [0.5, 0.0, 0.0, 0.25], [0.5 * 2**0.5, (1 / 6) ** 0.5, 2**0.5, 0.0]
    expected = [0.4 * one + 0.6 * other for one, other in zip(first, second, strict=True)]
    scores = head_scores(PEAKS, MASK, "relative_contrast")
    assert scores.shape == (2, 2) and scores.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_contrast_by_hand():
    first, second = [0.1, 0.0, 0.0, 0.2], [0.02**0.5, (0.02 / 3) ** 0.5, 0.02**0.5, 0.0]
    expected = [0.4 * one + 0.6 * other for one, other in zip(first, second, strict=True)]
    assert head_scores(PEAKS, MASK, "contrast").flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_sensitivity_by_hand():
    """Mean change of the first: 0.1, 0.4, 0 and 0.4; nothing else changes, and padding does not count."""
    peak = PEAKS.peak.clone()
    peak[0] = torch.tensor([[[0.2, 0.2, 0.0], [0.0, 0.8, 0.0]], [[0.0, 0.0, 0.0], [0.2, 0.6, 0.0]]])
    scores = head_scores(PEAKS, MASK, "sensitivity", blank=capture_of(peak.tolist()))
    assert scores.flatten().tolist() == pytest.approx([0.04, 0.16, 0.0, 0.16], abs=1e-6)


def test_sensitivity_needs_the_blanked_pictures():
    with pytest.raises(ValueError, match=r"^head_criterion=sensitivity compares with blanked pictures, got none"):
        head_scores(PEAKS, MASK, "sensitivity")


DEPENDENCY = torch.tensor([[3.0, 1.0, 9.0], [0.0, 5e-7, 2.0]])
"""Of the first response three quarters are at its first token; of the second all are at its last."""


def test_dependency_by_hand():
    """Relative peaks of the first are 0.5 and 1.5, 1 and 1, blind, 0.75 and 1.25; those of the second's last token 2,
    1.5, 3 and 1. What is below a millionth of a nat is rounding."""
    first, second = [0.75, 1.0, 0.0, 0.875], [2.0, 1.5, 3.0, 1.0]
    expected = [0.4 * one + 0.6 * other for one, other in zip(first, second, strict=True)]
    scores = head_scores(PEAKS, MASK, "dependency", dependency=DEPENDENCY)
    assert scores.dtype == torch.float64 and scores.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_response_that_no_masked_picture_changes_has_no_say():
    """It is not that its heads are blind: the other's scores are all there are."""
    changed = DEPENDENCY * torch.tensor([[1e-9], [1.0]])
    scores = head_scores(PEAKS, MASK, "dependency", dependency=changed)
    assert scores.flatten().tolist() == pytest.approx([2.0, 1.5, 3.0, 1.0], abs=1e-6)
    with pytest.raises(
        ValueError, match=r"^credit\.head_criterion=dependency goes by what masked pictures change, and"
    ):
        head_scores(PEAKS, MASK, "dependency", dependency=1e-9 * DEPENDENCY)


def test_dependency_needs_the_masked_pictures():
    with pytest.raises(ValueError, match=r"^head_criterion=dependency compares with masked pictures, got none"):
        head_scores(PEAKS, MASK, "dependency")


def test_a_response_of_one_token_or_none_has_no_say():
    """Its contrast is 0 in every head, whatever its peaks are."""
    alone = head_scores(PEAKS, torch.tensor([[True, False, False], [True, True, True]]), "contrast")
    without = head_scores(PEAKS, torch.tensor([[False] * 3, [True] * 3]), "contrast")
    torch.testing.assert_close(alone * 4 / 3, without)
    assert choose_heads(alone, 4) == choose_heads(without, 4)


def test_a_response_without_tokens_is_not_sensitive():
    """The other's peaks all change by half: their means are 0.2, 0.2, 0.1 and 0.5."""
    halved = capture_of((PEAKS.peak / 2).tolist())
    scores = head_scores(PEAKS, torch.tensor([[False] * 3, [True] * 3]), "sensitivity", blank=halved)
    assert scores.flatten().tolist() == pytest.approx([0.1, 0.1, 0.05, 0.25], abs=1e-6)


SCORES = torch.tensor([[0.1, 0.5], [0.5, 0.9], [0.5, 0.0]])


def test_the_best_heads_come_first_and_ties_go_to_the_lower():
    assert choose_heads(SCORES, 3) == ((1, 1), (0, 1), (1, 0))
    assert choose_heads(SCORES, 99) == ((1, 1), (0, 1), (1, 0), (2, 0), (0, 0), (2, 1))


def test_only_the_layers_that_are_asked_for():
    assert choose_heads(SCORES, 2, layers=[2, 0]) == ((0, 1), (2, 0))
    with pytest.raises(ValueError, match=r"^credit\.layers names layer 3, but the model has layers 0 to 2$"):
        choose_heads(SCORES, 2, layers=[1, 3])


def test_blind_heads_are_no_choice():
    with pytest.raises(ValueError, match=r"^credit\.heads=auto found no head that looks at a picture"):
        choose_heads(torch.zeros(2, 2), 1)
    with pytest.raises(AssertionError, match="finite"):
        choose_heads(torch.tensor([[float("nan"), 1.0]]), 1)


def search_by(criterion: str = "dependency", **options) -> HeadSearch:
    return TokenLevelCredit(heads="auto", head_criterion=criterion, **options).head_search


@pytest.mark.parametrize("split", [EvenSplit(size=64), EvenSplit(size=1), TokenBudgetSplit(max_tokens=60)], ids=str)
def test_calibrating_reads_what_a_probe_reads(policy, prompts, split):
    """And leaves kernel, mode and the global random state alone."""
    batch = rollout_batch([(prompts["wide"], 5), (prompts["two"], 9), (prompts["square"], 4)])
    request = AttentionRequest(row="own", sink_factor=2.0, neighbours=0)
    probe = AttentionProbe(policy, [request])
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(policy, batch)
    probe.detach()
    kernel = policy.config.get_text_config()._attn_implementation
    policy.train()
    state = torch.get_rng_state()
    search = search_by("contrast", row="own", sink_factor=2.0)
    widths = []
    head = policy.get_output_embeddings().register_forward_hook(lambda *parts: widths.append(parts[2].shape[-1]))
    scores = calibrate(policy, batch, search, split=split)
    head.remove()
    assert set(widths) == {1}  # no logits
    expected = head_scores(recorder.results()[request], batch.response_mask, "contrast")
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert scores.std() > 1e-4  # so that another row or sink rule would be seen
    assert policy.config.get_text_config()._attn_implementation == kernel and policy.training
    assert torch.equal(state, torch.get_rng_state())
    other = calibrate(policy, batch, search_by("contrast", row="predicting", sink_factor=2.0))
    assert not torch.allclose(other, expected, rtol=0, atol=1e-6)


def test_sensitivity_of_a_model_is_zero_exactly_where_nothing_is_blanked(policy, prompts):
    batch = rollout_batch([(prompts["wide"], 5), (prompts["square"], 4)])
    blank = [{**entry, "pixel_values": torch.zeros_like(entry["pixel_values"])} for entry in batch.pixels]
    assert (calibrate(policy, batch, search_by("sensitivity"), other=batch.pixels) == 0).all()
    assert (calibrate(policy, batch, search_by("sensitivity"), other=blank) > 0).all()


@pytest.mark.parametrize("split", [EvenSplit(size=1), TokenBudgetSplit(max_tokens=60)], ids=str)
def test_dependency_of_a_model_is_that_of_its_whole_batch(policy, prompts, split):
    """Whatever shares a pass, in whatever order: as from the divergences of all responses at once."""
    batch = rollout_batch([(prompts["wide"], 5), (prompts["two"], 9), (prompts["square"], 4)])
    masked = [{**entry, "pixel_values": torch.zeros_like(entry["pixel_values"])} for entry in batch.pixels]
    run, search = ForwardPass(temperature=0.7, banned_ids=(3,)), search_by("dependency")
    with torch.no_grad():
        own = run.scores(policy, batch)
        divergence = run.scores(policy, replace(batch, pixels=masked), against=own.rows).divergence
    assert (divergence[batch.response_mask] > 1e-6).all()
    capture = read_heads(policy, batch, search)
    expected = head_scores(capture, batch.response_mask, "dependency", dependency=divergence)
    scores = calibrate(policy, batch, search, other=masked, run=run, split=split)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    assert scores.std() > 1e-4
    for layer in policy.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.9  # which no measurement draws
    assert torch.equal(calibrate(policy.train(), batch, search, other=masked, run=run, split=split), scores)
    assert policy.training
    with pytest.raises(ValueError, match="they change no response"):
        calibrate(policy, batch, search, other=batch.pixels, run=run, split=split)


def test_layers_of_unequal_heads_are_refused(policy, prompts):
    batch = rollout_batch([(prompts["square"], 4)])
    policy.config.get_text_config().num_hidden_layers = 4  # as if one layer had no attention to read
    with pytest.raises(ValueError, match=r"^credit\.heads=auto needs 4 attention heads in each of .* 4 layers, got 12"):
        calibrate(policy, batch, search_by("contrast"))


@pytest.mark.parametrize("scheme", DENSITY)
def test_every_density_scheme_leaves_its_heads_open(scheme):
    options = {"auto_heads": 2, "head_criterion": "contrast", "layers": [1, 2], "row": "own", "sink_factor": 2.0}
    open_scheme = scheme(heads="auto", anchor_ratio=0.3, **options)
    assert open_scheme.head_search == HeadSearch(
        count=2, criterion="contrast", layers=(1, 2), row="own", sink_factor=2.0
    )
    with pytest.raises(ValueError, match=r"^credit\.heads=auto is resolved when training starts"):
        _ = open_scheme.requests
    known = open_scheme.with_heads(((1, 0), (2, 3)))
    assert known == scheme(heads=((1, 0), (2, 3)), anchor_ratio=0.3, **options | {"layers": None})
    assert known.head_search is None and known.requests[0].heads == ((1, 0), (2, 3))
    assert known.with_heads(((0, 0),)) is known


@pytest.mark.parametrize("scheme", DENSITY)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "autoo"}, r"^credit\.heads must be \[layer, head\] pairs, auto or null, got 'autoo': try auto$"),
        ({"auto_heads": 0}, r"^credit\.auto_heads must be at least 1, got 0: try 8$"),
        ({"layers": [1, 0, 1]}, r"^credit\.layers names 1 twice: name it once$"),
        ({"heads": [[0, 1], [2, 3], [0, 1]]}, r"^credit\.heads names \[0, 1\] twice: name it once$"),
        (
            {"layers": [2], "heads": [[0, 1], [2, 3]]},
            r"^credit\.layers=\[2\] has no effect beside credit\.heads=\[\[0, 1\], \[2, 3\]\], .*: set one .* to null$",
        ),
    ],
)
def test_ranges(scheme, options, message):
    with pytest.raises(ValueError, match=message):
        scheme(**options)


def test_a_product_looks_for_one_set_of_heads():
    product = ProductCredit(schemes=[TokenLevelCredit(heads="auto"), EntropyCredit(), AtrlCredit(heads="auto")])
    assert product.head_search == search_by()
    heads = ((0, 1), (2, 2))
    known = product.with_heads(heads)
    assert known == ProductCredit(schemes=[TokenLevelCredit(heads=heads), EntropyCredit(), AtrlCredit(heads=heads)])
    assert known.head_search is None and EntropyCredit().head_search is None
    with pytest.raises(ValueError, match=r"^credit\.schemes must agree on how heads=auto are found, got 2 ways"):
        ProductCredit(schemes=[TokenLevelCredit(heads="auto"), AtrlCredit(heads="auto", auto_heads=3)])


def test_layers_that_look_at_nothing_are_refused_even_if_others_look():
    """The second layer alone has scores above 0."""
    scores = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    assert choose_heads(scores, 1) == ((1, 0),)
    with pytest.raises(ValueError, match="found no head that looks at a picture"):
        choose_heads(scores, 1, layers=[0])
