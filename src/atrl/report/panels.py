"""Which curves the report shows, and in which panel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atrl.report.figures import PHASES

Unit = Literal["number", "share", "seconds", "bytes", "tokens"]
STATUS_COLOURS = {"right": 3, "wrong": 2, "unparseable": 4, "truncated": 7}
"""Number of the page's series colour for each status."""
PHASE_COLOURS = {name: i for i, name in enumerate((*PHASES, "other"), 1)}
"""Number of the page's series colour for each phase."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a panel: columns that may hold it (the first that exists is taken), its label and colour number."""

    columns: tuple[str, ...]
    label: str
    colour: int


@dataclass(frozen=True, slots=True)
class Panel:
    """A small chart.

    Attributes:
        name: a word for ids.
        stacked: values add up, and are drawn as bands on top of each other.
        endpoints: the accuracies of the summary, with their intervals, belong into it.
        expected: every run has it, so that the page says where it is missing.
    """

    name: str
    title: str
    note: str
    lines: tuple[Line, ...]
    unit: Unit = "number"
    stacked: bool = False
    endpoints: bool = False
    expected: bool = True


PANELS = (
    Panel(
        "warm_up_loss", "Warm-up loss", "supervised, nats a token",
        (Line(("loss/sft",), "loss", 2),), expected=False,
    ),
    Panel(
        "warm_up_accuracy", "Warm-up accuracy", "on the selection split",
        (Line(("eval/selection_accuracy",), "accuracy", 1),), unit="share", expected=False,
    ),
    Panel(
        "reward", "Reward", "mean over the step's rollouts, and its unweighted parts",
        (
            Line(("reward/mean",), "mean", 1),
            Line(("reward/exact",), "exact", 3),
            Line(("reward/math", "reward/math_verify"), "math", 6),
            Line(("reward/format",), "format", 4),
        ),
    ),
    Panel(
        "status", "Status of rollouts", "shares of the step's rollouts",
        tuple(Line((f"reward/{name}",), name, colour) for name, colour in STATUS_COLOURS.items()),
        unit="share", stacked=True,
    ),
    Panel(
        "accuracy", "Held-out accuracy", "sampled at T = 1, greedy at T = 0; bars are 95 % intervals",
        (Line(("eval/accuracy",), "sampled", 1), Line(("eval/greedy_accuracy",), "greedy", 4)),
        unit="share", endpoints=True,
    ),
    Panel(
        "pictures", "Reading the pictures", "held-out accuracy at T = 1 with the right pictures, and without",
        (
            Line(("eval/picture_true",), "own pictures", 1),
            Line(("eval/picture_blank",), "blanked", 7),
            Line(("eval/picture_swapped",), "another problem’s", 2),
        ),
        unit="share", expected=False,
    ),
    Panel(
        "length", "Response length", "tokens",
        (
            Line(("rollout/response_length",), "mean", 1),
            Line(("rollout/response_length_max",), "longest", 7),
        ),
        unit="tokens",
    ),
    Panel("entropy", "Entropy", "nats a token", (Line(("loss/entropy",), "entropy", 4),)),
    Panel("kl", "KL to the reference", "nats a token", (Line(("loss/kl",), "KL", 4),)),
    Panel(
        "clip", "Clip share", "tokens whose ratio was clipped",
        (Line(("loss/clip_share",), "clipped", 2),), unit="share",
    ),
    Panel(
        "gradient", "Gradient norm", "before clipping",
        (Line(("loss/gradient_norm",), "norm", 2),),
    ),
    Panel(
        "flat", "Groups without a signal", "all rewards of the group are equal",
        (Line(("reward/flat_groups",), "flat", 7),), unit="share",
    ),
    Panel("policy", "Policy loss", "on the step's own rollouts", (Line(("loss/policy",), "loss", 2),)),
    Panel(
        "gap", "Sampler–trainer gap", "mean absolute difference of log-probs",
        (Line(("rollout/logprob_gap_mean",), "gap", 7),),
    ),
    Panel(
        "anchors", "Anchor tokens", "share of the tokens; where the data knows what reads, how well that is found",
        (
            Line(("credit/anchor_fraction",), "fraction", 1),
            Line(("credit/anchor_recall",), "recall", 3),
            Line(("credit/anchor_precision",), "precision", 4),
            Line(("credit/anchor_auc",), "AUC of the scores", 6),
        ),
        unit="share",
    ),
    Panel(
        "anchor_entropy", "Entropy at the anchors", "nats a token, beside the other tokens",
        (Line(("credit/anchor_entropy",), "anchors", 2), Line(("credit/rest_entropy",), "rest", 7)), expected=False,
    ),
    Panel(
        "anchor_kl", "KL at the anchors", "to the reference, nats a token, beside the other tokens",
        (Line(("credit/anchor_kl",), "anchors", 2), Line(("credit/rest_kl",), "rest", 7)), expected=False,
    ),
    Panel(
        "anchor_gradient", "Anchors' share of the gradient", "at the logits of the sampled tokens",
        (Line(("credit/anchor_gradient_share",), "gradient", 2), Line(("credit/anchor_fraction",), "of the tokens", 7)),
        unit="share", expected=False,
    ),
    Panel(
        "weight", "Largest weight", "weights average 1 over a response",
        (Line(("credit/weight_max",), "largest", 2),),
    ),
    Panel(
        "phases", "Time by phase", "seconds a step",
        tuple(Line((f"time/{name}",), name, PHASE_COLOURS[name]) for name in PHASES),
        unit="seconds", stacked=True,
    ),
    Panel(
        "credit_time", "Credit assignment", "seconds a step",
        (Line(("time/credit",), "credit", 4),), unit="seconds", expected=False,
    ),
    Panel(
        "auxiliary", "Auxiliary loss", "of the credit scheme",
        (Line(("loss/auxiliary",), "loss", 6),), expected=False,
    ),
    Panel(
        "sampling", "Dynamic sampling", "groups a step",
        (
            Line(("rollout/drawn_groups",), "drawn", 1),
            Line(("rollout/discarded_groups",), "left out", 2),
            Line(("rollout/filled_up_groups",), "kept without a signal", 7),
        ),
        expected=False,
    ),
    Panel(
        "speed", "Rollout speed", "response tokens a second",
        (Line(("rollout/tokens_per_second",), "speed", 1),), unit="tokens",
    ),
    Panel(
        "memory", "Memory", "in use",
        (Line(("memory/host",), "host", 1), Line(("memory/device",), "device", 6)), unit="bytes",
    ),
    Panel(
        "phase_memory", "Memory by phase", "the most in a step, of the GPU or else the host",
        tuple(Line((f"memory/{name}",), name, PHASE_COLOURS[name]) for name in PHASES), unit="bytes", expected=False,
    ),
)  # fmt: skip
