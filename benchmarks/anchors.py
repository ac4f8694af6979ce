"""How well anchors match the tokens that read the picture, on teacher-forced worked answers.

    python benchmarks/anchors.py [CHECKPOINT]

The last line is one JSON object: AUC of the density and recall of the anchors for several settings of `credit=atrl`.
"""

from __future__ import annotations

import argparse
import json

import torch

from atrl.credit.agreement import area_under_curve, bimodality
from atrl.credit.atrl import AtrlCredit
from atrl.credit.probe import AttentionProbe
from atrl.credit.reading import reading_mask
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.experience import build_experience
from atrl.models.load import PretrainedModel
from atrl.models.policy import response_logits
from atrl.types import Evidence, Rollout, RolloutGroup

SETTINGS = {
    "relative, no clusters": {"num_clusters": 1},
    "peak, no clusters": {"num_clusters": 1, "reduction": "peak"},
    "mean, no clusters": {"num_clusters": 1, "reduction": "mean"},
    "top_heads (4), no clusters": {"num_clusters": 1, "reduction": "top_heads"},
    **{
        f"relative, K={clusters}, {edges}, by {ranking}": {
            "num_clusters": clusters, "edges": edges, "rank_clusters": ranking
        }
        for clusters in (4, 8, 16)
        for edges in ("attention", "similarity", "both")
        for ranking in ("mean", "peak")
    },
    "peak, K=8, both, by mean": {"reduction": "peak"},
    "mean, K=8, both, by mean": {"reduction": "mean"},
}  # fmt: skip


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
    schemes = {name: AtrlCredit(**options) for name, options in SETTINGS.items()}
    probe = AttentionProbe(loaded.model, [request for scheme in schemes.values() for request in scheme.requests])
    with torch.no_grad(), probe.capture(batch) as recorder:
        response_logits(loaded.model, batch)
    blank = torch.zeros(batch.response_mask.shape)
    evidence = Evidence(blank, blank, recorder.results())
    mask, reading = batch.response_mask, reading_mask(groups, tokenizer, batch.response_mask)
    result = {}
    for name, scheme in schemes.items():
        credit = scheme.assign(batch, evidence)
        found = (credit.anchors & reading).sum().item()
        result[name] = {
            "auc": area_under_curve(credit.density[mask], reading[mask]),
            "recall": found / reading.sum().item(),
            "precision": found / credit.anchors.sum().item(),
            "bimodality": bimodality(credit.density[mask]),
        }
        print(f"{name:36} " + "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    print(json.dumps({"reading_share": reading.sum().item() / batch.response_mask.sum().item(), "settings": result}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny", help="'tiny', a folder or a hub name (default tiny)")
    try:
        main(parser.parse_args().checkpoint)
    except ValueError as error:
        parser.error(str(error))
