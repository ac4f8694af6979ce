"""Prompts, rollouts and training batches of several families: the same ids everywhere, and nobody else's tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from PIL import Image

from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids, padding_id, turn_end_ids
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.models.policy import response_logits
from atrl.rollout.base import Sampling
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler, end_token_ids
from atrl.types import Problem, Rollout, RolloutGroup, Turn
from tests.unit.families import FAMILIES

WIDE = Image.linear_gradient("L").resize((60, 30)).convert("RGB")
TALL = Image.radial_gradient("L").resize((30, 60)).convert("RGB")
PROBLEMS = [
    Problem(id="wide", question="What is <image>?", answer="x", images=(WIDE,)),
    Problem(id="two", question="<image><image>\n\nWhich is tall?", answer="x", images=(TALL, WIDE)),
    Problem(id="none", question="What is 3 + 4?", answer="7"),
    Problem(
        id="talk",
        history=(Turn("user", "Is <image> red?"), Turn("assistant", "It is grey.")),
        question="And what of <image>?",
        answer="x",
        images=(TALL, WIDE),
    ),
]
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
TEXTS = {
    "qwen": (
        f"<|im_start|>user\nWhat is {QWEN_PICTURE}?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\nIs {QWEN_PICTURE} red?<|im_end|>\n<|im_start|>assistant\nIt is grey.<|im_end|>\n"
        f"<|im_start|>user\nAnd what of {QWEN_PICTURE}?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llava": (
        "<s>USER: What is <image>\n? ASSISTANT:",
        "<s>USER: Is <image>\n red? ASSISTANT: It is grey.</s>USER: And what of <image>\n? ASSISTANT:",
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nWhat is<start_of_image>?<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nIs<start_of_image>red?<end_of_turn>\n<start_of_turn>model\nIt is grey."
        "<end_of_turn>\n<start_of_turn>user\nAnd what of<start_of_image>?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "internvl": (
        "<|im_start|>user\nWhat is <IMG_CONTEXT>\n?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nIs <IMG_CONTEXT>\n red?<|im_end|>\n<|im_start|>assistant\nIt is grey.<|im_end|>\n"
        "<|im_start|>user\nAnd what of <IMG_CONTEXT>\n?<|im_end|>\n<|im_start|>assistant\n",
    ),
}
"""What an engine gets of the first and the last problem, by hand: one BOS, a mark a picture, the answer's turn open."""
FEATURES = {"qwen": [2, 4], "llava": [9, 18], "gemma3": [4, 8], "internvl": [12, 24]}
"""Image tokens of one and of two pictures. Qwen: 56 x 28 pixels are 2·1 tokens of 28. LLaVA: (12/4)². Gemma: set to 4.
InternVL: 60 x 30 is cut into 2 tiles and a thumbnail, of 4 each."""
BANNED = {
    "qwen": {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"},
    "llava": {"<image>"},
    "gemma3": {"<start_of_image>", "<end_of_image>", "<image_soft_token>"},
    "internvl": {"<img>", "</img>", "<IMG_CONTEXT>", "<video>"},
}
ENDS = {"qwen": "<|im_end|>", "llava": "</s>", "gemma3": "<end_of_turn>", "internvl": "<|im_end|>"}


def of(table: dict, family: str):
    return table["qwen" if family.startswith("qwen") else family]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(family: str, checkpoint) -> LoadedModel:
    return PretrainedModel(path=str(checkpoint(family))).load(Path())


@pytest.fixture
def builder(loaded: LoadedModel) -> PromptBuilder:
    return PromptBuilder(processor=loaded.processor)


def test_the_text_that_is_tokenised(family: str, loaded: LoadedModel, builder: PromptBuilder) -> None:
    for problem, text in zip((PROBLEMS[0], PROBLEMS[3]), of(TEXTS, family), strict=True):
        assert loaded.processor.tokenizer.decode(builder.build(problem).engine_token_ids) == text


def test_the_expanded_prompt_is_the_processors_own(family: str, loaded: LoadedModel, builder: PromptBuilder) -> None:
    """`apply_chat_template` with ``tokenize=True`` does all at once what the builder does in steps."""
    prompt = builder.build(PROBLEMS[0])
    content = [{"type": "text", "text": "What is "}, {"type": "image", "image": WIDE}, {"type": "text", "text": "?"}]
    expected = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert prompt.token_ids == expected["input_ids"][0].tolist()
    for name, tensor in prompt.pixels.items():
        assert torch.equal(tensor, expected[name])


@torch.no_grad()
def test_the_batch_is_run_as_the_model_runs_the_processors_own_inputs(loaded: LoadedModel, builder) -> None:
    """Positions, and Gemma's mask, by which the tokens of a picture see each other in both directions."""
    prompt = builder.build(PROBLEMS[0])
    content = [{"type": "text", "text": "What is "}, {"type": "image", "image": WIDE}, {"type": "text", "text": "?"}]
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    longer = builder.build(PROBLEMS[1])  # so that the row is padded
    groups = [RolloutGroup(each, [Rollout([5], [0.0], True)], [""], 0) for each in (prompt, longer)]
    batch = build_experience(groups, pad_id=0)
    expected = loaded.model(**inputs).logits[0, -1]
    torch.testing.assert_close(response_logits(loaded.model, batch)[0, 0], expected, atol=5e-5, rtol=0)


def test_image_tokens_are_as_many_as_features(family: str, loaded: LoadedModel, builder: PromptBuilder) -> None:
    image = loaded.model.config.image_token_id
    one, two, none, talk = [builder.build(problem) for problem in PROBLEMS]
    assert [prompt.token_ids.count(image) for prompt in (one, two)] == of(FEATURES, family)
    assert talk.token_ids.count(image) == two.token_ids.count(image)
    assert none.pixels == {} and image not in none.token_ids
    runs = [len(list(run)) for token, run in groupby(talk.token_ids) if token == image]
    assert len(runs) == 2 and sum(runs) == of(FEATURES, family)[1]


def test_banned_and_closing_tokens(family: str, loaded: LoadedModel) -> None:
    tokenizer = loaded.processor.tokenizer
    assert set(tokenizer.convert_ids_to_tokens(banned_token_ids(loaded.processor))) == of(BANNED, family)
    assert tokenizer.convert_ids_to_tokens(turn_end_ids(loaded.processor)) == [of(ENDS, family)]
    handle = RolloutSettings(sampler=None).handle(loaded, PROBLEMS)
    ends = {of(ENDS, family), tokenizer.eos_token}
    assert set(tokenizer.convert_ids_to_tokens(end_token_ids(handle))) == ends
    assert handle.max_images == 2


def test_padding_is_no_picture(loaded: LoadedModel) -> None:
    banned = banned_token_ids(loaded.processor)
    assert padding_id(loaded.processor.tokenizer, banned) not in banned


@torch.no_grad()
def test_sampler_and_trainer_agree_to_the_last_id(family: str, loaded: LoadedModel, builder: PromptBuilder) -> None:
    """Log-probs of a padded training batch are those that the sampler drew with, cache and all."""
    handle = RolloutSettings(sampler=None).handle(loaded, PROBLEMS)
    sampler = TransformersSampler()
    sampler.start(handle)
    groups = sampler.generate(
        [builder.build(problem) for problem in PROBLEMS], Sampling(group_size=3, max_response_tokens=24), seed="0"
    )
    pad = padding_id(loaded.processor.tokenizer, handle.banned_ids)
    batch = build_experience(groups, pad_id=pad)
    rollouts = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    for row, (prompt, rollout) in enumerate(rollouts):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert ids == prompt.token_ids + rollout.token_ids
        assert batch.response_mask[row].sum() == len(rollout.token_ids)
        assert rollout.finished == (rollout.token_ids[-1] in end_token_ids(handle))
    model = loaded.model.train()  # Gemma's mask must not depend on the mode
    logprobs, _ = ForwardPass(temperature=1.0, banned_ids=handle.banned_ids).logprobs(model, batch)
    torch.testing.assert_close(logprobs, batch.sampler_logprobs, atol=5e-5, rtol=0)
    first = batch.sampler_logprobs[:, 0]
    assert first.std() > 0.01 and len({tuple(rollout.token_ids) for _, rollout in rollouts}) > 8


def test_a_shared_picture_counts_for_every_row(loaded: LoadedModel, builder: PromptBuilder) -> None:
    """One encoding for a group and the model's own encoding of each row: the same logits and gradients."""
    handle = RolloutSettings(sampler=None).handle(loaded, PROBLEMS)
    sampler = TransformersSampler()
    sampler.start(handle)
    prompts = [builder.build(problem) for problem in PROBLEMS]
    groups = sampler.generate(prompts, Sampling(group_size=2, max_response_tokens=4), seed="0")
    batch = build_experience(groups, pad_id=padding_id(loaded.processor.tokenizer, handle.banned_ids))
    policy, forward = loaded.model, ForwardPass(temperature=1.0, banned_ids=handle.banned_ids)

    def outcome(batch) -> tuple[torch.Tensor, torch.Tensor]:
        policy.zero_grad()
        logprobs, _ = forward.logprobs(policy, batch)
        logprobs.sum().backward()
        tower = next(p for name, p in policy.named_parameters() if "vis" in name and p.ndim > 1)
        return logprobs.detach(), tower.grad.clone()

    shared = outcome(batch)
    apart = outcome(replace(batch, pixels=[dict(entry) for entry in batch.pixels]))
    torch.testing.assert_close(shared[0], apart[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(shared[1], apart[1], atol=1e-4 * float(apart[1].abs().max()), rtol=1e-3)
    assert apart[1].abs().max() > 0


def test_a_rank_without_a_picture_can_run_the_vision_tower_of_every_family(loaded: LoadedModel) -> None:
    """0, with a gradient of 0 for whatever a picture would have given a gradient."""
    from atrl.models.policy import idle_vision

    prompt = PromptBuilder(processor=loaded.processor).build(PROBLEMS[0])
    batch = build_experience([RolloutGroup(prompt, [Rollout([5, 6], [-1.0, -1.0], True)], [""], 0)], pad_id=0)

    def touched(loss: torch.Tensor) -> set[str]:
        loaded.model.zero_grad()
        loss.backward()
        return {name for name, parameter in loaded.model.named_parameters() if parameter.grad is not None}

    seeing = touched(response_logits(loaded.model, batch).square().sum())
    text = {name for name in seeing if "language_model" in name or "lm_head" in name}
    idle = idle_vision(loaded.model)
    blind = touched(idle)
    assert idle.item() == 0.0 and seeing - text <= blind and blind.isdisjoint(text)
    assert not any(parameter.grad.any() for parameter in loaded.model.parameters() if parameter.grad is not None)
