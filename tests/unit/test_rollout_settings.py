"""What the rollout section says of videos."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from video_prompts import clip

from atrl.data.frames import FrameSampler
from atrl.data.geometry import GeometryProblems
from atrl.data.moving_markers import MovingMarkersProblems
from atrl.rollout.settings import RolloutSettings
from atrl.types import Problem


def limits(processor, checkpoint, problems) -> tuple[int, int]:
    loaded = SimpleNamespace(folder=checkpoint, model=None, processor=processor)
    handle = RolloutSettings(sampler=None).handle(loaded, problems)
    return handle.max_images, handle.max_videos


def test_frames_are_chosen_as_the_section_says(processor):
    settings = RolloutSettings(sampler=None, video_frames=32, video_rate=1.5)
    builder = settings.prompt_builder(SimpleNamespace(processor=processor), "")
    assert builder.frames == FrameSampler(count=32, rate=1.5)


@pytest.mark.parametrize(("option", "value"), [("video_frames", 0), ("video_rate", 0.0)])
def test_options_out_of_range_are_refused_before_anything_is_built(option, value):
    with pytest.raises(ValueError, match=f"rollout.{option}"):
        RolloutSettings(sampler=None, **{option: value})


def test_engines_take_as_many_videos_as_the_problems_have(processor, checkpoint):
    listed = [Problem("a", "?", "1"), Problem("b", "<video><video>", "1", videos=(clip(1),) * 2)]
    assert limits(processor, checkpoint, listed) == (1, 2)
    assert limits(processor, checkpoint, listed[:1]) == (1, 0)
    assert limits(processor, checkpoint, MovingMarkersProblems().load("train")) == (1, 1)
    assert limits(processor, checkpoint, GeometryProblems().load("train")) == (1, 0)


def test_masks_of_two_scales_are_refused_at_the_start(processor):
    from copy import copy

    from atrl.callbacks.anchor_credit import AnchorCreditCallback
    from atrl.credit.entropy import EntropyCredit
    from atrl.credit.vppo import VppoCredit

    AnchorCreditCallback(VppoCredit(), processor)
    other = SimpleNamespace(
        image_processor=processor.image_processor,
        video_processor=copy(processor.video_processor),
        tokenizer=processor.tokenizer,
    )
    other.video_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="credit=vppo masks pictures and videos with the same black"):
        AnchorCreditCallback(VppoCredit(), other)
    AnchorCreditCallback(EntropyCredit(), other)
