"""Numbers as a reader wants them, and the figures at the head of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from atrl.evaluation.intervals import difference_interval
from atrl.report.run_folder import Accuracy, PairedChange, Summary

PHASES = ("rollout", "reward", "score", "credit", "update", "sync", "evaluate")
THIN_SPACE = "\u202f"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as ``44.1 %``; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}{THIN_SPACE}%"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``42.0 s``, ``2 min 27 s`` or ``3 h 05 min``; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def memory(size: int | None) -> str:
    """Bytes as decimal gigabytes or megabytes; a dash for None."""
    if size is None:
        return "–"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped, a true minus sign; a dash for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        text = str(value)
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return text.replace("-", "−")


def probability(value: float | None) -> str:
    """A p-value with two significant digits, three next to 0.05, and none below a thousandth; a dash for None."""
    if value is None:
        return "–"
    if value < 0.001 or value >= 0.995:
        return "< 0.001" if value < 0.001 else "1"
    return f"{value:.3g}" if 0.045 < value < 0.055 else f"{value:.2g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What training did to the accuracy.

    Attributes:
        change: after minus before, a share; None unless both were measured.
        interval: of the change, 95 %; None unless it is known, or those of both are.
        sentence: all that in words.
        p: of McNemar's test; None where it is not known which problems were right when.
    """

    change: float | None
    interval: tuple[float, float] | None
    sentence: str
    p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out, where one that ends there doesn't, and the test, if there is one, agrees.

        The interval is drawn from the problems, and of a few that all went one way it can be too sure.
        """
        outside = self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)
        return outside and (self.p is None or self.p < 0.05)

    @property
    def tone(self) -> str:
        """``better`` or ``worse`` where that is clear, else ``unclear``."""
        if not self.clear or self.change is None:
            return "unclear"
        return "better" if self.change > 0 else "worse"


def verdict(accuracy: Accuracy) -> Verdict:
    """Compare accuracy before and after, which are of the same held-out problems.

    By problem where the run says how many went up and down. Else the pairing is not known, and `difference_interval`
    takes the two for independent: it errs on the side of no clear change.
    """
    if accuracy.before is None or accuracy.after is None:
        which = "before" if accuracy.before is None else "after"
        both = accuracy.before is None and accuracy.after is None
        return Verdict(None, None, f"Accuracy was not measured{'' if both else f' {which} training'}.")
    change = accuracy.after - accuracy.before
    moved = "did not move" if change == 0 else f"{'rose' if change > 0 else 'fell'} by {abs(100 * change):.1f} points"
    if (pairs := accuracy.paired) is not None:
        interval, words = pairs.ci95, _by_problem(pairs)
    elif accuracy.before_ci95 is None or accuracy.after_ci95 is None:
        return Verdict(change, None, f"Accuracy {moved}; no intervals were recorded.")
    else:
        interval = difference_interval(accuracy.before, accuracy.before_ci95, accuracy.after, accuracy.after_ci95)
        words = _of_the_change(interval)
    found = Verdict(change, interval, f"Accuracy {moved}{words}.", None if pairs is None else pairs.p)
    doubt = "" if found.clear else ", so this run alone shows no clear change"
    return replace(found, sentence=f"Accuracy {moved}{words}{doubt}.")


def _of_the_change(interval: tuple[float, float]) -> str:
    low, high = (f"{100 * end:+z.1f}".replace("-", "−") for end in interval)
    return f"; the 95{THIN_SPACE}% interval of the change is {low} to {high}"


def _by_problem(pairs: PairedChange) -> str:
    if not pairs.gained + pairs.lost:
        return ", and no problem changed sides"  # an interval from 0 to 0 would seem to prove it
    p = probability(pairs.p)
    flips = f"{pairs.gained} problem{'' if pairs.gained == 1 else 's'} gained, {pairs.lost} lost"
    return f"{_of_the_change(pairs.ci95)} ({flips}; McNemar’s p {p if p.startswith('<') else f'= {p}'})"


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase's wall-clock seconds, and their share of the run."""

    name: str
    seconds: float
    share: float


def phase_shares(seconds: dict[str, float | None]) -> list[Phase]:
    """The run's time by phase, in the order of a step, the unaccounted rest as ``other``; shares add up to 1.

    Where phases overlap and so add up to more than ``total``, shares are of their sum and there is no rest. Empty where
    no phase was timed.
    """
    known = {name: seconds.get(name) or 0.0 for name in PHASES}
    accounted = sum(known.values())
    if accounted == 0:
        return []
    whole = max(seconds.get("total") or 0.0, accounted)
    known["other"] = whole - accounted
    return [Phase(name, spent, spent / whole) for name, spent in known.items() if spent > 0]


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the key figures: a name, its value and what belongs in small print."""

    name: str
    value: str
    detail: str = ""


def key_facts(summary: Summary) -> list[Fact]:
    """The key figures of a run, in reading order."""
    tokens, credit, peak = summary.tokens, summary.credit, summary.peak_memory_bytes
    total, sampling = summary.seconds.get("total"), summary.seconds.get("rollout")
    drawn = sum(summary.rewards.model_dump().values())
    counted = "clusters by length" if credit.num_clusters == "auto" else f"{credit.num_clusters} clusters"
    clusters = "" if credit.num_clusters is None else counted
    target = "" if credit.anchor_ratio is None else f"target {percent(credit.anchor_ratio, 0)}"
    step_time = f"{duration(total / summary.steps)} a step" if total and summary.steps else ""
    speed = f"{number(round(tokens.generated / sampling))} tokens/s" if sampling else ""
    device_peak = "" if peak.device is None else f"device {memory(peak.device)}"
    return [
        Fact("Steps", f"{summary.steps:,}", f"{drawn:,} rollouts" if drawn else ""),
        Fact("Wall clock", duration(total), step_time),
        Fact("Tokens generated", f"{tokens.generated:,}", speed),
        Fact("Tokens trained", f"{tokens.trained:,}"),
        Fact("Peak memory", memory(peak.host), " · ".join(filter(None, ("host", device_peak)))),
        Fact("Credit scheme", credit.scheme, clusters),
        Fact("Anchor tokens", percent(credit.anchor_fraction), target),
        Fact("Anchor recall", percent(credit.anchor_recall), "of the reading tokens"),
        Fact("Credit overhead", percent(credit.overhead_fraction, 2), "added to each step"),
        Fact("Rollout engine", summary.rollout.engine),
        Fact("Dropped prompts", f"{summary.rollout.dropped_prompts:,}", "too long; never cut"),
        Fact("Seed", "–" if summary.seed is None else str(summary.seed), summary.device),
    ]  # fmt: skip
