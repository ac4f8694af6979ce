"""What is gained where freed memory stays with the process (`atrl/allocator.py`).

    python benchmarks/kept_memory.py [--repeats 12] [--runs 3]

Forward and backward passes of the tiny model over 16 prompts × 8 random responses of 64 tokens, two micro-batches, on
one thread; each run in a process of its own: as the C library comes (`plain`), as atrl asks it to be (`kept`), and with
torch asking for huge pages as well (`huge`). Of each run the seconds of the best pass, the median of a pass's page
faults, and the process's peak memory. Kinds take turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

KINDS: dict[str, dict[str, str]] = {"plain": {}, "kept": {}, "huge": {"THP_MEM_ALLOC_ENABLE": "1"}}
ROLLOUTS = 64
"""In a micro-batch."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12, help="passes of a run (default 12)")
    parser.add_argument("--runs", type=int, default=3, help="of each kind (default 3)")
    parser.add_argument("--one", choices=list(KINDS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats)))
        return
    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.runs):
        for kind in KINDS:
            found[kind].append(in_a_fresh_process(kind, arguments.repeats))
            print(kind, found[kind][-1], flush=True)
    print(json.dumps({
        kind: {figure: [run[figure] for run in runs] for figure in runs[0]} for kind, runs in found.items()
    }))  # fmt: skip


def in_a_fresh_process(kind: str, repeats: int) -> dict[str, float]:
    """The figures of one run."""
    command = [sys.executable, __file__, "--one", kind, "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | KINDS[kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: str, repeats: int) -> dict[str, float]:
    """Of passes in this process."""
    from atrl.allocator import keep_freed_memory

    if kind != "plain" and not keep_freed_memory():
        raise SystemExit("the C library is not glibc, or the environment holds settings of its own: nothing to compare")
    from credit_overhead import status_bytes
    from micro_batches import LONGEST, experience, update

    from atrl.models.load import PretrainedModel
    from atrl.splitting import EvenSplit

    loaded = PretrainedModel(path="tiny").load(Path())
    batch = experience(loaded, typical=LONGEST, spread=0)
    seconds, faults = [], []
    for _ in range(repeats + 1):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        update(loaded.model, batch, EvenSplit(size=ROLLOUTS), share=True)
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    faults_of_a_pass = statistics.median(faults[1:])
    return {"seconds": min(seconds[1:]), "page_faults": faults_of_a_pass, "peak_bytes": status_bytes("VmHWM")}


if __name__ == "__main__":
    main()
