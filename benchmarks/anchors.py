"""How well anchors match the tokens that read the picture, on teacher-forced worked answers.

    python benchmarks/anchors.py [CHECKPOINT]

The last line is one JSON object: AUC of the density and recall of the anchors for several settings of `credit=atrl`.
"""

from __future__ import annotations

import json
import sys

import torch

from atrl.credit.atrl import AtrlCredit
from atrl.credit.probe import AttentionProbe
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.experience import build_experience
from atrl.models.load import PretrainedModel
from atrl.models.policy import response_logits
from atrl.types import Rollout, RolloutGroup

SETTINGS = {
    "peak, no clusters": {"num_clusters": 1},
    "mean, no clusters": {"num_clusters": 1, "reduction": "mean"},
    "peak, K=4, both": {"num_clusters": 4},
    "peak, K=8, both": {},
    "peak, K=8, similarity": {"edges": "similarity"},
    "peak, K=8, attention": {"edges": "attention"},
    "peak, K=16, both": {"num_clusters": 16},
}


def main(checkpoint: str, problems: int = 96) -> None:
    """Score every setting on the first `problems` of the test split."""
    loaded = PretrainedModel(path=checkpoint).load(None)
    tokenizer, builder = loaded.processor.tokenizer, PromptBuilder(processor=loaded.processor)
    groups = []
    for problem in GeometryProblems().load("test")[:problems]:
        ids = [*tokenizer(problem.target)["input_ids"], tokenizer.eos_token_id]
        rollout = Rollout(ids, [0.0] * len(ids), finished=True)
        groups.append(RolloutGroup(builder.build(problem), [rollout], [problem.target], policy_version=0))
    batch = build_experience(groups, pad_id=tokenizer.pad_token_id)
    probe = AttentionProbe(loaded.model)
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(loaded.model, batch)
    reading = reading_mask(groups, tokenizer, batch.response_mask)
    result = {}
    for name, options in SETTINGS.items():
        credit = AtrlCredit(**options)(batch, recorder.result())
        positive, negative = credit.density[reading], credit.density[batch.response_mask & ~reading]
        auc = (positive[:, None] > negative[None]).float().mean().item()
        result[name] = {"auc": auc, "recall": (credit.anchors & reading).sum().item() / reading.sum().item()}
        print(f"{name:24} AUC {auc:.3f}  recall {result[name]['recall']:.3f}")
    print(json.dumps({"reading_share": reading.sum().item() / batch.response_mask.sum().item(), "settings": result}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
