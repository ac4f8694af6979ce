"""Attention sinks and connectivity density on matrices small enough to work out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from atrl.credit.attention import AttentionCapture
from atrl.credit.connectivity import connectivity_density, head_contrast, reduce_without_sinks, remove_sinks

SINK = [[0.6, 0.1, 0.0, 0.1], [0.5, 0.0, 0.2, 0.1], [0.7, 0.1, 0.1, 0.0]]
"""Three tokens by four columns; column 0 has 3, 2.5 and 28/9 even shares of its rows' mass (0.2, 0.2 and 0.225)."""


def without_sinks(
    rows: list[list[float]], factor: float, *, rows_of_padding: int = 0, columns_of_padding: int = 0
) -> Tensor:
    """One rollout, layer and head."""
    image = torch.nn.functional.pad(torch.tensor(rows), (0, columns_of_padding, 0, rows_of_padding))
    image_mask = torch.arange(image.shape[1]) < len(rows[0])
    response_mask = torch.arange(image.shape[0]) < len(rows)
    return remove_sinks(image[None, None], image_mask[None], response_mask[None], factor=factor)[0, 0]


def test_the_sink_is_dropped_and_the_rest_renormalised():
    """More than two even shares in all three rows, so column 0 goes and the rows are divided by 0.4, 0.5 and 0.3."""
    expected = torch.tensor([[0, 0.1 / 0.4, 0, 0.1 / 0.4], [0, 0, 0.2 / 0.5, 0.1 / 0.5], [0, 0.1 / 0.3, 0.1 / 0.3, 0]])
    torch.testing.assert_close(without_sinks(SINK, 2.0), expected)


def test_a_row_is_still_a_softmax_over_what_is_left():
    """Row 0 keeps 0.2 on the picture and 0.2 elsewhere of the 0.4 outside the sink: 1/2 and 1/2."""
    rest = 1 - torch.tensor(SINK).sum(dim=1)
    image = without_sinks(SINK, 2.0).sum(dim=1)
    assert image[0].item() == pytest.approx(0.5)
    torch.testing.assert_close(image + rest / torch.tensor([0.4, 0.5, 0.3]), torch.ones(3))


def test_the_factor_sets_the_threshold():
    """Two rows of three hold 3 even shares or more, one holds 3.1."""
    assert (without_sinks(SINK, 2.99)[:, 0] == 0).all()
    torch.testing.assert_close(without_sinks(SINK, 3.01), torch.tensor(SINK))


def test_mass_that_only_one_token_gives_is_no_sink():
    """0.9 in a single row is what an anchor looks like."""
    rows = [[0.1, 0.1, 0.0, 0.1], [0.0, 0.0, 0.9, 0.0], [0.1, 0.1, 0.0, 0.1]]
    torch.testing.assert_close(without_sinks(rows, 2.0), torch.tensor(rows))


def test_with_no_more_columns_than_the_factor_rounding_makes_no_sink():
    """3 · x / 3 is a little below some x."""
    mass = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    mass = mass[3.0 * mass / 3 < mass]
    rows = torch.nn.functional.pad(mass[:, None], (0, 2)).tolist()
    assert len(rows) > 10
    torch.testing.assert_close(without_sinks(rows, 3.0), torch.tensor(rows))


def test_half_of_the_rows_are_not_most():
    """0.9 > 2.2 · 0.25 in one row of two."""
    rows = [[0.1, 0.1, 0.1, 0.1], [0.9, 0.1, 0.0, 0.0]]
    torch.testing.assert_close(without_sinks(rows, 2.2), torch.tensor(rows))


def test_padding_rows_do_not_count():
    """With three rows of zeros beside three real ones no column would stand out in most."""
    padded = without_sinks(SINK, 2.0, rows_of_padding=3)
    torch.testing.assert_close(padded[:3], without_sinks(SINK, 2.0))
    assert (padded[3:] == 0).all()


def test_padding_columns_do_not_count_in_the_even_share():
    """Spread over eight columns the even shares would be half as large, and 0.5 five times one of them."""
    padded = without_sinks(SINK, 3.01, columns_of_padding=4)
    torch.testing.assert_close(padded[:, :4], torch.tensor(SINK))
    assert (padded[:, 4:] == 0).all()


def test_heads_and_rollouts_are_judged_alone():
    even = [[0.1] * 4] * 3
    image = torch.tensor([[SINK, even], [even, SINK]])
    left = remove_sinks(image, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool), factor=2.0)
    dropped = (left == 0).all(dim=2)
    assert dropped.nonzero().tolist() == [[0, 0, 0], [1, 1, 0]]  # rollout, head, column


def test_what_rows_of_padding_look_at_makes_no_sink():
    """Two of three rows look at column 0 alone, and are padding; the real row looks everywhere alike."""
    image = torch.tensor([[0.1, 0.1, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, False, False]])
    left = remove_sinks(image[None, None], torch.ones(1, 4, dtype=torch.bool), mask, factor=2.0)
    assert torch.equal(left[0, 0, 0], image[0])


def test_a_head_that_gives_everything_to_a_sink_stays_finite():
    left = without_sinks([[1.0, 0.0, 0.0, 0.0]] * 3, 2.0)
    assert left.isfinite().all() and (left == 0).all()


IMAGE = torch.tensor(  # [layer 2, head 2, token 2, image 3]
    [
        [[[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]], [[0.4, 0.0, 0.0], [0.1, 0.1, 0.1]]],
        [[[0.2, 0.2, 0.2], [0.0, 0.7, 0.0]], [[0.0, 0.0, 0.0], [0.3, 0.3, 0.3]]],
    ]
)[None]


def capture_of(image: Tensor) -> AttentionCapture:
    """From every head's mass on every image token."""
    return AttentionCapture(
        total=image.sum(dim=-1),
        peak=image.amax(dim=-1) if image.shape[-1] else image.sum(dim=-1),
        image=image.amax(dim=(1, 2)),
        image_mask=torch.ones(image.shape[0], image.shape[-1], dtype=torch.bool),
        edges=None,
    )


def density_of(image: Tensor, reduction: str, *, top_heads: int = 1, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones(image.shape[0], image.shape[3], dtype=torch.bool) if mask is None else mask
    return connectivity_density(capture_of(image), mask, reduction=reduction, top_heads=top_heads)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("mean", [(0.6 + 0.4 + 0.6 + 0.0) / 4, (0.5 + 0.3 + 0.7 + 0.9) / 4]),
        ("peak", [0.4, 0.7]),
        ("relative", [(3 / 4 + 8 / 5 + 4 / 9 + 0) / 4, (5 / 4 + 2 / 5 + 14 / 9 + 2) / 4]),
    ],
)
def test_density_by_hand(reduction, expected):
    """Peaks of the four heads: (0.3, 0.5), (0.4, 0.1), (0.2, 0.7), (0, 0.3); means 0.4, 0.25, 0.45, 0.15."""
    assert density_of(IMAGE, reduction)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("top_heads", "expected"),
    [
        (1, [0, 2]),
        (3, [(0 + 8 / 5 + 4 / 9) / 3, (2 + 2 / 5 + 14 / 9) / 3]),
        (9, [(3 / 4 + 8 / 5 + 4 / 9) / 4, (5 / 4 + 2 / 5 + 14 / 9 + 2) / 4]),
    ],
)
def test_top_heads_are_those_whose_relative_peaks_vary_most(top_heads, expected):
    """Relative peaks (3/4, 5/4), (8/5, 2/5), (4/9, 14/9), (0, 2): half their differences are 1/4, 3/5, 5/9 and 1."""
    assert density_of(IMAGE, "top_heads", top_heads=top_heads)[0].tolist() == pytest.approx(expected)


def test_contrast_by_hand_without_padding():
    """(0.2, 0.7) with 9 in a padded column: half their difference."""
    mask = torch.tensor([[True, True, False]])
    assert head_contrast(torch.tensor([[[0.2, 0.7, 9.0]]]), mask).item() == pytest.approx(0.25)


def masses_of_heads() -> tuple[Tensor, Tensor, Tensor]:
    """Two rollouts of four heads: nothing stands out; one row does; each row does, in a column of its own, so that the
    largest entries alone don't tell; and one column does in most rows. Then the masks of columns and rows."""
    generator = torch.Generator().manual_seed(0)
    image = 0.01 + 0.001 * torch.rand(2, 4, 9, 20, generator=generator)
    image[:, 1, 3, 5] = 0.5
    image[:, 2, range(9), range(9)] = 0.5
    image[:, 3, :6, 7] = 0.5
    image_mask, response_mask = torch.ones(2, 20, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    image_mask[1, 15:], response_mask[1, 7:] = False, False
    image[1, :, :, 15:] = 0
    image[1, :, 7:] = 0
    return image, image_mask, response_mask


@pytest.mark.parametrize("factor", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("heads", [[0, 1], [0, 1, 2, 3], [2], [3]])
def test_heads_without_doubt_are_left_alone(monkeypatch, heads, factor):
    """The same bits as if every head had been looked at: with none that is in doubt, with some, with nothing else.

    0.5 is beyond four even shares of (0.5 + 19 · 0.01 or 14 · 0.01) / 20 or 15.
    """
    image, *masks = masses_of_heads()
    image = image[:, heads]
    before, looked = image.clone(), []

    def remove(image, *masks, **options):
        looked.append(image.shape[0] * image.shape[1])
        return remove_sinks(image, *masks, **options)

    monkeypatch.setattr("atrl.credit.connectivity.remove_sinks", remove)
    left, total, peak = reduce_without_sinks(image, *masks, factor=factor)
    expected = remove_sinks(image, *masks, factor=factor) if factor else image
    assert torch.equal(left, expected) and torch.equal(image, before)
    assert torch.equal(total, expected.sum(dim=-1)) and torch.equal(peak, expected.amax(dim=-1))
    doubtful = 2 * len({2, 3} & set(heads)) if factor else 0
    assert sum(looked) == doubtful
    assert (left == 0).all(dim=2)[:, :, :15].any().item() == (bool(factor) and 3 in heads)


class Called(TorchDispatchMode):
    """The names of the operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_on_other_devices_every_head_is_reduced_once_and_nothing_waited_for():
    """A tensor without numbers stands for a GPU's: to ask for one would fail."""
    image, image_mask, mask = (torch.empty(shape, device="meta") for shape in ((2, 3, 5, 8), (2, 8), (2, 5)))
    masks = image_mask.bool(), mask.bool()
    with Called() as sinks:
        remove_sinks(image, *masks, factor=4.0)
    with Called() as whole:
        left, total, peak = reduce_without_sinks(image, *masks, factor=4.0)
    assert whole.names == [*sinks.names, "sum", "amax"]
    assert left.shape == image.shape and total.shape == peak.shape == image.shape[:3]


@pytest.mark.parametrize("reduction", ["mean", "peak", "relative", "top_heads"])
def test_without_a_picture_the_density_is_zero(reduction):
    nothing = torch.zeros(2, 6, 5, 0)
    masks = torch.zeros(2, 0, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    kept, total, peak = reduce_without_sinks(nothing, *masks, factor=4.0)
    assert kept.shape == nothing.shape and torch.equal(total, torch.zeros(2, 6, 5)) and torch.equal(peak, total)
    assert density_of(kept.unflatten(1, (2, 3)), reduction).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("reduction", ["mean", "peak", "relative", "top_heads"])
def test_padding_adds_nothing_to_the_density(reduction):
    """Neither image columns of 0 nor, on tokens that are not trained, whatever stands there."""
    expected = density_of(IMAGE, reduction)
    assert torch.equal(density_of(torch.nn.functional.pad(IMAGE, (0, 5)), reduction), expected)
    longer = torch.nn.functional.pad(IMAGE, (0, 0, 0, 1), value=float("nan"))
    padded = density_of(longer, reduction, mask=torch.tensor([[True, True, False]]))
    assert torch.equal(padded, torch.nn.functional.pad(expected, (0, 1)))
