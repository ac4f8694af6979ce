"""What a run asks for and can't get is said in one line, before a model loads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from atrl import pipeline
from atrl.credit.atrl import AtrlCredit
from atrl.credit.entropy import EntropyCredit
from atrl.credit.hidden_cosine import HiddenCosineCredit
from atrl.credit.kawhi import KawhiCredit
from atrl.credit.oracle import OracleCredit
from atrl.credit.papo import PapoCredit
from atrl.credit.product import ProductCredit
from atrl.credit.query_key_cosine import QueryKeyCosineCredit
from atrl.data.geometry import GeometryProblems
from atrl.data.moving_markers import MovingMarkersProblems
from atrl.evaluation.settings import EvaluateSettings
from atrl.models.families import positions_of
from atrl.models.load import PretrainedModel, ScratchModel
from atrl.models.smollm2 import SmolLM2Model
from atrl.pipeline import processes
from atrl.preflight import (
    check_attention,
    check_devices,
    check_engine,
    check_layers,
    check_lengths,
    check_masks,
    check_pictures,
    check_reading,
    check_targets,
    check_videos_taken,
    within_positions,
)
from atrl.rollout.server import VllmServerSampler
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.vllm import VllmSampler
from atrl.sections import TrainerSettings
from atrl.types import Problem, Video
from tests.integration.conftest import compose_config
from tests.unit.families import FAMILIES
from tests.unit.refusals import refusal

TINY = PretrainedModel()


def product(*schemes) -> ProductCredit:
    return ProductCredit(schemes=schemes)


@pytest.mark.parametrize(
    "scheme",
    [
        None,
        EntropyCredit(),
        AtrlCredit(),
        AtrlCredit(heads="auto", layers=(2,)),
        AtrlCredit(heads=((0, 0), (2, 3))),
        KawhiCredit(head_numbers=(0, 3)),
        QueryKeyCosineCredit(layers=(2,), head_numbers=(3,)),
        product(AtrlCredit(layers=(0, 2)), EntropyCredit()),
    ],
)
@pytest.mark.parametrize("model", [TINY, ScratchModel()], ids=["tiny", "scratch"])
def test_layers_and_heads_that_exist(scheme, model):
    assert refusal(check_layers, scheme, model) is None


@pytest.mark.parametrize(
    ("scheme", "line"),
    [
        (AtrlCredit(heads=((0, 99),)), r"credit\.heads names \[0, 99\]: .* layers 0 to 2 of heads 0 to 3"),
        (AtrlCredit(heads=((0, -1),)), r"credit\.heads names \[0, -1\]"),
        (AtrlCredit(heads=((3, 0),)), r"credit\.heads names \[3, 0\]"),
        (AtrlCredit(heads=()), r"credit\.heads is an empty list"),
        (AtrlCredit(heads="auto", layers=(0, 7)), r"credit\.layers names layer 7: .* layers 0 to 2"),
        (HiddenCosineCredit(layers=(-1,)), r"credit\.layers names layer -1"),
        (QueryKeyCosineCredit(layers=()), r"credit\.layers is an empty list"),
        (KawhiCredit(head_numbers=()), r"credit\.head_numbers is an empty list, which reads nothing: null reads all"),
        (KawhiCredit(head_numbers=(3, 4)), r"credit\.head_numbers names head 4: .* layers 0 to 2 of heads 0 to 3"),
        (product(KawhiCredit(head_numbers=(-1,))), r"credit\.head_numbers names head -1"),
        (product(product(EntropyCredit(), AtrlCredit(layers=(7,)))), r"credit\.layers names layer 7"),
    ],
)
def test_layers_and_heads_that_do_not(scheme, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        check_layers(scheme, TINY)


READING = {"attention": AtrlCredit(), "heads to find": AtrlCredit(heads="auto"), "one factor": product(KawhiCredit())}


@pytest.mark.parametrize("scheme", READING.values(), ids=READING)
def test_a_language_half_that_no_scheme_can_read(scheme, tmp_path):
    """InternVL has been published with gpt-oss. Nothing but the configuration is there."""
    from transformers import AutoConfig

    AutoConfig.for_model("internvl", text_config={"model_type": "gpt_oss"}).save_pretrained(tmp_path)
    model = PretrainedModel(path=str(tmp_path))
    line = r"^credit=\w+ can't read a language half of type gpt_oss, because its softmax has a learned sink .*: use"
    with pytest.raises(ValueError, match=line):
        check_attention(scheme, model)
    for other in (None, EntropyCredit(), product(EntropyCredit())):
        assert refusal(check_attention, other, model) is None
    assert refusal(check_attention, scheme, TINY) is None


def test_a_run_ends_before_such_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(ScratchModel, "text_type", lambda self: "gpt_oss")
    config = compose_config(tmp_path, "model=scratch", "stage=rl", "credit=atrl", "rollout=transformers")
    with pytest.raises(ValueError, match=r"^credit=atrl can't read a language half of type gpt_oss"):
        pipeline.instantiate_parts(config, tmp_path)


def test_the_language_half_is_named_by_the_configuration():
    text = TINY.load(None).model.config.get_text_config()
    assert {model.text_type() for model in (TINY, ScratchModel(), SmolLM2Model())} == {text.model_type}


def test_the_shape_is_that_of_the_model():
    text = TINY.load(None).model.config.get_text_config()
    assert TINY.attention_shape() == ScratchModel().attention_shape()
    assert TINY.attention_shape() == (text.num_hidden_layers, text.num_attention_heads)


def test_what_a_model_takes_is_that_of_its_configuration():
    assert TINY.positions() == ScratchModel().positions() == 2048
    stretched = {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}
    by_layer = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"factor": None}}
    assert positions_of(stretched) == 400
    assert positions_of({"max_position_embeddings": 100, "rope_scaling": {"type": "yarn", "factor": 4.0}}) == 400
    assert positions_of(stretched | {"rope_parameters": by_layer}) == 800
    assert positions_of({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default"}}) == 100
    assert positions_of(stretched | {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}) == 100
    assert positions_of({"max_position_embeddings": 100}) == 100 and positions_of({}) is None


def test_lengths_that_the_model_was_not_made_for(capsys):
    fits = RolloutSettings(sampler=None, max_prompt_tokens=2000, max_response_tokens=48)
    check_lengths(fits, 2048)
    assert within_positions(fits, TINY) is fits and capsys.readouterr().out == ""
    longer = replace(fits, max_prompt_tokens=2001)
    with pytest.raises(ValueError, match=r"^rollout\.max_prompt_tokens=2001 .*=48 are 2049 tokens, .* made for 2048"):
        check_lengths(longer, 2048)
    assert within_positions(longer, TINY) == fits
    line = "the model was made for 2048 tokens: prompts of up to 2000 are asked (rollout.max_prompt_tokens=2001), "
    assert capsys.readouterr().out == f"{line}beside responses of up to 48\n"
    with pytest.raises(ValueError, match=r"max_response_tokens=2048 are 4049 tokens"):
        within_positions(replace(longer, max_response_tokens=2048), TINY)
    check_lengths(longer, None)
    assert within_positions(longer, SimpleNamespace(positions=lambda: None)) is longer


def test_a_run_that_asks_for_more_than_its_model_takes_ends_at_once(tmp_path):
    config = compose_config(tmp_path, "rollout=transformers", "rollout.max_prompt_tokens=2000")
    with pytest.raises(ValueError, match=r"^rollout\.max_prompt_tokens=2000 .*=64 are 2064 tokens"):
        pipeline.instantiate_parts(config, tmp_path)


def test_oracle_needs_a_reading_rule():
    without = [Problem(id="p", question="?", answer="4", images=())]
    known = GeometryProblems().load("train")
    for scheme in (None, EntropyCredit(), AtrlCredit()):
        check_reading(scheme, without)
    for scheme in (OracleCredit(), product(EntropyCredit(), OracleCredit())):
        check_reading(scheme, known)
        check_reading(scheme, [*without, known[0]])
        with pytest.raises(ValueError, match=r"^credit=oracle needs problems with a reading rule"):
            check_reading(scheme, without)


def test_heads_are_found_on_problems_with_pictures():
    text = [Problem(id="p", question="?", answer="4", images=())]
    pictured = GeometryProblems().load("train")
    for scheme in (None, EntropyCredit(), AtrlCredit(), AtrlCredit(heads=((0, 1),))):
        check_pictures(scheme, text)
    for scheme in (AtrlCredit(heads="auto"), product(EntropyCredit(), AtrlCredit(heads="auto"))):
        check_pictures(scheme, pictured)
        check_pictures(scheme, [*text, pictured[0]])
        with pytest.raises(ValueError, match=r"^credit\.heads=auto finds heads by .*set credit\.heads=null"):
            check_pictures(scheme, text)


@pytest.mark.parametrize(
    ("accelerator", "devices", "there", "line"),
    [
        ("cpu", 4, 0, None),
        ("auto", 4, 0, None),
        ("auto", "auto", 2, None),
        ("cuda", 2, 2, None),
        ("cuda", 1, 0, "trainer.accelerator=cuda needs a CUDA device"),
        ("cuda", 3, 2, "trainer.devices must be at most 2"),
        ("auto", 3, 2, "trainer.devices must be at most 2"),
        ("cpu", 3, 2, None),
    ],
)
def test_devices_that_are_there(monkeypatch, accelerator, devices, there, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    settings = TrainerSettings(accelerator=accelerator, devices=devices)
    if line is None:
        check_devices(settings)
    else:
        with pytest.raises(ValueError, match=f"^{line}"):
            check_devices(settings)


def test_an_attention_kernel_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("atrl.models.attention.find_spec", lambda name: None)
    TINY.check()
    with pytest.raises(ValueError, match=r"^model\.attention=flash_attention_2 needs the package flash-attn"):
        PretrainedModel(attention="flash_attention_2").check()
    with pytest.raises(ValueError, match=r"^model\.attention=flash_attention_3 needs the package flash-attn-3, which"):
        PretrainedModel(attention="flash_attention_3").check()
    monkeypatch.setattr("atrl.models.attention.find_spec", lambda name: name == "kernels" or None)
    PretrainedModel(attention="flash_attention_3").check()  # transformers fetches it from the hub


@pytest.mark.parametrize("option", [{"threads": 0}, {"seed": -1}, {"samples": -1}, {"limit": 0}])
def test_evaluation_refuses_what_is_out_of_range(option):
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        EvaluateSettings(checkpoint="tiny", **option)


@pytest.mark.parametrize(
    ("devices", "nodes", "accelerator", "gpus", "expected"),
    [
        (1, 1, "cpu", 0, 1),
        (2, 3, "cpu", 0, 6),
        ("auto", 2, "cpu", 4, 2),
        ("auto", 2, "cuda", 4, 8),
        ("auto", 1, "auto", 0, 1),
    ],
)
def test_processes_are_those_of_all_nodes(monkeypatch, devices, nodes, accelerator, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes(TrainerSettings(devices=devices, num_nodes=nodes, accelerator=accelerator)) == expected


def test_processes_that_the_machine_counts_must_divide_the_prompts(monkeypatch, tmp_path):
    """Ranks that divide a policy and run it unequally often would wait for each other for ever."""
    monkeypatch.setattr(pipeline, "processes", lambda settings: 3)
    config = compose_config(tmp_path, "trainer=fsdp", "trainer.accelerator=cpu", "rollout=transformers")
    assert config.trainer.devices == "auto" and config.rollout.prompts_per_step % 3
    with pytest.raises(ValueError, match=r"^rollout\.prompts_per_step must be a multiple of 3, the processes that"):
        pipeline.instantiate_parts(config, tmp_path)


def test_an_engine_of_two_processes_needs_them():
    engine, one, two = VllmSampler(tensor_parallel_size=2), 1, 2
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2 must divide the run's .* processes, which is 1"):
        check_engine(engine, one)
    check_engine(engine, two)
    check_engine(TransformersSampler(), one)
    check_engine(VllmSampler(), two)


FILM = [Problem("still", "?", "1"), Problem("film", "<video>?", "1", videos=(Video(b"film"),))]


@pytest.mark.parametrize("problems", [FILM, MovingMarkersProblems().load("train")], ids=["listed", "generated"])
@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("sampler", [TransformersSampler, VllmSampler])
def test_videos_that_model_and_sampler_take(problems, model, sampler):
    assert refusal(check_videos_taken, problems, model, sampler) is None


def test_videos_that_they_do_not():
    with pytest.raises(ValueError, match=r"^problem film has a video, and a model of type gemma3 takes none: use"):
        check_videos_taken(FILM, "gemma3", TransformersSampler)
    with pytest.raises(ValueError, match=r"^problem film has a video, and rollout=server sends pictures alone"):
        check_videos_taken(FILM, "qwen2_5_vl", VllmServerSampler)
    with pytest.raises(ValueError, match=r"^problem train-0 has a video"):
        check_videos_taken(MovingMarkersProblems().load("train"), "llava", TransformersSampler)
    check_videos_taken(FILM[:1], "gemma3", VllmServerSampler)
    check_videos_taken(GeometryProblems().load("train"), "gemma3", VllmServerSampler)


@pytest.mark.parametrize("model", ["llava", "gemma3", "internvl"])
def test_patches_that_are_not_there_cannot_be_blacked_out(model):
    found = f"credit=papo masks patches, and pictures of a model of type {model} are cut into none: use a Qwen"
    assert found in refusal(check_masks, PapoCredit(), model)
    assert found in refusal(check_masks, product(EntropyCredit(), PapoCredit()), model)
    assert refusal(check_masks, AtrlCredit(), model) is None and refusal(check_masks, None, model) is None


@pytest.mark.parametrize("model", ["llava", "gemma3", "internvl"])
def test_heads_are_found_by_attention_alone_where_there_are_no_patches(model):
    by_patches, by_attention = (AtrlCredit(heads="auto", head_criterion=name) for name in ("dependency", "contrast"))
    found = refusal(check_masks, by_patches, model)
    assert found.startswith(f"credit.head_criterion=dependency masks patches, and pictures of a model of type {model}")
    assert found.endswith("or credit.head_criterion=relative_contrast")
    assert refusal(check_masks, product(EntropyCredit(), by_patches), model) == found
    assert refusal(check_masks, by_attention, model) is None
    assert refusal(check_masks, by_patches, TINY.model_type()) is None


def test_patches_are_blacked_out_by_qwen():
    """Of a family that nobody looked at its processor will tell."""
    for model_type in (TINY.model_type(), ScratchModel().model_type(), "qwen3_vl_moe"):
        assert refusal(check_masks, PapoCredit(), model_type) is None


def test_a_run_without_patches_is_refused_before_its_model_loads(tmp_path):
    folder = FAMILIES["llava"](tmp_path / "model")
    (folder / "model.safetensors").unlink()
    options = ("rollout=transformers", "model=pretrained", f"model.path={folder}", "rollout.max_prompt_tokens=440")
    config = compose_config(tmp_path, *options, "rollout.max_response_tokens=8", "credit=vppo")
    assert "credit=vppo masks patches" in refusal(pipeline.instantiate_parts, config, tmp_path)


def test_a_warm_up_needs_worked_answers(tmp_path):
    """Before a model loads, and of RL alone nothing is asked."""
    lines = [f'{{"problem": "What is {number} + 1?", "answer": "{number + 1}"}}\n' for number in range(30)]
    (tmp_path / "problems.jsonl").write_text("".join(lines))
    options = (f"data.path={tmp_path / 'problems.jsonl'}", "data.images_column=null", "data.selection_fraction=0.3")
    options += ("data=jsonl", "credit=none", "rollout=transformers")

    def loading(stage: str) -> str | None:
        config = compose_config(tmp_path, *options, f"stage={stage}")
        return refusal(pipeline.load_data, pipeline.instantiate_parts(config, tmp_path))

    assert loading("rl") is None
    for stage in ("sft", "sft_rl"):
        assert loading(stage).startswith("problem problems:") and "has no worked answer to learn from" in loading(stage)
    assert refusal(check_targets, GeometryProblems().load("train")) is None
