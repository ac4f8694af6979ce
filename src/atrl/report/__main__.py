"""``python -m atrl.report DIR…``: (re)write the report of a finished run, or one report of many runs.

A run's own folder gets its `report.html`. A sweep's folder, or several folders of either kind, get one table of all
their runs: `sweep.html`, `sweep.csv`, `sweep.md` and `sweep.tex`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from atrl.report.build import write_report


def main() -> int:
    """Write the report and print where it lies; a user error is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m atrl.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run's folder, such as outputs/latest")
    parser.add_argument("--to", type=Path, help="the folder for the report of many runs (default: DIR, or the current)")
    parser.add_argument(
        "--baseline",
        action="append",
        type=_setting,
        metavar="KEY=VALUE",
        help="what the compared runs have (repeatable)",
    )
    arguments = parser.parse_args()
    try:
        print(_write(arguments.folders, arguments.to, dict(arguments.baseline) if arguments.baseline else None))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(folders: list[Path], target: Path | None, baseline: dict[str, str] | None) -> Path:
    from atrl.report.sweep import write_sweep_report
    from atrl.report.sweep.runs import holds_runs

    one = len(folders) == 1
    if one and target is None and not holds_runs(folders[0]):
        if baseline:
            compared = " ".join(f"{key}={value}" for key, value in baseline.items())
            raise ValueError(f"--baseline {compared}: {folders[0]} is one run, to which there is nothing to compare")
        return write_report(folders[0])
    return write_sweep_report(folders, target or (folders[0] if one else Path()), baseline=baseline)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
