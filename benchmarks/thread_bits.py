"""On which matrices the cosines of a token graph depend on the number of threads.

    python benchmarks/thread_bits.py [--matrices 700] [--kernels Haswell]

Rows of image attention of random sizes (2 to 300 tokens, 2 to 400 image tokens) are compared by a float32 product and
by `similarity_strengths`, in a process of one thread and in one of two; with the kernels of another processor if
`--kernels` names one that OpenBLAS has. The last line is one JSON object: how many matrices differ in any bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys

import numpy as np

from atrl.credit.graph import similarity_strengths


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=700)
    parser.add_argument("--kernels", help="of OpenBLAS, by processor: Haswell, SkylakeX, Zen (default: this one's)")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.digests:
        print(json.dumps(digests(arguments.matrices)))
        return
    one, two = (in_threads(count, arguments.matrices, arguments.kernels) for count in (1, 2))
    differ = {kind: sum(a != b for a, b in zip(one[kind], two[kind], strict=True)) for kind in one}
    print(json.dumps({"matrices": arguments.matrices, "kernels": arguments.kernels, "differ": differ}))


def in_threads(count: int, matrices: int, kernels: str | None) -> dict[str, list[str]]:
    """The digests that a fresh process of `count` threads finds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count)}
    environment |= {} if kernels is None else {"OPENBLAS_CORETYPE": kernels}
    command = [sys.executable, __file__, "--digests", "--matrices", str(matrices)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def digests(matrices: int) -> dict[str, list[str]]:
    """Of every matrix of cosines, computed either way."""
    generator = np.random.default_rng(0)
    found: dict[str, list[str]] = {"float32_product": [], "similarity_strengths": []}
    for _ in range(matrices):
        shape = generator.integers(2, (300, 400), endpoint=True)
        image = generator.random(shape, np.float32) ** 4
        rows = image / np.linalg.norm(image, axis=1, keepdims=True)
        computed = {"float32_product": rows @ rows.T, "similarity_strengths": similarity_strengths(image)}
        for kind, cosines in computed.items():
            found[kind].append(hashlib.sha256(np.ascontiguousarray(cosines)).hexdigest())
    return found


if __name__ == "__main__":
    main()
