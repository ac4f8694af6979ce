"""The sums of `benchmarks/finders.py`."""

from __future__ import annotations

import pytest
import torch

from atrl.models.load import PretrainedModel
from atrl.models.policy import picture_inputs
from tests.unit.test_step_benchmark import script, scripts_find_each_other  # noqa: F401


def test_recall_and_area_by_hand(capsys) -> None:
    """Of ten tokens the two best are anchors (round(1.5)), which hold one of two reading tokens; of eight the best one
    is (round(1.2)), and the only reading token is the second: 1 of 3. Of 3·15 pairs of a reading token and another,
    the reading one is behind where it meets the 9 or the 8."""
    scores = torch.tensor([[9, 7, 5, *[0.1] * 7], [8, 6, *[0.2] * 6, 0, 0]])
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 8:] = False
    reading = torch.zeros(2, 10, dtype=torch.bool)
    reading[0, 1:3] = reading[1, 1] = True
    found = script("finders").judged("by hand", scores, mask, reading)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["area"] == pytest.approx(1 - 3 * 2 / 45)
    assert "by hand" in capsys.readouterr().out


def test_how_many_hold_what_a_response_depends_on_by_hand(capsys) -> None:
    """Of 4 nats the first two tokens hold 0.75, of which one reads; of the other response's 1 its only one: 2 of 3
    read, of two reading tokens, and 3 of 6 tokens are chosen."""
    scores, mask = torch.tensor([[2.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), torch.ones(2, 3, dtype=torch.bool)
    reading = torch.tensor([[False, True, False], [False, True, False]])
    found = script("finders").held("by hand", scores, 0.75, mask, reading)
    assert found == pytest.approx({"share": 0.5, "recall": 1.0, "precision": 2 / 3})
    assert "0.75 of by hand" in capsys.readouterr().out


def test_attention_is_followed_through_the_layers() -> None:
    """As one row at a time through the layers, last one first; the model keeps the kernel it had."""
    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder

    finders, loaded = script("finders"), PretrainedModel(path="tiny").load(None)
    builder = PromptBuilder(processor=loaded.processor)
    prompts = builder.build_all(GeometryProblems().load("test")[:2]).prompts
    batch, _ = finders.sampled(loaded, prompts, max_response_tokens=8)
    kernel = loaded.model.config._attn_implementation
    found = finders.rolled_out(loaded, batch)
    assert loaded.model.config._attn_implementation == kernel != "eager"
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = loaded.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_attentions=True,
            **picture_inputs(loaded.model, batch.input_ids, batch.attention_mask, batch.pixels),
        ).attentions
    for response in range(2):
        for token in range(int(batch.response_mask[response].sum())):
            row = torch.zeros(batch.input_ids.shape[1])
            row[batch.prompt_length - 1 + token] = 1.0
            for layer in reversed(layers):
                row = (row + row @ layer[response].mean(dim=0)) / 2
            expected = row[batch.input_ids[response] == loaded.model.config.image_token_id].max()
            torch.testing.assert_close(found[response, token], expected, atol=1e-6, rtol=1e-5)


def test_another_picture_is_compared_with_the_response_s_own(monkeypatch) -> None:
    """The same picture changes nothing; a black one does; and rollouts keep their place whatever shares a pass."""
    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.splitting import EvenSplit

    finders, loaded = script("finders"), PretrainedModel(path="tiny").load(None)
    builder = PromptBuilder(processor=loaded.processor)
    prompts = builder.build_all(GeometryProblems().load("test")[:3]).prompts
    batch, _ = finders.sampled(loaded, prompts, max_response_tokens=8)
    black = [entry | {"pixel_values": torch.zeros_like(entry["pixel_values"])} for entry in batch.pixels]
    others = {"own": batch.pixels, "first black": [black[0], *batch.pixels[1:]]}
    found = finders.by_other_pictures(loaded, batch, others)
    assert found["own"].abs().max() < 1e-6 < 1e-3 < found["entropy"].max()
    changed = found["first black"].amax(dim=1)
    assert changed[0] > 1e-3 and (changed[1:] < 1e-6).all()
    monkeypatch.setattr(finders, "PIECES", EvenSplit(size=1))
    for name, score in finders.by_other_pictures(loaded, batch, others).items():
        torch.testing.assert_close(score, found[name], atol=1e-5, rtol=1e-4)
