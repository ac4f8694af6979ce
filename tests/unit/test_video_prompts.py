"""Prompts with videos: placeholders and features, marks in any order, times, and one choice of frames alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from PIL import Image
from video_files import encode
from video_prompts import clip, problems, qwen3_vl

from atrl.data.frames import FrameSampler
from atrl.data.prompts import PromptBuilder
from atrl.types import Problem, Video

PICTURE = Image.new("RGB", (112, 112), "white")


@pytest.fixture
def builder(processor) -> PromptBuilder:
    return PromptBuilder(processor=processor)


def problem(question: str, *videos: Video, images: int = 0) -> Problem:
    return Problem("p7", question, "1", images=(PICTURE,) * images, videos=videos)


def runs(tokens: list[int], *kinds: int) -> list[tuple[int, int]]:
    return [(token, len(list(run))) for token, run in groupby(tokens) if token in kinds]


def test_placeholders_are_as_many_as_features_and_in_the_order_of_the_marks(processor, builder):
    """112 pixels are 8·8 patches, 4·4 tokens; two frames make a temporal patch, a fifth frame a third."""
    image, video = processor.image_token_id, processor.video_token_id
    prompt = builder.build(problem("<video> <image> <video>?", clip(8), clip(5), images=1))
    assert prompt.pixels["video_grid_thw"].tolist() == [[4, 8, 8], [3, 8, 8]]
    assert runs(prompt.token_ids, image, video) == [(video, 64), (image, 16), (video, 48)]
    assert prompt.pixels["pixel_values_videos"].shape[0] == 7 * 64 and len(prompt.pixels["pixel_values"]) == 64
    assert [len(frames.images) for frames in prompt.videos] == [8, 5] and len(prompt.images) == 1
    other = builder.build(problem("<image><video><video>", clip(8), clip(5), images=1))
    assert [kind for kind, _ in runs(other.token_ids, image, video)] == [image, video, video]


def test_the_engines_prompt_has_one_placeholder_a_video(processor, builder):
    image, video = processor.image_token_id, processor.video_token_id
    prompt = builder.build(problem("<video> <image> <video>?", clip(8), clip(5), images=1))
    shortened = [token for token, run in groupby(prompt.token_ids) for _ in ([0] if token in (image, video) else run)]
    assert prompt.engine_token_ids == shortened
    text = processor.tokenizer.decode(prompt.engine_token_ids)
    shown, picture = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
    assert f"user\n{shown} {picture} {shown}?<|im_end|>" in text


@pytest.mark.parametrize(("count", "shown", "patches"), [(16, 16, 8), (32, 32, 16), (64, 40, 20), (7, 7, 4), (1, 1, 1)])
def test_as_many_frames_as_asked_for_and_no_more_than_there_are(processor, count, shown, patches):
    prompt = PromptBuilder(processor=processor, frames=FrameSampler(count=count)).build(problem("<video>", clip(40)))
    assert len(prompt.videos[0].images) == shown and prompt.pixels["video_grid_thw"][0, 0] == patches
    assert prompt.token_ids.count(processor.video_token_id) == 16 * patches


def test_the_processor_sees_the_chosen_frames(processor):
    """Frame by frame: white is 0 for this processor, and each temporal patch holds two frames' values."""
    shades = [255, 0, 255, 0, 0, 0, 0, 0, 255]
    frames = tuple(Image.new("RGB", (112, 112), (shade,) * 3) for shade in shades)
    builder = PromptBuilder(processor=processor, frames=FrameSampler(count=3))  # frames 0, 4 and 8
    values = builder.build(problem("<video>", Video(frames, 1.0))).pixels["pixel_values_videos"]
    by_frame = values.reshape(2, 64, 3, 2, 14 * 14)[:, 0, 0, :, 0]
    assert by_frame.tolist() == [[0, -4], [0, 0]]  # the third is repeated to fill its patch


@pytest.mark.parametrize(("fps", "count", "seconds"), [(2.0, 8, 1.0), (4.0, 8, 0.5), (0.5, 8, 4.0), (2.0, 4, 2.0)])
def test_seconds_from_one_patch_to_the_next(processor, fps, count, seconds):
    """Two frames a patch: of 8 frames at 2 a second they are 1 s apart; of every other frame 2 s."""
    prompt = PromptBuilder(processor=processor, frames=FrameSampler(count=count)).build(
        problem("<video>", clip(8, fps=fps))
    )
    assert prompt.pixels["second_per_grid_ts"].tolist() == [seconds]


def test_a_file_and_its_frames_give_the_same_times(processor, builder, tmp_path):
    path = encode(tmp_path / "a.mp4", 12, fps=4)
    of_file, of_list = (
        builder.build(problem("<video>", Video(path))),
        builder.build(problem("<video>", clip(12, fps=4))),
    )
    assert of_file.pixels["second_per_grid_ts"].equal(of_list.pixels["second_per_grid_ts"])
    assert of_file.videos[0].timestamps == pytest.approx(of_list.videos[0].timestamps)


def test_a_checkpoints_own_choice_of_frames_is_not_made_as_well(checkpoint, tmp_path):
    """Published processors choose frames by themselves unless they are told not to."""
    from transformers import AutoProcessor

    folder = shutil.copytree(checkpoint, tmp_path / "chooses")
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"] |= {"do_sample_frames": True, "num_frames": 2}
    (folder / "processor_config.json").write_text(json.dumps(config))
    prompt = PromptBuilder(processor=AutoProcessor.from_pretrained(folder)).build(problem("<video>", clip(8)))
    assert prompt.pixels["video_grid_thw"].tolist() == [[4, 8, 8]]
    assert prompt.pixels["second_per_grid_ts"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("question", "videos", "message"),
    [
        ("What?", 1, "problem p7: 0 <video> marks for 1 videos; give the question one mark per video"),
        ("<video> or <video>?", 1, "problem p7: 2 <video> marks for 1 videos"),
        ("<video>", 0, "problem p7: 1 <video> marks for 0 videos"),
        ("<image>", 1, "problem p7: 1 <image> marks for 0 images"),
    ],
)
def test_marks_and_videos_must_match(builder, question, videos, message):
    with pytest.raises(ValueError, match=message):
        builder.build(problem(question, *[clip(2)] * videos))


def test_a_video_that_can_not_be_read_names_the_problem(builder, tmp_path):
    with pytest.raises(ValueError, match=r"problem p7: video .*gone\.mp4 is missing"):
        builder.build(problem("<video>", Video(tmp_path / "gone.mp4")))


@pytest.mark.parametrize("placeholders", [63, 65])
def test_a_wrong_number_of_placeholders_names_the_problem(processor, builder, placeholders):
    prompt = builder.build(problem("<video>", clip(8)))
    miscounted = replace(prompt, token_ids=[processor.video_token_id] * placeholders)
    with pytest.raises(
        ValueError, match=f"problem p7: the prompt holds {placeholders} video tokens .* give 64 features"
    ):
        builder._check_placeholders(miscounted)


def test_video_tokens_count_for_the_limit_on_length(processor, builder):
    long = problem("<video>", clip(8))
    length = len(builder.build(long).token_ids)
    assert replace(builder, max_prompt_tokens=length).build_all([long]).dropped == []
    assert replace(builder, max_prompt_tokens=length - 1).build_all([long]).dropped == ["p7"]


def test_held_out_videos_of_which_none_fits_are_refused(processor, builder):
    """One line says by how much, and what to do about it."""
    long = [problem("<video>", clip(8)), problem("<video>", clip(16))]
    length = len(builder.build(long[0]).token_ids)
    assert replace(builder, max_prompt_tokens=length).build_held_out(long, "test").dropped == ["p7"]
    message = (
        rf"no problem of the test split fits into rollout\.max_prompt_tokens={length - 1}, the shortest has {length} "
        r"tokens: raise .* fewer frames of a video \(rollout\.video_frames\)"
    )
    with pytest.raises(ValueError, match=message):
        replace(builder, max_prompt_tokens=length - 1).build_held_out(long, "test")


# Qwen3-VL


@pytest.fixture(scope="module")
def three():
    return qwen3_vl()[0]


def test_qwen3_vl_has_the_times_in_its_text(three):
    """Frames at 0, 1, 2, 3 and 4 s (every other of nine at 2 per second): patches at 0.5, 2.5 and 4 s."""
    builder = PromptBuilder(processor=three, frames=FrameSampler(count=5))
    prompt = builder.build(problem("<video>?", clip(9, (64, 64))))
    patch = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    text = three.tokenizer.decode(prompt.token_ids)
    assert f"<0.5 seconds>{patch}<2.5 seconds>{patch}<4.0 seconds>{patch}" in text
    assert prompt.pixels["video_grid_thw"].tolist() == [[3, 4, 4]] and "second_per_grid_ts" not in prompt.pixels
    assert prompt.engine_token_ids.count(three.video_token_id) == 1


def test_qwen3_vl_unevenly_spaced_frames_have_their_own_times(three, tmp_path):
    path = encode(tmp_path / "a.mkv", 4, times=[0, 100, 2000, 4000])
    text = three.tokenizer.decode(PromptBuilder(processor=three).build(problem("<video>", Video(path))).token_ids)
    assert "<0.1 seconds>" in text and "<3.0 seconds>" in text  # (0 + 0.1)/2 and (2 + 4)/2


def test_what_the_processor_refuses_names_the_problem(three):
    with pytest.raises(ValueError, match="problem p7: the model's processor refuses it: t:1 must be larger") as caught:
        PromptBuilder(processor=three).build(problem("<video>", clip(1)))
    assert "\n" not in str(caught.value) and str(caught.value).endswith("leave the problem out")


def test_all_problems_of_the_other_tests_build(processor, three):
    for each in (processor, three):
        built = PromptBuilder(processor=each).build_all(problems().values())
        assert len(built.prompts) == 4 and torch.is_tensor(built.prompts[0].pixels["pixel_values_videos"])
