"""Pictures and videos with patches blacked out, or in each other's places."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from atrl.credit.base import PictureMask
from atrl.credit.bound import picture_scale
from atrl.credit.masking import PictureScale, black_patch, mask_pixels, mask_scale
from atrl.credit.visual_dependency import VisualDependencyCredit

SCALE = {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.5, 2.0)}


def entry(patches: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(patches, 6, generator=generator),
        "image_grid_thw": torch.tensor([[1, patches, 1]]),
    }


def test_a_black_patch_by_hand():
    """(0 - 0.5)/0.5 = -1, (0 - 0.25)/0.5 = -0.5, 0: two numbers a channel, channel by channel."""
    assert black_patch(SCALE["mean"], SCALE["std"], 6).tolist() == [-1, -1, -0.5, -0.5, 0, 0]
    with pytest.raises(AssertionError, match="does not divide into 3 channels"):
        black_patch(SCALE["mean"], SCALE["std"], 7)


@pytest.mark.parametrize(("ratio", "patches", "masked"), [(0.5, 8, 4), (0.6, 4, 2), (0.0, 4, 0), (1.0, 4, 4)])
def test_the_share_of_patches_is_blacked_out_and_the_rest_is_kept(ratio, patches, masked):
    picture = entry(patches)
    before = picture["pixel_values"].clone()
    [result] = mask_pixels([picture], ["0/p/0/0"], PictureMask(ratio=ratio), **SCALE)
    black = (result["pixel_values"] == black_patch(**SCALE, width=6)).all(dim=1)
    assert black.sum() == masked
    assert torch.equal(result["pixel_values"][~black], before[~black])
    assert torch.equal(picture["pixel_values"], before) and result["image_grid_thw"] is picture["image_grid_thw"]


def test_a_group_sees_one_masked_picture_whatever_the_batch_is_cut_into():
    first, second = entry(32, seed=1), entry(32, seed=2)
    keys = ["0/3/p/0/0", "0/3/p/0/1", "0/3/q/0/0", "0/3/q/0/1"]
    mask = PictureMask(ratio=0.5, seed=7)
    whole = mask_pixels([first, first, second, second], keys, mask, **SCALE)
    assert whole[0] is whole[1] and whole[2] is whole[3]
    for row, pixels in enumerate((first, first, second, second)):
        [alone] = mask_pixels([pixels], [keys[row]], mask, **SCALE)
        assert torch.equal(alone["pixel_values"], whole[row]["pixel_values"])


def test_the_mask_depends_on_its_seed_and_on_the_visit_of_the_prompt():
    picture = entry(64)

    def masked(key, seed=0):
        return mask_pixels([picture], [key], PictureMask(ratio=0.5, seed=seed), **SCALE)[0]["pixel_values"]

    state = torch.get_rng_state()
    same, again = masked("0/3/p/0/0"), masked("0/3/p/0/5")
    assert torch.equal(same, again) and torch.equal(state, torch.get_rng_state())
    for other in (masked("0/4/p/0/0"), masked("0/3/q/0/0"), masked("0/3/p/1/0"), masked("0/3/p/0/0", seed=1)):
        assert not torch.equal(same, other)


def test_a_prompt_without_a_picture_stays_without():
    assert mask_pixels([{}], ["0/p/0/0"], PictureMask(ratio=0.5), **SCALE) == [{}]


def videos(*grids: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values_videos": torch.rand(sum(t * h * w for t, h, w in grids), 6),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.ones(len(grids)),
    }


@pytest.mark.parametrize(("ratio", "places"), [(0.5, (4, 3)), (0.0, (0, 0)), (1.0, (8, 6))])
def test_in_a_video_the_same_places_are_black_at_all_times(ratio, places):
    """Grids of 4×2 and 2×3 places: half are 4 and 3."""
    shown = videos((3, 4, 2), (2, 2, 3))
    before = shown["pixel_values_videos"].clone()
    [result] = mask_pixels([shown], ["0/p/0/0"], PictureMask(ratio=ratio), **SCALE)
    black = (result["pixel_values_videos"] == black_patch(**SCALE, width=6)).all(dim=1)
    first, second = black[:24].reshape(3, 8), black[24:].reshape(2, 6)
    assert (first == first[:1]).all() and (second == second[:1]).all()
    assert (int(first[0].sum()), int(second[0].sum())) == places
    assert torch.equal(result["pixel_values_videos"][~black], before[~black])
    assert torch.equal(shown["pixel_values_videos"], before)
    assert result["video_grid_thw"] is shown["video_grid_thw"]


def test_a_video_beside_a_picture_leaves_the_pictures_mask_as_it_was():
    picture, mask = entry(32), PictureMask(ratio=0.5)
    [alone] = mask_pixels([picture], ["0/p/0/0"], mask, **SCALE)
    [both] = mask_pixels([picture | videos((2, 4, 4))], ["0/p/0/0"], mask, **SCALE)
    assert torch.equal(both["pixel_values"], alone["pixel_values"])
    assert (both["pixel_values_videos"] == black_patch(**SCALE, width=6)).all(dim=1).sum() == 16


def test_videos_of_a_group_share_a_mask_and_other_visits_have_others():
    shown = videos((2, 8, 8))

    def masked(key):
        return mask_pixels([shown], [key], PictureMask(ratio=0.5), **SCALE)[0]["pixel_values_videos"]

    assert torch.equal(masked("0/3/p/0/0"), masked("0/3/p/0/7"))
    assert not torch.equal(masked("0/3/p/0/0"), masked("0/4/p/0/0"))


def several(*grids: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Pictures whose patches say which they are."""
    count = sum(height * width for _, height, width in grids)
    return {"pixel_values": torch.arange(count).float()[:, None].repeat(1, 6), "image_grid_thw": torch.tensor(grids)}


@pytest.mark.parametrize(("ratio", "moving"), [(1.0, (8, 6)), (0.5, (4, 3)), (0.0, (0, 0))])
def test_shuffled_patches_change_places_within_their_picture(ratio, moving):
    """Of pictures of 4×2 and 2×3 patches half are 4 and 3. Some of these stay where they are, as chance has it; over
    200 seeds all but a few pictures have as many moving as may, and every place moves."""
    shown = several((1, 4, 2), (1, 2, 3))
    before, most, ever = shown["pixel_values"].clone(), [0, 0], torch.zeros(14, dtype=torch.bool)
    for seed in range(200):
        mask = PictureMask(ratio=ratio, seed=seed, by="shuffled")
        [result] = mask_pixels([shown], ["0/p/0/0"], mask, **SCALE)
        patches = result["pixel_values"][:, 0].long()
        assert patches[:8].sort().values.tolist() == list(range(8))
        assert patches[8:].sort().values.tolist() == list(range(8, 14))
        moved = patches != torch.arange(14)
        most = [max(most[0], int(moved[:8].sum())), max(most[1], int(moved[8:].sum()))]
        ever |= moved
    assert tuple(most) == moving and ever.all() == (ratio > 0)
    assert torch.equal(shown["pixel_values"], before) and result["image_grid_thw"] is shown["image_grid_thw"]


def test_in_a_video_the_same_places_are_shuffled_at_all_times():
    shown = videos((3, 4, 2), (2, 2, 3))
    before = shown["pixel_values_videos"]
    [result] = mask_pixels([shown], ["0/p/0/0"], PictureMask(ratio=1.0, by="shuffled"), **SCALE)
    for start, times, places in ((0, 3, 8), (24, 2, 6)):
        own = slice(start, start + times * places)
        old, new = before[own].view(times, places, 6), result["pixel_values_videos"][own].view(times, places, 6)
        order = [int((old[0] == patch).all(dim=1).nonzero()) for patch in new[0]]
        assert sorted(order) == list(range(places)) != order
        assert torch.equal(new, old[:, order])


def test_a_group_sees_one_shuffled_picture_and_other_visits_others():
    picture = entry(64)

    def masked(key):
        return mask_pixels([picture], [key], PictureMask(ratio=1.0, by="shuffled"), **SCALE)[0]["pixel_values"]

    state = torch.get_rng_state()
    assert torch.equal(masked("0/3/p/0/0"), masked("0/3/p/0/5")) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(masked("0/3/p/0/0"), masked("0/4/p/0/0"))
    assert mask_pixels([{}], ["0/p/0/0"], PictureMask(ratio=1.0, by="shuffled"), **SCALE) == [{}]


def processor(**pictures: object) -> SimpleNamespace:
    """With what it scales pictures and, if asked, videos by."""
    videos = pictures.pop("videos", None)
    return SimpleNamespace(
        image_processor=SimpleNamespace(image_mean=[0.5], image_std=[0.25], **pictures),
        video_processor=videos and SimpleNamespace(image_mean=videos, image_std=[0.25]),
    )


def test_who_asks_for_black_patches_is_told_where_there_are_none():
    asked = ("credit.head_criterion=dependency", "credit.head_criterion=contrast")
    scale = PictureScale((0.5,), (0.25,))
    assert (
        mask_scale(processor(merge_size=2), *asked)
        == mask_scale(processor(merge_size=2, videos=[0.5]), *asked)
        == scale
    )
    other = processor(merge_size=2, videos=[0.4])
    assert mask_scale(other, *asked, "shuffled") == scale  # of which none is black
    assert picture_scale(VisualDependencyCredit(mask="shuffled"), other) == scale
    with pytest.raises(ValueError, match=r"^credit=visual_dependency masks pictures and videos with the same black"):
        picture_scale(VisualDependencyCredit(), other)
    with pytest.raises(ValueError, match=r"^credit\.head_criterion=dependency masks patches, and this model's Simple"):
        mask_scale(processor(), *asked)
    with pytest.raises(
        ValueError, match=r"^credit\.head_criterion=dependency masks .* choose credit\.head_criterion=contr"
    ):
        mask_scale(processor(merge_size=2, videos=[0.4]), *asked)
