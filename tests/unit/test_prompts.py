"""Prompts for the tiny processor: placeholders, features, limits and hostile text."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest
from PIL import Image

from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.types import Problem

PICTURE = Image.new("RGB", (112, 112), "white")


def problem(question: str, pictures: int = 0, name: str = "p7") -> Problem:
    return Problem(id=name, question=question, answer="1", images=(PICTURE,) * pictures)


@pytest.fixture
def builder(processor) -> PromptBuilder:
    return PromptBuilder(processor=processor)


def test_placeholders_are_as_many_as_features(processor, prompts):
    """A picture of t·h·w patches gives t·h·w/4 tokens: 112 pixels are 8·8 patches of 14, so 16; others differ."""
    for prompt in prompts.values():
        runs = [len(list(run)) for token, run in groupby(prompt.token_ids) if token == processor.image_token_id]
        grids = prompt.pixels["image_grid_thw"].tolist() if prompt.images else []
        assert runs == [t * h * w // 4 for t, h, w in grids]
        assert len(prompt.images) == len(prompt.problem.images) == len(runs)
        if grids:
            assert len(prompt.pixels["pixel_values"]) == sum(t * h * w for t, h, w in grids)
    assert prompts["square"].pixels["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert "pixel_values" not in prompts["none"].pixels
    assert len(prompts["two"].pixels["image_grid_thw"]) == 2


def test_the_engines_prompt_has_one_placeholder_a_picture(processor, prompts):
    """Otherwise it is the same, token for token."""
    for prompt in prompts.values():
        shortened = [
            token
            for token, run in groupby(prompt.token_ids)
            for _ in ([0] if token == processor.image_token_id else run)
        ]
        assert prompt.engine_token_ids == shortened
        assert prompt.engine_token_ids.count(processor.image_token_id) == len(prompt.images)


def test_the_chat_template_frames_the_question_and_its_pictures(processor, builder):
    prompt = builder.build(problem("Is <image> like <image>?", 2))
    text = processor.tokenizer.decode(prompt.engine_token_ids)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\nIs {picture} like {picture}?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("question", "pictures", "expected"),
    [
        ("How many?", 0, "How many? Box it."),
        ("How many? \n", 0, "How many? Box it."),
        ("<image>How many?", 1, "<|vision_end|>How many? Box it."),
        ("Look: <image>", 1, "<|vision_end|> Box it."),
    ],
)
def test_the_instruction_is_appended(processor, question, pictures, expected):
    prompt = PromptBuilder(processor=processor, instruction="Box it.").build(problem(question, pictures))
    assert f"{expected}<|im_end|>" in processor.tokenizer.decode(prompt.engine_token_ids)


@pytest.mark.parametrize(
    ("question", "pictures", "message"),
    [
        ("What is it?", 1, "problem p7: 0 <image> marks for 1 images"),
        ("<image> or <image>?", 1, "problem p7: 2 <image> marks for 1 images"),
        ("<image>", 0, "problem p7: 1 <image> marks for 0 images"),
    ],
)
def test_marks_and_pictures_must_match(builder, question, pictures, message):
    with pytest.raises(ValueError, match=f"{message}; give the question one mark per image"):
        builder.build(problem(question, pictures))


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize("pictures", [0, 1])
def test_text_that_spells_out_a_control_token_is_refused(builder, token, pictures):
    """The processor would expand the placeholder, and the chat template's frame could be closed from inside."""
    with pytest.raises(ValueError) as error:
        builder.build(problem("<image>" * pictures + f"What does {token} mean?", pictures))
    message = str(error.value)
    assert message.startswith(f"problem p7: its text contains {token!r}") and "\n" not in message


def test_text_that_only_looks_like_a_template_survives(processor, builder):
    question = "{{ 1 + 1 }} {% raw %} <b>x</b> <|im_ end|>"
    prompt = builder.build(problem(question))
    assert f"user\n{question}<|im_end|>" in processor.tokenizer.decode(prompt.token_ids)


def test_too_long_a_prompt_is_dropped_with_its_id_and_never_cut(processor, builder):
    short, long = problem("One?", name="short"), problem("<image>Two?", 1, name="long")
    lengths = [len(builder.build(each).token_ids) for each in (short, long)]
    exact = replace(builder, max_prompt_tokens=lengths[1]).build_all([short, long])
    assert [prompt.problem.id for prompt in exact.prompts] == ["short", "long"] and exact.dropped == []
    batch = replace(builder, max_prompt_tokens=lengths[1] - 1).build_all([long, short, long])
    assert [prompt.problem.id for prompt in batch.prompts] == ["short"] and batch.dropped == ["long", "long"]
    assert len(batch.prompts[0].token_ids) == lengths[0]


def test_a_picture_is_shared_and_not_changed(builder):
    prompt = builder.build(problem("<image>", 1))
    assert prompt.images[0].size == (112, 112) and prompt.problem.images[0] is PICTURE


@pytest.mark.parametrize("placeholders", [15, 17])
def test_a_wrong_number_of_placeholders_names_the_problem(processor, builder, placeholders):
    prompt = builder.build(problem("<image>", 1))
    miscounted = replace(prompt, token_ids=[processor.image_token_id] * placeholders)
    with pytest.raises(
        ValueError, match=f"problem p7: the prompt holds {placeholders} image tokens .* give 16 features"
    ):
        builder._check_placeholders(miscounted)


def test_banned_ids_are_every_picture_and_video_token(processor):
    names = processor.tokenizer.convert_ids_to_tokens(list(banned_token_ids(processor)))
    assert set(names) == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"}
    assert processor.tokenizer.eos_token_id not in banned_token_ids(processor)
