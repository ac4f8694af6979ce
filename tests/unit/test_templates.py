"""Checkpoints whose template, tokenizer or processor would spoil prompts: mended, or refused before a model loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from atrl.callbacks.anchor_credit import AnchorCreditCallback
from atrl.credit.atrl import AtrlCredit
from atrl.credit.calibration import HeadCalibration
from atrl.credit.papo import PapoCredit
from atrl.credit.uniform import UniformCredit
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids, check_processor, padding_id, turn_end_ids
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models.families import FAMILIES as TRAINED
from atrl.models.families import REFUSED, WITHOUT_VLLM, check_family
from atrl.models.load import PretrainedModel
from atrl.rollout.server import VllmServerSampler
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.vllm import VllmSampler
from atrl.types import Problem, Rollout, RolloutGroup, Turn
from tests.unit import families
from tests.unit.families import FAMILIES, GEMMA, LLAVA, QWEN
from tests.unit.refusals import refusal

PICTURE = Image.linear_gradient("L").resize((56, 28)).convert("RGB")
PROBLEM = Problem(id="p7", question="What is <image>?", answer="x", images=(PICTURE,))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`stock(family)` is a processor of its own with the family's config; `template=` replaces its chat template."""
    made: dict[str, Path] = {}

    def make(family: str, template: str | None = "the family's own"):
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp(family))
        processor = AutoProcessor.from_pretrained(made[family])
        if template != "the family's own":
            processor.chat_template = processor.tokenizer.chat_template = template
        return processor, AutoConfig.from_pretrained(made[family])

    return make


QWEN_FULL = QWEN.replace("PICTURE", "<|image_pad|>")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "it has no chat template: put chat_template.jinja of the instruction-tuned model into its folder"),
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}model: ",  # for plain strings
            "which must hold <|image_pad|> and the words once each",
        ),
        (QWEN_FULL.replace("<|image_pad|>", ""), "which must hold <|image_pad|> and the words once each"),
        (QWEN_FULL.replace("{{ part['text'] }}", "text"), "which must hold <|image_pad|> and the words once each"),
        (QWEN_FULL.partition("{% if add_generation")[0], "its chat template ignores add_generation_prompt"),
        ("{{ raise_exception('no pictures here') }}", "fails on a question with a picture (TemplateError: no pictures"),
        (
            QWEN_FULL.replace(
                "{% for part", "{% if message['role'] == 'assistant' %}{{ 1 / 0 }}{% endif %}{% for part"
            ),
            "its chat template fails on an answer (ZeroDivisionError",
        ),
    ],
)
def test_templates_that_would_spoil_prompts(stock, template: str | None, line: str) -> None:
    processor, config = stock("qwen2_5_vl", template)
    message = refusal(check_processor, processor, config, "some/model")
    assert message.startswith("some/model: ") and line in message


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_processors_pass(stock, family: str) -> None:
    assert refusal(check_processor, *stock(family), "some/model") is None


def test_a_template_whose_answers_follow_the_question_directly(stock) -> None:
    """Mistral's: there is nothing to open the answer's turn with."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% endif %}{% for p in m['content'] %}"
        "{{ p['text'] if p['type'] == 'text' else '<|image_pad|>' }}{% endfor %}"
        "{{ '[/INST] ' if m['role'] == 'user' else '<|im_end|>' }}{% endfor %}"
    )
    processor, config = stock("qwen2_5_vl", template)
    check_processor(processor, config, "some/model")
    assert processor.tokenizer.convert_ids_to_tokens(turn_end_ids(processor)) == ["<|im_end|>"]


def test_a_template_whose_open_turn_is_more_than_a_finished_one_begins_with(stock) -> None:
    """Reasoning models': the open turn begins a thought, which finished turns leave out."""
    opened = "<|im_start|>assistant\n"
    head, _, tail = QWEN_FULL.rpartition(opened)
    processor, config = stock("qwen2_5_vl", f"{head}{opened}<think>\n{tail}")
    check_processor(processor, config, "some/model")
    assert processor.tokenizer.decode(PromptBuilder(processor=processor).build(PROBLEM).token_ids).endswith("<think>\n")


def test_a_picture_token_is_banned_whatever_it_is_called(stock) -> None:
    processor, _ = stock("llava")
    unnamed = processor.tokenizer.convert_tokens_to_ids("<unk>")
    assert unnamed not in banned_token_ids(processor)
    processor.image_token = "<unk>"
    assert unnamed in banned_token_ids(processor)


def test_a_template_that_closes_answers_with_plain_text_has_no_closing_token(stock) -> None:
    processor, _ = stock("llava", LLAVA.replace("</s>", "\n"))
    assert turn_end_ids(processor) == ()


def test_the_tokenizers_own_template_serves_too(stock) -> None:
    processor, config = stock("qwen2_5_vl")
    expected = PromptBuilder(processor=processor).build(PROBLEM).token_ids
    processor.tokenizer.chat_template = {"default": processor.chat_template, "tool_use": "{{ 1 / 0 }}"}
    processor.chat_template = None
    check_processor(processor, config, "some/model")
    assert PromptBuilder(processor=processor).build(PROBLEM).token_ids == expected


@pytest.mark.parametrize(("family", "template"), [("llava", "{{ bos_token }}" + LLAVA), ("gemma3", GEMMA[15:])])
def test_bos_comes_once_whether_the_template_has_it_or_not(stock, family: str, template: str) -> None:
    assert ("bos_token" in template) == (family == "llava")
    expected = PromptBuilder(processor=stock(family)[0]).build(PROBLEM)
    built = PromptBuilder(processor=stock(family, template)[0]).build(PROBLEM)
    assert built.token_ids == expected.token_ids and built.engine_token_ids == expected.engine_token_ids
    bos = stock(family)[0].tokenizer.bos_token_id
    assert built.token_ids.index(bos) == 0 and built.token_ids.count(bos) == 1


@pytest.mark.parametrize(
    ("family", "change", "line"),
    [
        ("qwen2_5_vl", lambda p: setattr(p.image_processor, "merge_size", 1), "merge size is 1 and its model's is 2"),
        ("gemma3", lambda p: setattr(p, "image_seq_length", 9), "tokens of a picture is 9 and its model's is 4"),
        ("internvl", lambda p: setattr(p, "image_seq_length", 9), "tokens of a picture is 9 and its model's is 4"),
        ("llava", lambda p: setattr(p, "image_token_id", 5), "image token is 5 and its model's is"),
        ("llava", lambda p: setattr(p, "image_processor", None), "(LlavaProcessor) has no image_processor"),
    ],
)
def test_processors_of_another_checkpoint(stock, family: str, change, line: str) -> None:
    processor, config = stock(family)
    change(processor)
    assert line in refusal(check_processor, processor, config, "some/model")


def test_no_weights_are_read_before_the_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = families.qwen2_5_vl(tmp_path)
    (folder / "chat_template.jinja").unlink()

    def load(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    assert "no chat template" in refusal(PretrainedModel(path=str(folder)).load, tmp_path)
    AutoConfig.for_model("smolvlm").save_pretrained(folder)
    assert "can't be trained, because" in refusal(PretrainedModel(path=str(folder)).load, tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_can_not_be_trained(kind: str) -> None:
    message = refusal(check_family, AutoConfig.for_model(kind), "some/model")
    assert message.startswith(f"some/model: a model of type {kind} can't be trained, because {REFUSED[kind]}: ")
    assert "qwen2_5_vl" in message


def test_families_that_nobody_tried() -> None:
    assert "a model of type qwen2 has never been tried" in refusal(check_family, AutoConfig.for_model("qwen2"), "m")
    pixtral = AutoConfig.for_model("llava", vision_config={"model_type": "pixtral"})
    assert "a LLaVA with the vision tower pixtral can't be trained" in refusal(check_family, pixtral, "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_can(stock, family: str) -> None:
    _, config = stock(family)
    check_family(config, "some/model")
    TransformersSampler().check(family)
    assert family in TRAINED and set(WITHOUT_VLLM) < set(TRAINED)


@pytest.mark.parametrize("kind", WITHOUT_VLLM)
@pytest.mark.parametrize("sampler", [VllmSampler(), VllmServerSampler(url="http://127.0.0.1:1")], ids=lambda s: s.name)
def test_families_that_vllm_can_not_serve(sampler, kind: str) -> None:
    message = refusal(sampler.check, kind)
    assert message.startswith(f"rollout={sampler.name} can't serve a model of type {kind}: ")
    assert message.endswith("use rollout=transformers")


PARTS = {
    "projector": (".merger.", ".deepstack_merger_list.", ".multi_modal_projector."),
    "vision": (".visual.", ".vision_tower."),
}
"""What the families call them; Qwen's projector is within the tower."""


def part_of(name: str) -> str:
    return next((part for part, marks in PARTS.items() if any(mark in name for mark in marks)), "language")


@pytest.mark.parametrize("frozen", [["vision"], ["projector"], ["projector", "vision"]], ids="_".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_tower_and_projector_can_be_frozen_apart(stock, tmp_path: Path, family: str, frozen: list[str]) -> None:
    options = {f"freeze_{part}": True for part in frozen}
    model = PretrainedModel(path=str(FAMILIES[family](tmp_path)), **options).load(tmp_path).model
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {part_of(name) for name in trained} == {"language", "projector", "vision"}
    assert trained == {name: part_of(name) not in frozen for name in trained}


def test_schemes_that_mask_patches_need_patches(stock) -> None:
    """Where a picture stays one tensor of pixels, a share of its rows would be a share of the pictures."""
    assert "credit=papo masks patches" in refusal(AnchorCreditCallback, PapoCredit(), stock("llava")[0])
    AnchorCreditCallback(PapoCredit(), stock("qwen3_vl")[0])
    AnchorCreditCallback(UniformCredit(), stock("llava")[0])


def test_heads_by_dependency_need_patches_too(stock, tmp_path: Path) -> None:
    """As soon as the processor is there; other criteria compare with nothing that would be cut."""
    builder, problems = PromptBuilder(processor=stock("llava")[0]), GeometryProblems().load("train")
    by = {name: AtrlCredit(heads="auto", head_criterion=name).head_search for name in ("dependency", "contrast")}
    found = refusal(HeadCalibration.prepare, by["dependency"], problems, builder, tmp_path)
    assert found.startswith("credit.head_criterion=dependency masks patches")
    assert HeadCalibration.prepare(by["contrast"], problems, builder, tmp_path).other == []


@pytest.mark.parametrize(
    ("history", "line"),
    [
        ((Turn("user", "Hello."),), "does not admit its turns (user, user): Conversation roles must alternate"),
        ((Turn("system", "Be brief."),), "does not admit its turns (system, user): Conversation roles must alternate"),
        ((Turn("user", "<end_of_turn>"), Turn("assistant", "Yes.")), "its text contains '<end_of_turn>'"),
        ((Turn("user", "Hi."), Turn("assistant", "<image_soft_token>")), "its text contains '<image_soft_token>'"),
        ((Turn("user", "<image>"), Turn("assistant", "Yes.")), "2 <image> marks for 1 images"),
    ],
)
def test_conversations_that_the_template_does_not_admit(stock, history, line: str) -> None:
    builder = PromptBuilder(processor=stock("gemma3")[0])
    problem = Problem(id="p7", question="What is <image>?", answer="x", images=(PICTURE,), history=history)
    message = refusal(builder.build, problem)
    assert message.startswith("problem p7: ") and line in message


def test_a_template_that_drops_a_picture_is_noticed(stock) -> None:
    """Some templates keep pictures of the first turn alone."""
    template = QWEN_FULL.replace("part['type'] == 'image'", "part['type'] == 'image' and loop.length > 1")
    builder = PromptBuilder(processor=stock("qwen2_5_vl", template)[0])
    problem = Problem(
        id="p7", question="Well?", answer="x", images=(PICTURE,),
        history=(Turn("user", "<image>"), Turn("assistant", "Nice.")),
    )  # fmt: skip
    with pytest.raises(ValueError, match="problem p7: the chat template leaves 0 of its 1 pictures in the prompt"):
        builder.build(problem)


def test_the_instruction_goes_to_the_question_alone(stock) -> None:
    processor, _ = stock("qwen2_5_vl")
    problem = Problem(id="p7", question="Well?", answer="x", history=(Turn("user", "Hi."), Turn("assistant", "Hello.")))
    prompt = PromptBuilder(processor=processor, instruction="Box it.").build(problem)
    text = processor.tokenizer.decode(prompt.token_ids)
    assert text.count("Box it.") == 1 and "user\nHi.<|im_end|>" in text
    assert text.endswith("user\nWell? Box it.<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"pad_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"pad_token": None}, "<|im_end|>"),
        ({"pad_token": "<|image_pad|>"}, "<|im_end|>"),  # some quantised checkpoints come like that
        ({"pad_token": "<|vision_pad|>"}, "<|im_end|>"),
        ({"pad_token": None, "eos_token": None}, None),
    ],
)
def test_batches_are_filled_with_what_is_no_picture(tmp_path: Path, roles: dict, expected: str | None) -> None:
    """Padding with a picture's token would be given features, and fail or shift those of real pictures."""
    loaded_from = families.qwen2_5_vl(tmp_path, **roles)
    processor = AutoProcessor.from_pretrained(loaded_from)
    tokenizer, banned = processor.tokenizer, banned_token_ids(processor)
    pad = padding_id(tokenizer, banned)
    assert pad not in banned and pad in range(len(tokenizer))
    assert expected is None or tokenizer.convert_ids_to_tokens(pad) == expected
    policy = AutoModelForImageTextToText.from_pretrained(loaded_from)
    prompt = PromptBuilder(processor=processor).build(PROBLEM)
    short, long = Rollout([pad, 7], [-1.0] * 2, True), Rollout([8, 9, 10, pad], [-1.0] * 4, True)
    batch = build_experience([RolloutGroup(prompt, [short, long], ["", ""], 0)], pad_id=pad)
    assert batch.response_mask.tolist() == [[True, True, False, False], [True] * 4]  # a sampled EOS is trained on
    alone = build_experience([RolloutGroup(prompt, [short], [""], 0)], pad_id=pad)
    forward = ForwardPass(temperature=1.0, banned_ids=banned)
    with torch.no_grad():
        both, one = forward.logprobs(policy, batch)[0], forward.logprobs(policy, alone)[0]
    torch.testing.assert_close(both[0, :2], one[0], atol=2e-5, rtol=0)
    assert both[0, 2:].tolist() == [0.0, 0.0]
