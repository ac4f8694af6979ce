"""A tokenizer whose decoded text encodes to other ids: training goes by the sampled ids, and never by text."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning import Callback
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.integration.conftest import needs_vllm
from tests.unit import families

ENGINES_OWN = "<|im_start|>user\nwarmup<|im_end|>\n"
"""What vLLM tokenises at its start."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It lowers every letter that it encodes, and without training it samples pieces that no encoder would choose."""
    lower = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return families.qwen2_5_vl(tmp_path_factory.mktemp("lossy"), normalizer=lower)


class Watch(Callback):
    """Keeps the step records."""

    def __init__(self) -> None:
        self.records = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.records.append(pl_module.last_step)


@pytest.mark.parametrize("sampler", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_nothing_is_tokenised_but_prompts(train, checkpoint: Path, monkeypatch, sampler: str) -> None:
    encoded: list[str] = []
    original = PreTrainedTokenizerBase.__call__

    def call(self, text=None, *arguments, **options):
        encoded.extend([text] if isinstance(text, str) else text)
        return original(self, text, *arguments, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", call)
    watch = Watch()
    train(
        "model=pretrained", f"model.path='{checkpoint}'", f"rollout={sampler}", "rollout.max_response_tokens=24",
        "optimizer.learning_rate=1e-3", watch=watch,
    )  # fmt: skip
    monkeypatch.undo()
    prompts = [text for text in encoded if text != ENGINES_OWN]
    assert prompts and all(text.startswith("<|im_start|>user\n<|vision_start|>") for text in prompts)
    assert all(text.endswith("<|im_end|>\n<|im_start|>assistant\n") for text in prompts)

    tokenizer, changed, seen = AutoTokenizer.from_pretrained(checkpoint), 0, 0
    for record in watch.records:
        batch = record.experience
        rollouts = [(group.prompt, r) for group in record.groups for r in group.rollouts]
        for row, (prompt, rollout) in enumerate(rollouts):
            ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            assert ids == prompt.token_ids + rollout.token_ids
            again = tokenizer(tokenizer.decode(rollout.token_ids), add_special_tokens=False)["input_ids"]
            changed, seen = changed + (again != rollout.token_ids), seen + 1
        gap = (record.logprobs - batch.sampler_logprobs)[batch.response_mask].abs().max()
        assert float(gap) < 1e-3  # of other ids it would be of the order of 1
    assert changed > 0.9 * seen > 0
