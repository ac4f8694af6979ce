"""What a step waits for the process that cuts its clusters, at each priority of that process.

    python benchmarks/late_worker.py [--rounds 40] [--busy N] [--rollout vllm] [--trainer gpu] [--output FILE]

Steps of one training run take turns, as in `credit_overhead.py`, between `credit=none` and `credit=atrl`: with a
worker process as it is (`idle`: it takes what all others leave), with one of lower priority only (`nice`), with one of
the idle class whose late shares the training goes on waiting for (`waiting`), and without one (`inline`). `--busy`
starts as many processes that never rest: one a core is what another job would do. Seconds are those after the rollouts.
The policy trains on a GPU where there is one, unless `--trainer cpu` is given. The last line is one JSON object;
intervals are 95 % ones of the median.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from credit_overhead import bootstrap
from device import add_options, facts, overrides, trainer_of

from atrl.credit import background

if TYPE_CHECKING:
    from rotation import Taken

    from atrl.credit.atrl import AtrlCredit

NEVER_RESTS = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this process


class NiceWorkers(background.Background):
    """Processes of lower priority, and not of the idle class."""

    def open(self, prepare) -> None:
        """Start them."""
        super().open(functools.partial(give_way_by_priority, prepare))


class AwaitedWorkers(background.Background):
    """Processes whose results are waited for however late they are."""

    def patience(self, items: int) -> float:
        """Ten minutes."""
        return 600.0


def main() -> None:
    """Measure, print and write."""
    from atrl.quiet import set_environment

    set_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the five variants (default 40)")
    parser.add_argument("--busy", type=int, default=0, help="processes beside the run that never rest (default 0)")
    parser.add_argument("--rollout", choices=["vllm", "transformers"], default="vllm", help="sampler (default vllm)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    add_options(parser)
    arguments = parser.parse_args()
    trainer = trainer_of(arguments.trainer)
    from rotation import train_in_rotation

    from atrl.credit.atrl import AtrlCredit

    schemes = {
        "none": None,
        "idle": AtrlCredit(workers=1),
        "nice": with_workers(NiceWorkers),
        "waiting": with_workers(AwaitedWorkers),
        "inline": AtrlCredit(workers=0),
    }
    settings = overrides(arguments.rollout, trainer, share=arguments.engine_share)
    with busy_processes(arguments.busy):
        taken = train_in_rotation(schemes, arguments.rounds, settings)
    result = {"rounds": arguments.rounds, "busy": arguments.busy, "rollout": arguments.rollout, **compared(taken)}
    result |= facts(trainer)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def give_way_by_priority(prepare: Callable[[], object]) -> None:
    """In a worker, which is to give way next."""
    background._give_way = be_nice
    prepare()


def be_nice() -> None:
    """Lower this process's priority."""
    os.nice(10)


def with_workers(kind: type[background.Background]) -> AtrlCredit:
    """The scheme with one worker process of another kind."""
    from atrl.credit.atrl import AtrlCredit

    scheme = AtrlCredit(workers=1)
    object.__setattr__(scheme, "_background", kind(1, option="credit.workers"))
    return scheme


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that never rest, for as long as this lasts."""
    started = [subprocess.Popen([sys.executable, "-c", NEVER_RESTS]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def compared(taken: Taken) -> dict:
    """Medians of each variant, and of how much longer it takes than `none` and than `idle`, round by round."""
    seconds = {
        name: [step - drawn for step, drawn in zip(steps, taken.rollout_seconds[name], strict=True)]
        for name, steps in taken.seconds.items()
    }
    result: dict = {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "credit_seconds": {name: statistics.median(values) for name, values in taken.credit_seconds.items()},
    }
    for other in ("none", "idle"):
        longer = {
            name: [mine - base for mine, base in zip(values, seconds[other], strict=True)]
            for name, values in seconds.items()
            if name != other
        }
        result[f"longer_than_{other}"] = {name: statistics.median(values) for name, values in longer.items()}
        result[f"longer_than_{other}_ci95"] = {name: bootstrap(values) for name, values in longer.items()}
    return result


if __name__ == "__main__":
    main()
