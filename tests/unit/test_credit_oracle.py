"""The generator's own reading tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.oracle import OracleCredit
from atrl.experience import build_experience
from atrl.types import Problem, Prompt, ReadingRule, Rollout, RolloutGroup

READING = torch.tensor([[False, True, False, False], [False, False, True, True]])
BATCH = replace(batch_of([(4, 1), (2, 1)]), reading=READING)


def test_reading_tokens_get_three_times_the_rest():
    """3 + 3·1 = 6 over 4 is 1.5. The second response has two tokens, and both marks are padding."""
    output = OracleCredit().assign(BATCH, None)
    torch.testing.assert_close(output.weights, torch.tensor([[2 / 3, 2, 2 / 3, 2 / 3], [1, 1, 0, 0]]))
    assert output.anchors.nonzero().tolist() == [[0, 1]]


def test_the_hard_form_trains_them_alone():
    assert OracleCredit(rest_weight=0.0).assign(BATCH, None).weights.tolist() == [[0, 4, 0, 0], [1, 1, 0, 0]]


def test_a_batch_that_does_not_know_is_weighed_evenly():
    """As one of mixed data may be."""
    output = OracleCredit(rest_weight=0.0).assign(replace(BATCH, reading=None), None)
    assert torch.equal(output.weights, BATCH.response_mask.float()) and not output.anchors.any()


def test_a_step_marks_what_the_rules_of_its_problems_name(processor):
    """The 7 alone, and only where the problem has a rule; None where none has."""
    token_ids = processor.tokenizer("At 7")["input_ids"]

    def group(rule: ReadingRule | None) -> RolloutGroup:
        prompt = Prompt(Problem("p", "?", "!", reading=rule), [1, 2], {}, (), [1, 2])
        return RolloutGroup(prompt, [Rollout(token_ids, [0.0] * len(token_ids), True)], ["At 7"], 0)

    bound = BoundCredit(OracleCredit(), None, PictureScale((), ()), processor.tokenizer)
    groups = [group(None), group(ReadingRule(r"(\d)", count=1))]
    batch = bound.prepare(build_experience(groups, pad_id=0), groups)
    assert batch.reading.nonzero().tolist() == [[1, len(token_ids) - 1]]
    assert bound.prepare(build_experience(groups[:1], pad_id=0), groups[:1]).reading is None


def test_ranges():
    with pytest.raises(ValueError, match=r"^credit\.rest_weight must be between 0 and .* got 5\.0 and 3\.0"):
        OracleCredit(rest_weight=5.0)
