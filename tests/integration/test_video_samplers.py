"""vLLM on prompts with videos: the same tokens, and the trainer's log-probs, for both families of Qwen-VL."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import needs_vllm

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from video_prompts import problems, qwen3_vl

from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.models import scratch
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.vllm import VllmSampler

pytestmark = needs_vllm
TOLERANCE = 1e-4
"""Largest difference of a float32 log-probability; 2.5e-6 is what vLLM reaches."""


def qwen2_5_vl(folder: Path):
    """A checkpoint whose processor would choose frames by itself if it were not told not to."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    scratch.build(folder, seed=3)
    processor = AutoProcessor.from_pretrained(folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"] |= {"do_sample_frames": True, "num_frames": 2}
    (folder / "processor_config.json").write_text(json.dumps(config))
    return processor, AutoModelForImageTextToText.from_pretrained(folder).eval()


def saved_qwen3_vl(folder: Path):
    processor, model = qwen3_vl()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, model


@pytest.fixture(scope="module", params=[qwen2_5_vl, saved_qwen3_vl], ids=["qwen2_5_vl", "qwen3_vl"])
def started(request, tmp_path_factory) -> Iterator[tuple]:
    """Processor, model and an engine that has its weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor, model = request.param(folder)
    handle = ModelHandle(
        folder=folder, model=model, tokenizer=processor.tokenizer, banned_ids=banned_token_ids(processor),
        max_prompt_tokens=512, max_response_tokens=16, max_images=1, max_videos=2,
    )  # fmt: skip
    sampler = VllmSampler(max_num_seqs=16, cpu_cache_gib=0.25)
    sampler.start(handle)
    sampler.update_weights(model.named_parameters(), version=1)
    yield processor, model, sampler, handle
    sampler.close()
    shutil.rmtree(folder)


def worst_difference(model, sampler, handle, processor, seed: str) -> float:
    builder = PromptBuilder(processor=processor)
    prompts = [builder.build(problem) for problem in problems().values()]
    groups = sampler.generate(prompts, Sampling(group_size=3, max_response_tokens=12), seed=seed)
    batch = build_experience(groups, pad_id=0)
    with torch.no_grad():
        logprobs, _ = ForwardPass(temperature=1.0, banned_ids=handle.banned_ids).logprobs(model, batch)
    assert batch.response_mask.sum() > 80
    return float((logprobs - batch.sampler_logprobs).abs().max())


def test_logprobs_are_the_trainers_on_videos_pictures_and_text(started):
    """A prompt that the engine expands otherwise would be refused; `VllmSampler` compares it token for token."""
    processor, model, sampler, handle = started
    difference = worst_difference(model, sampler, handle, processor, "0/1")
    print(f"\nlargest difference {difference:.1e}")
    assert difference < TOLERANCE


def test_new_weights_of_the_vision_tower_are_used(started):
    """The encoder's cache still holds the features that the last test's weights gave."""
    processor, model, sampler, handle = started
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "visual" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    assert worst_difference(model, sampler, handle, processor, "0/2") > 10 * TOLERANCE
    sampler.update_weights(model.named_parameters(), version=2)
    assert worst_difference(model, sampler, handle, processor, "0/2") < TOLERANCE
