"""``python -m atrl.doctor``: look at this machine; exit code 1 where something stands in the way of runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from atrl.doctor import accounts, libraries, machine, packages
from atrl.doctor.engine import engine
from atrl.doctor.finding import Check, Finding, examine
from atrl.quiet import quieten_libraries, set_environment

EXIT_PROBLEM = 1


def checks(outputs: Path, *, quick: bool) -> list[tuple[str, Check]]:
    """All of them, the cheap ones first; `quick` leaves the engine out."""
    listed: list[tuple[str, Check]] = [
        ("Python", packages.python),
        ("packages", packages.packages),
        ("vLLM", packages.engine_package),
        ("processor", machine.processor),
        ("memory", machine.memory),
        ("disk", lambda: machine.disk(outputs)),
        ("HF hub", accounts.hub),
        ("W&B", accounts.wandb),
        ("METIS", libraries.metis),
        ("GPU", machine.gpus),
        ("torchvision", libraries.torchvision),
        ("Triton", libraries.triton),
    ]
    return listed if quick else [*listed, ("engine", engine)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a finding, or all of them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m atrl.doctor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the engine, which takes most of the time")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs go (default: outputs)")
    options = parser.parse_args(arguments)
    set_environment()
    quieten_libraries()
    found = []
    for finding in examine(checks(options.outputs, quick=options.quick)):
        found.append(finding)
        if not options.json:
            print("\n".join(lines(finding)), flush=True)
    counts = Counter(finding.state for finding in found)
    if options.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
    else:
        print(f"\n{counts['problem']} problems, {counts['note']} notes, {counts['ok']} ok")
    return EXIT_PROBLEM if counts["problem"] else 0


def lines(finding: Finding) -> list[str]:
    """The finding, and below it what to do."""
    line = f"{finding.state:8} {finding.thing:12} {finding.says}"
    return [line] if not finding.remedy else [line, f"{'':8} {'':12} → {finding.remedy}"]


if __name__ == "__main__":
    sys.exit(main())
