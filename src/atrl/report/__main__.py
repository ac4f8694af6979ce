"""``python -m atrl.report RUN_DIR``: (re)write the report of a finished run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from atrl.report.build import write_report


def main() -> int:
    """Write the report and print where it lies; a user error is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m atrl.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run's folder, such as outputs/latest")
    try:
        print(write_report(parser.parse_args().run_dir))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
