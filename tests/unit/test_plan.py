"""The planner's arithmetic: against published sizes, transformers' own models, torch's own counts and sums by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from hydra import compose, initialize_config_dir

from atrl.models.attention import Attention
from atrl.models.published import published_config, published_names
from atrl.plan.activations import text_activations, text_block, vision_block, weight_copies
from atrl.plan.advice import advice, problems, remedies
from atrl.plan.duration import (
    communication,
    concurrent,
    forward_operations,
    plan_time,
    reading_operations,
    text_operations,
    training_operations,
    vision_operations,
)
from atrl.plan.hardware import GIB, Hardware
from atrl.plan.job import CreditCost, Engine, Job, Lengths, Precision
from atrl.plan.memory import _sampled_columns, cache_per_token, gradients, plan_memory
from atrl.plan.read import hardware_of, job_of, plan
from atrl.plan.shape import shape_of

ROOT = Path(__file__).parents[2]
PUBLISHED = {  # parameters by the index of each checkpoint's safetensors files
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}
H100 = Hardware(
    name="H100", memory_gib=79.6, peak_tflops=989, float32_tflops=67, bandwidth_gb=3350, node_gb=450, network_gb=50
)
SCALES = ("lora_3b_1x80", "full_7b_8x80", "full_32b_32x80")
MIXED = Precision(weights=4, compute=2)


def config_of(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=["logger=csv", "logger.csv.save_dir=.", "plan=true", *overrides])


def shape(name: str):
    return shape_of(published_config(name), name)


def seven(**changes) -> Job:
    job = Job(
        model=shape("Qwen/Qwen2.5-VL-7B-Instruct"),
        precision=MIXED,
        lengths=Lengths(prompt=1000, image=800, response=1000, response_mean=500),
        engine=Engine(name="vllm", weights=2, share=0.5, sequences=64, sleeps=True),
        gpus=8,
        gpus_per_node=8,
        strategy="fsdp",
        checkpointing=True,
        prompts=64,
        group=8,
        micro_batch=4,
    )
    return replace(job, **changes)


# Shapes.


@pytest.mark.parametrize("name", published_names())
def test_the_shape_has_the_parameters_that_were_published_and_that_transformers_builds(name: str) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**published_config(name)))
    built = shape(name)
    assert built.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert built.vision.parameters == sum(parameter.numel() for parameter in model.model.visual.parameters())
    block = model.model.language_model.layers[0]
    assert built.text.block_parameters == sum(parameter.numel() for parameter in block.parameters())
    assert built.parameters == PUBLISHED.get(name, built.parameters)


def test_the_older_flat_form_of_a_config_is_read_too() -> None:
    nested = dict(published_config("Qwen/Qwen2.5-VL-7B-Instruct"))
    flat = nested | nested.pop("text_config") | {"model_type": "qwen2_5_vl"}
    assert shape_of(flat, "x") == shape_of(published_config("Qwen/Qwen2.5-VL-7B-Instruct"), "x")


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"^x is a llava, which can't be planned"):
        shape_of({"model_type": "llava"}, "x")


@pytest.mark.parametrize(
    ("name", "model"),
    [(f"qwen2_5_vl_{size}", f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct") for size in ("3b", "7b", "32b", "72b")]
    + [(f"qwen3_vl_{size}", f"Qwen/Qwen3-VL-{size.upper()}-Instruct") for size in ("2b", "4b", "8b", "32b")],
)
def test_every_model_config_names_a_checkpoint_whose_shape_is_here(name: str, model: str) -> None:
    job = job_of(config_of(f"model={name}"))
    assert job.model == shape(model)
    assert {path.stem for path in (ROOT / "conf" / "model").glob("qwen*")} >= {name}


# Memory, by hand.


def test_weights_gradients_and_optimizer_of_7b_on_eight_gpus() -> None:
    plan = plan_memory(seven(), H100)
    part = 8_292_166_656 * 4 / 8
    assert plan.part("weights").update == part
    assert plan.part("gradients").step == part
    assert plan.part("optimizer").update == 2 * part
    assert plan.part("optimizer").step == 3 * part  # with the roots of all second moments
    alone = plan_memory(seven(strategy="ddp"), H100)
    assert alone.part("weights").update == 8 * part
    assert alone.part("gathered").update == 0


def test_lora_trains_adapters_alone() -> None:
    job = seven(lora_rank=32, precision=Precision(weights=2, compute=2), strategy="ddp", gpus=1)
    # width 3584, queries 3584, keys 512, feed-forward 18944, 28 blocks
    by_hand = 28 * 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert job.trained_parameters == by_hand == 80_740_352
    assert gradients(job) == by_hand * 4
    assert plan_memory(job, H100).part("weights").update == 8_292_166_656 * 2 + by_hand * 4
    assert plan_memory(replace(job, reference=True), H100).part("reference").update == 0


def test_the_cache_of_a_token() -> None:
    assert cache_per_token(seven()) == 2 * 28 * 4 * 128 * 2  # keys and values, layers, heads, width, bytes
    assert cache_per_token(seven(engine=replace(seven().engine, tensor_parallel=2))) == 28 * 4 * 128 * 2
    third = seven(model=shape("Qwen/Qwen2.5-VL-3B-Instruct"))  # 36 layers, 2 heads of keys, 128 wide
    by_ways = [
        cache_per_token(replace(third, engine=replace(third.engine, tensor_parallel=ways))) for ways in (1, 2, 8)
    ]
    assert by_ways == [2 * 36 * heads * 128 * 2 for heads in (2, 1, 1)]  # a head is not divided


def test_the_transformers_sampler_keeps_a_groups_prompt_once_in_float32() -> None:
    """Two groups of four: columns of prompts, and room for a response, 66 columns from the second token on."""
    lengths = replace(seven().lengths, prompt=100, response=50)
    job = seven(group=4, lengths=lengths, engine=Engine(name="transformers", weights=4))
    assert _sampled_columns(job, rows=8) == 2 * 100 + 8 * 66
    alone = 8 * 200  # a prompt's own columns, and as many again
    assert _sampled_columns(replace(job, group=1), rows=8) == alone
    assert _sampled_columns(replace(job, engine=replace(job.engine, weights=2)), rows=8) == alone
    assert _sampled_columns(replace(job, precision=replace(job.precision, autocast=True)), rows=8) == alone


def test_what_a_block_saves_for_a_token() -> None:
    text = shape("Qwen/Qwen2.5-VL-7B-Instruct").text
    # norms 2·(3584·(4+2)+4), inputs 2·3584·2, attention 4·3584·2 + 28·4, mask 100·2, feed-forward 4·18944·2
    assert text_block(text, MIXED, columns=100, flash=False) == 43016 + 14336 + 28672 + 112 + 200 + 151552
    # flash attention needs no mask, and keys and values of 512 are not repeated
    assert text_block(text, MIXED, columns=100, flash=True) == 43016 + 14336 + 2 * (3584 + 512) * 2 + 112 + 151552


def test_what_a_block_of_the_tower_saves_for_a_patch() -> None:
    vision = shape("Qwen/Qwen2.5-VL-7B-Instruct").vision
    assert vision_block(vision, MIXED) == 2 * (1280 * 6 + 4) + 2 * 1280 * 2 + 7 * 1280 * 2 + 16 * 4 + 4 * 3420 * 2
    third = shape("Qwen/Qwen3-VL-8B-Instruct").vision
    assert vision_block(third, MIXED) == 2 * 1152 * 2 + 2 * 1152 * 2 + 7 * 1152 * 2 + 16 * 4 + 2 * 4304 * 2


def test_checkpointing_keeps_what_goes_between_the_blocks_and_one_block() -> None:
    whole, less = text_activations(seven(checkpointing=False)), text_activations(seven())
    block = text_block(seven().model.text, MIXED, columns=2000, flash=False)
    assert whole - less == pytest.approx(8000 * (27 * block - 28 * 3584 * 2))


def test_frozen_vision_keeps_nothing_and_a_sleeping_engine_frees_its_memory() -> None:
    plan = plan_memory(seven(), H100)
    assert plan_memory(seven(freeze_vision=True), H100).part("activations").update < plan.part("activations").update
    assert plan.part("vLLM weights").update == plan.part("vLLM cache").step == 0
    awake = plan_memory(seven(engine=replace(seven().engine, sleeps=False)), H100)
    engine = sum(awake.part(f"vLLM {part}").update for part in ("weights", "cache", "scratch"))
    assert engine == pytest.approx(0.5 * 79.6 * GIB)


def test_groups_that_micro_batches_cut_count_a_picture_more() -> None:
    assert [seven(micro_batch=size).pictures for size in (1, 4, 8, 12, 16)] == [1, 1, 1, 3, 2]


def test_offloaded_states_are_not_on_the_gpu_and_whole_policies_send_one_message() -> None:
    plan = plan_memory(seven(cpu_offload=True, reference=True), H100)
    assert plan.part("reference").update == 0
    assert plan.part("weights").update == plan.part("optimizer").update == plan.part("gradients").step == 0
    cpu = replace(H100, is_cpu=True)
    whole = 8_292_166_656 * 4
    assert plan_memory(seven(strategy="ddp"), cpu).part("optimizer").step == 2 * whole + whole
    alone = plan_memory(seven(strategy="ddp", gpus=1), cpu).part("optimizer").step
    assert alone == 2 * whole + 2 * 152_064 * 3584 * 4  # two temporaries of the largest matrix


def test_what_is_gathered_of_a_divided_policy() -> None:
    model = seven().model
    block = model.text.block_parameters
    outside = model.parameters - 28 * block - 32 * model.vision.block_parameters
    # in 2 bytes what is outside the blocks, two blocks and a block's gradients; these in 4 once more
    assert plan_memory(seven(), H100).part("gathered").update == 2 * outside + block * (3 * 2 + 4)


def test_a_divided_policy_that_generates_is_whole_meanwhile() -> None:
    """As `gathered` leaves it; an engine takes over one matrix at a time."""
    itself = seven(engine=Engine(name="transformers", weights=2))
    assert plan_memory(itself, H100).part("gathered").rollout == 8_292_166_656 * 2
    assert plan_memory(seven(), H100).part("gathered").rollout == 152_064 * 3584 * 4
    whole = replace(itself, strategy="ddp")
    assert plan_memory(whole, H100).part("gathered").rollout == 0
    seconds = plan_time(itself, H100).rollout - plan_time(whole, H100).rollout
    assert seconds == pytest.approx(8_292_166_656 * 2 / (450e9 * 0.7))


def test_a_policy_divided_among_one_gpu_is_put_together_all_the_same() -> None:
    """Block by block, from where it waits, and without autocast."""
    overrides = ("trainer=fsdp", "trainer.devices=1", "trainer.cpu_offload=true", "hardware=h100_80gb")
    job = job_of(config_of("model=qwen2_5_vl_7b", *overrides))
    assert (job.gpus, job.strategy, job.precision.autocast) == (1, "fsdp", False)
    plan = plan_memory(job, H100)
    assert plan.part("gathered") == plan_memory(seven(precision=job.precision), H100).part("gathered")
    assert plan.part("weights").update == communication(job) == 0


def test_a_micro_batch_that_waits_is_alive_beside_the_next() -> None:
    waiting = CreditCost(background=True)
    once, twice = (plan_memory(seven(credit=cost), H100) for cost in (CreditCost(), waiting))
    assert twice.part("activations").update == 2 * once.part("activations").update
    kept = 4 * 4 * 1000 * 152_064  # bytes, rollouts, tokens, vocabulary
    assert twice.part("logits").update == once.part("logits").update + kept
    chunked = [plan_memory(seven(credit=cost, logit_chunk=500), H100) for cost in (CreditCost(), waiting)]
    assert chunked[0].part("logits") == chunked[1].part("logits")  # made again, and so not kept
    for changes in ({"micro_batch": 64}, {"updates": 2}):  # nothing comes after, or all is scored before
        job = seven(credit=waiting, **changes)
        assert plan_memory(job, H100) == plan_memory(replace(job, credit=CreditCost()), H100)


def test_logits_exist_a_chunk_at_a_time() -> None:
    """Twice, in float32, and the gradient of the output matrix in 16 bits."""
    head = 2 * 152_064 * 3584
    for chunk, tokens in ((None, 4000), (5000, 4000), (1000, 1000)):
        part = plan_memory(seven(logit_chunk=chunk), H100).part("logits")
        assert part.update == 2 * 4 * tokens * 152_064 + head


def test_a_budget_of_tokens_is_counted_in_rollouts_of_full_length() -> None:
    """Prompts of 256 tokens and responses of 64, in groups of 8: 768 tokens a group whose prompt is run once."""

    def rollouts(tokens: int, *overrides: str) -> int:
        return job_of(config_of("plan=true", f"optimizer.micro_batch_tokens={tokens}", *overrides)).micro_batch

    apart = "optimizer.share_prompts=false"
    assert rollouts(1000, apart) == 3 and rollouts(5, apart) == 1  # of 320 each
    assert rollouts(1000, "credit=hidden_cosine") == 3  # which looks at prompt and response together
    counted = {5: 1, 320: 1, 383: 1, 384: 2, 1000: 8, 1087: 8, 1088: 9, 2 * 768: 16}
    assert {tokens: rollouts(tokens) for tokens in counted} == counted
    job = job_of(config_of("plan=true", "optimizer.micro_batch_tokens=1280", apart))
    remedy = next(remedies(job))
    assert remedy.setting == "optimizer.micro_batch_tokens=640" and remedy.change(job).micro_batch == 2
    remedy = next(remedies(job_of(config_of("plan=true", "optimizer.micro_batch_tokens=1536"))))
    assert remedy.setting == "optimizer.micro_batch_tokens=768" and remedy.change(job).micro_batch == 8


def test_a_deterministic_run_goes_by_prompt_whatever_is_set() -> None:
    """In sampling and training, and with gradients added up in float64."""
    for setting in ("optimizer.micro_batch_size=64", "optimizer.micro_batch_size=2", "optimizer.micro_batch_tokens=5"):
        for rollout in ("vllm", "transformers"):
            job = job_of(config_of("trainer.deterministic=true", setting, f"rollout={rollout}"))
            assert (job.micro_batch, job.micro_batches, job.engine.sequences) == (8, 16, 8)
            assert not any("micro_batch" in remedy.setting for remedy in remedies(job))
    assert plan_memory(job, H100).part("gradients").update == 8 * job.trained_parameters
    assert plan_memory(job, H100).part("gradients").step == 4 * job.trained_parameters


def test_gradients_are_there_before_the_last_micro_batch() -> None:
    assert plan_memory(seven(), H100).part("gradients").update == gradients(seven())
    assert plan_memory(seven(micro_batch=64), H100).part("gradients").update == 0


def test_pictures_of_the_step_and_their_masked_copies() -> None:
    tokens = 64 * (2 * 8 * 2000 + 3 * 4 * 1000)
    pictures = 8 * 800 * 4 * 1176 * 4  # prompts, image tokens, patches, numbers, bytes
    assert plan_memory(seven(), H100).part("batch").step == tokens + pictures
    masked = seven(credit=CreditCost(masked="forward"))
    assert plan_memory(masked, H100).part("batch").step == tokens + 2 * pictures


def test_autocast_copies_every_matrix_and_with_checkpointing_those_of_one_block() -> None:
    autocast = seven(precision=replace(MIXED, autocast=True), strategy="ddp", checkpointing=False)
    text, vision = autocast.model.text, autocast.model.vision
    assert weight_copies(autocast) == 2 * (28 * text.block_matrices + text.embedding + vision.parameters)
    assert weight_copies(replace(autocast, checkpointing=True)) == 2 * (text.block_matrices + text.embedding)
    assert weight_copies(seven()) == 0


# Time.


def counted(model, **inputs) -> tuple[float, float]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as forward:
        loss = model(**inputs).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_operations_are_those_that_torch_counts(policy, processor) -> None:
    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder

    policy.set_attn_implementation(
        "eager"
    )  # whose products torch counts; those of the fused kernel on a CPU it does not
    prompt = PromptBuilder(processor=processor).build(GeometryProblems(train_size=1).load("train")[0])
    ids = torch.tensor([prompt.token_ids])
    kinds = (ids == policy.config.image_token_id).int()
    forward, backward = counted(
        policy.train(), input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **prompt.pixels
    )
    response = 10
    job = seven(
        model=shape_of(policy.config.to_dict(), "tiny"),
        precision=Precision(weights=4, compute=4),
        lengths=Lengths(
            prompt=ids.shape[1] - response, image=int(kinds.sum()), response=response, response_mean=response
        ),
        gpus=1,
        strategy="ddp",
        checkpointing=False,
        prompts=1,
        group=1,
        micro_batch=1,
    )
    head = 2 * (ids.shape[1] - response) * job.model.text.embedding  # torch's run took all rows to the output matrix
    assert forward_operations(job) + head == forward
    # No gradient is taken of the pixels, which the twofold backward pass counts.
    patches = 2 * job.patches * job.model.vision.patch_numbers * job.model.vision.width
    assert training_operations(job) + 3 * head - patches == forward + backward


def test_checkpointing_and_lora_in_passes() -> None:
    plain = seven(checkpointing=False)
    assert training_operations(plain) == pytest.approx(3 * forward_operations(plain))
    assert training_operations(seven()) == pytest.approx(4 * forward_operations(plain))
    adapters = training_operations(seven(checkpointing=False, lora_rank=8))
    assert forward_operations(plain) < adapters < 2 * forward_operations(plain)


def test_bytes_that_are_sent() -> None:
    # 64 prompts of 8 on 8 GPUs in fours are 16 micro-batches; weights twice in 2 bytes, gradients in 4; 7/8
    assert communication(seven()) == 16 * 7 / 8 * 8_292_166_656 * (2 * 2 + 4)
    assert communication(seven(strategy="ddp")) == 2 * 7 / 8 * 8_292_166_656 * 4


def test_reading_a_head_by_hand() -> None:
    # 64 rollouts of 1,000 + 1,000 tokens, 800 of them the picture's: 2,800 columns of 2 · 128 + 5; 6 for each mass
    job = seven(
        credit=CreditCost(heads_read=1), lengths=Lengths(prompt=1000, image=800, response=1000, response_mean=1000)
    )
    assert reading_operations(job) == 64 * 1000 * (2800 * 261 + 6 * 800)


def test_phases_depend_on_what_is_asked() -> None:
    plain = plan_time(seven(), H100)
    assert plain.score == plain.credit == 0
    assert plan_time(seven(reference=True), H100).score > 0
    reading = plan_time(seven(credit=CreditCost(heads_read=28 * 28)), H100)
    assert 0 < reading.credit < 0.02 * plain.update
    assert plan_time(seven(gpus=16), H100).sync > plain.sync  # the network is slower than a node's links
    assert plan_time(seven(updates=2), H100).update == pytest.approx(2 * plain.update)


def test_the_slower_of_computation_and_messages_is_the_update() -> None:
    slow = replace(H100, node_gb=1.0)
    assert plan_time(seven(), slow).update == communication(seven()) / (1e9 * 0.7)
    assert plan_time(seven(), H100).update == training_operations(seven()) / (989e12 * 0.4)


def test_messages_take_the_network_where_the_gpus_are_on_several_nodes() -> None:
    """However many of its GPUs a run takes of a node, and of a machine that has one device by itself."""
    halves = seven(gpus=8, gpus_per_node=4, micro_batch=1)
    assert plan_time(halves, H100).update == communication(halves) / (50e9 * 0.7)
    overrides = ("hardware=h100_80gb", "trainer=fsdp", "trainer.devices=4", "trainer.num_nodes=2")
    assert job_of(config_of(*overrides)).across_nodes and not job_of(config_of(*overrides[:3])).across_nodes
    config = config_of("trainer.devices=2")
    job, cpu = job_of(config), hardware_of(config)
    assert not job.across_nodes
    slow = replace(cpu, peak_tflops=1e6, float32_tflops=1e6)  # so that messages count
    within, across = (plan_time(replace(job, gpus_per_node=size), slow).update for size in (2, 1))
    assert across == pytest.approx(within * 10 / 1.25)


def test_seconds_of_a_token_by_hand() -> None:
    """64 rollouts a GPU in one round: a token reads all weights but the embedding, and the cache."""
    job, text = seven(), seven().model.text
    read = (text.parameters - text.embedding) * 2 + 64 * (1000 + 250) * 57_344
    prefill = 8 * (text_operations(job, 1000, 500) + vision_operations(job, 1)) / (989e12 * 0.4)
    assert plan_time(job, H100).rollout == pytest.approx(prefill + 500 * read / (3350e9 * 0.6))
    # A cache for 20 responses of 1000 tokens and an eighth of a prompt takes four rounds of them.
    small = seven(engine=replace(job.engine, cache=20.5 * 57_344 * 1125))
    assert concurrent(small, H100) == 20
    read = (text.parameters - text.embedding) * 2 + 20 * (1000 + 250) * 57_344
    assert plan_time(small, H100).rollout == pytest.approx(prefill + 4 * 500 * read / (3350e9 * 0.6))


def test_an_engine_over_two_gpus_adds_up_in_every_block() -> None:
    job = seven(engine=replace(seven().engine, tensor_parallel=2))
    fast = plan_time(job, replace(H100, node_gb=1e12)).rollout
    # 500 tokens, 28 blocks twice, half sent and returned, 64 rows, two rounds
    sent = 500 * 28 * 2 * 2 * (1 / 2) * 64 * 3584 * 2 * 2
    assert plan_time(job, H100).rollout - fast == pytest.approx(sent / (450e9 * 0.7))


def test_clusters_are_worked_out_on_the_hosts_cores() -> None:
    cost = CreditCost(heads_read=1, clusters=True)
    with_clusters = plan_time(seven(credit=cost), H100).credit
    without = plan_time(seven(credit=replace(cost, clusters=False)), H100).credit
    assert with_clusters - without == pytest.approx(64 * 500 * 25e-6 / 8)  # docs/benchmarks.md: 25 ms for 1,000 tokens


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 0),
        ({"updates": 2}, 1),
        ({"reference": True, "updates": 3}, 2),
        ({"credit": CreditCost(masked="forward", scores_first=True)}, 2),
        ({"credit": CreditCost(masked="gradient")}, 0),
    ],
)
def test_passes_before_the_update(changes: dict, passes: int) -> None:
    job = seven(**changes)
    assert plan_time(job, H100).score == passes * forward_operations(job) / (989e12 * 0.4)


def test_a_servers_rollouts_are_planned_elsewhere() -> None:
    job = job_of(config_of("rollout=server", "rollout.sampler.url=http://x"))
    assert job.engine.name == "server"
    assert plan_time(job, H100).rollout == plan_time(job, H100).sync == plan_memory(job, H100).total("rollout") * 0
    assert not any("vLLM" in part.name or "sampler" in part.name for part in plan_memory(job, H100).parts)
    assert "the server's rollouts" in plan(config_of("rollout=server", "rollout.sampler.url=http://x"))


# What fits.


def test_what_fits_needs_no_advice() -> None:
    assert problems(seven(), H100) == advice(seven(), H100) == []


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"micro_batch": 64}, "optimizer.micro_batch_size="),
        ({"strategy": "ddp"}, "trainer.strategy=fsdp"),
        ({"engine": Engine(name="vllm", weights=2, share=0.2, sequences=64, sleeps=True)}, "gpu_memory_utilization="),
    ],
)
def test_the_advised_setting_makes_it_fit(changes: dict, setting: str) -> None:
    job = seven(**changes)
    assert problems(job, H100)
    (advised,) = advice(job, H100)
    assert setting in advised
    chosen = next(remedy for remedy in remedies(job) if remedy.setting == advised)
    assert not problems(chosen.change(job), H100)


def test_no_setting_is_advised_that_the_run_refuses() -> None:
    """7B has 28 heads; neither 4 bits nor determinism go with FSDP; the prompts must come out even."""

    def named(part: str, **changes) -> list[str]:
        return [remedy.setting for remedy in remedies(seven(**changes)) if part in remedy.setting]

    assert named("tensor_parallel") == [f"rollout.sampler.tensor_parallel_size={ways}" for ways in (2, 4)]
    assert [name[-1] for name in named("tensor_parallel", gpus=6, gpus_per_node=6, prompts=60)] == ["2"]
    assert named("num_nodes", prompts=24) == [] and named("num_nodes", prompts=24, strategy="ddp") != []
    assert named("strategy", strategy="ddp") == ["trainer.strategy=fsdp"]
    for changes in ({"quantized": True}, {"deterministic": True}, {"prompts": 63}):
        assert named("strategy", strategy="ddp", **changes) == []
    assert named("tensor_parallel", strategy="ddp", deterministic=True) == []


@pytest.mark.parametrize("rollout", ["vllm", "transformers"])
def test_what_is_advised_is_what_the_setting_plans(rollout: str) -> None:
    """Of the settings that change more than one thing: precision with the strategy, whole rows with single rollouts."""
    overrides = ("trainer=ddp", "trainer.devices=2", "hardware=h100_80gb", f"rollout={rollout}")
    for less in ((), ("optimizer.micro_batch_size=2",)):
        job = job_of(config_of(*overrides, *less))
        for remedy in remedies(job):
            if remedy.setting.startswith(("trainer.strategy=", "optimizer.micro_batch_size=")):
                assert remedy.change(job) == job_of(config_of(*overrides, *less, remedy.setting))


def test_a_model_that_cannot_fit_is_not_said_to() -> None:
    job = seven(model=shape("Qwen/Qwen2.5-VL-72B-Instruct"), gpus=1, gpus_per_node=1, prompts=1)
    assert advice(job, replace(H100, memory_gib=24.0))[-1] == "…"


# The config.


@pytest.mark.parametrize(("data", "scale"), list(product(("virl39k", "mmk12", "geometry3k"), SCALES)))
def test_every_experiment_is_planned_at_every_scale(data: str, scale: str) -> None:
    config = config_of(f"experiment={data}", f"scale={scale}")
    text = plan(config)
    job = job_of(config)
    assert job.model.name in text
    assert job.gpus == int(scale.split("_")[-1].split("x")[0])
    assert (job.lora_rank is None) == scale.startswith("full")
    assert (config.trainer.accelerator, job.precision.compute) == ("cuda", 2)


def test_a_gpu_that_is_not_described_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^hardware=cpu describes no GPU, .* plan with hardware=h100_80gb"):
        plan(config_of("trainer=gpu"))
    assert "1 × H100" in plan(config_of("trainer=gpu", "hardware=h100_80gb"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rollout.prompts_per_step=12", r"rollout\.prompts_per_step must be a multiple of 8, the processes"),
        ("rollout.prompts_per_step=4", r"rollout\.prompts_per_step must be at least 8, got 4"),
        ("rollout.sampler.tensor_parallel_size=3", r"rollout\.sampler\.tensor_parallel_size=3 must divide .* is 8"),
        ("rollout.sampler.tensor_parallel_size=8", r"rollout\.sampler\.tensor_parallel_size=8 .* the model's 28 heads"),
    ],
)
@pytest.mark.parametrize("devices", ["auto", "8"])
def test_what_so_many_gpus_cannot_run_is_not_planned_for_them(override: str, line: str, devices: str) -> None:
    """Whether the run counts them itself or is told."""
    with pytest.raises(ValueError, match=f"^{line}"):
        plan(
            config_of(
                "model=qwen2_5_vl_7b", "trainer=fsdp", f"trainer.devices={devices}", "hardware=h100_80gb", override
            )
        )


def test_lengths_that_the_model_was_not_made_for_are_not_planned() -> None:
    with pytest.raises(ValueError, match=r"^rollout\.max_prompt_tokens=2000 .*=64 are 2064 tokens, .* made for 2048"):
        plan(config_of("rollout.max_prompt_tokens=2000"))
    assert job_of(config_of("rollout.max_prompt_tokens=1984")).lengths.total == 2048
    assert shape_of(published_config("Qwen/Qwen2.5-VL-3B-Instruct"), "3b").text.longest == 128000


def test_strategy_devices_and_precision_are_the_trainers() -> None:
    job = job_of(config_of("trainer=fsdp", "hardware=h100_80gb", "trainer.num_nodes=2", "rollout.prompts_per_step=32"))
    assert (job.gpus, job.strategy, job.checkpointing) == (16, "fsdp", True)
    assert job.precision == Precision(weights=4, compute=2, adapter=2)
    job = job_of(config_of("trainer=gpu"))
    assert (job.gpus, job.strategy, job.precision) == (
        1,
        "ddp",
        Precision(weights=4, compute=2, adapter=2, autocast=True),
    )
    assert job_of(config_of("model.dtype=bfloat16")).precision == Precision(weights=2, compute=2)
    assert job_of(config_of("trainer=fsdp", "trainer.cpu_offload=true", "trainer.devices=2")).cpu_offload


def test_which_kernels_make_a_mask() -> None:
    kernels = {name: job_of(config_of(f"model.attention={name}")).flash_attention for name in get_args(Attention)[2:]}
    assert kernels == {"flex_attention": True, "flash_attention_2": True, "flash_attention_3": True}
    assert not job_of(config_of()).flash_attention


@pytest.mark.parametrize("data", ["virl39k", "mmk12", "geometry3k"])
def test_every_experiment_fits_the_machine_that_it_names(data: str) -> None:
    config = config_of(f"experiment={data}")
    assert problems(job_of(config), hardware_of(config)) == []
    assert "fits, " in plan(config)


def test_the_demo_is_planned_as_it_runs() -> None:
    job = job_of(config_of())
    assert (job.gpus, job.strategy, job.engine.name, job.prompts, job.group) == (1, "ddp", "vllm", 16, 8)
    assert job.credit == CreditCost(name="atrl", heads_read=12, clusters=True, background=True)
    assert job.model.parameters == 907_904
    assert job.engine.cache == 2**30


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("credit=none",), CreditCost()),
        (("credit=vppo",), CreditCost(name="vppo", masked="forward", scores_first=True)),
        (("credit=visual_dependency",), CreditCost(name="visual_dependency", masked="forward")),
        (("credit=papo",), CreditCost(name="papo", masked="gradient")),
        (
            ("credit.heads=auto", "credit.edges=both"),
            CreditCost(name="atrl", heads_read=8, edges=3 * 8, clusters=True, background=True),
        ),
        (
            ("credit.layers=[0,2]", "credit.edges=attention", "credit.neighbours=5"),
            CreditCost(name="atrl", heads_read=8, edges=2 * 5, clusters=True, background=True),
        ),
        (
            ("credit.heads=[[1,0],[1,3]]", "credit.edges=attention"),
            CreditCost(name="atrl", heads_read=2, edges=8, clusters=True, background=True),
        ),
        (("credit.layers=[0,2]", "credit.workers=0"), CreditCost(name="atrl", heads_read=8, clusters=True)),
        (("credit=hidden_cosine",), CreditCost(name="hidden_cosine", whole_rows=True)),
        (("credit.num_clusters=1",), CreditCost(name="atrl", heads_read=12)),
        (("credit=query_key_cosine",), CreditCost(name="query_key_cosine")),
        (("credit=kawhi",), CreditCost(name="kawhi")),
        (
            ("credit=query_key_cosine", "credit.smoothing=cluster"),
            CreditCost(name="query_key_cosine", clusters=True, background=True),
        ),
        (
            ("credit=entropy_atrl",),
            CreditCost(name="product", heads_read=12, clusters=True, background=True),
        ),
    ],
)
def test_what_each_scheme_asks_for(overrides, expected) -> None:
    assert job_of(config_of(*overrides)).credit == expected


@pytest.mark.parametrize("scheme", sorted(file.stem for file in (ROOT / "conf" / "credit").glob("*.yaml")))
def test_every_scheme_can_be_planned(scheme: str) -> None:
    assert "fits, " in plan(config_of(f"credit={scheme}"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("planner.prompt_tokens=300", r"planner\.prompt_tokens must be at most 256"),
        ("planner.image_tokens=257", r"planner\.image_tokens must be at most 256"),
        ("planner.response_tokens=65", r"planner\.response_tokens must be at most 64"),
        ("model.attention=eager", r"model\.attention=eager keeps whole rows"),
        ("stage=sft", "plan=true plans steps of reinforcement, and stage=sft has none"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(override: str, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        plan(config_of(override))


def test_a_plan_says_that_the_warm_up_is_not_in_it() -> None:
    both, rl = (plan(config_of("model=scratch", f"stage={stage}")).splitlines() for stage in ("sft_rl", "rl"))
    assert both[0] == f"{rl[0]}, the supervised warm-up before it left out" and both[1:] == rl[1:]


def test_adapters_are_planned_as_the_run_has_them() -> None:
    assert job_of(config_of()).lora_rank is None
    assert job_of(config_of("model/lora=language", "model.lora.rank=8")).lora_rank == 8


def test_the_engine_is_planned_as_it_is_set() -> None:
    engine = job_of(config_of("rollout.sampler.tensor_parallel_size=2", "rollout.sampler.sleep_level=1")).engine
    assert (engine.tensor_parallel, engine.sleeps) == (2, True)


@pytest.mark.parametrize("name", ["cpu", "a100_80gb", "h100_80gb", "h200_141gb"])
def test_hardware_is_read(name: str) -> None:
    hardware = hardware_of(config_of(f"hardware={name}"))
    assert hardware.is_cpu == (name == "cpu")
    with pytest.raises(ValueError, match=r"^hardware\.compute_efficiency must be in \(0, 1\]"):
        replace(hardware, compute_efficiency=1.5)


def test_the_arithmetic_imports_no_torch() -> None:
    code = "import sys, atrl.plan.table, atrl.plan.settings; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "False\n"


def test_the_command_line_prints_the_plan_and_leaves_no_run(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "plan=true", "experiment=virl39k", "hydra.run.dir=planned"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan of virl39k\nQwen/Qwen2.5-VL-7B-Instruct: 8.29 B parameters")
    assert {"weights", "gradients", "optimizer", "activations", "vLLM", "credit", "update", "sync"} <= set(
        done.stdout.split()
    )
    assert not (tmp_path / "planned" / "metrics.csv").exists()
