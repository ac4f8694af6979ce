"""What a worker does of a step: token graphs, METIS's cuts and weights, in which order, and how often METIS refines.

    python benchmarks/clusters.py [--repeats 30] [--tokens 1000 3000]

The responses are the shipped model's, 8 to each of 16 problems of the demo, and one of random rows for each of
`--tokens`. One thread. `seconds` are of the 128 together: each of the three parts, all of them as `weigh_all` does them
(`together`), and with each response's three parts before the next one's turn (`in_turns`). `refinements` compares
METIS's `niter` of 1 and 10: the share of all edges' weight that is cut, and the milliseconds of the cuts. Kinds take
turns; times are the best of `--repeats`. `worker_bytes` is what a worker process holds after it worked on the 128. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from timing import best_seconds

if TYPE_CHECKING:
    import numpy as np

    from atrl.credit.clusters import ClusterSettings, TokenRows

    Graph = tuple[np.ndarray, np.ndarray, np.ndarray]

PROMPTS, GROUP_SIZE, IMAGE_TOKENS = 16, 8, 1000
NITER = (1, 10)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="of which the best counts (default 30)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 3000], help="of random responses")
    arguments = parser.parse_args()
    from atrl.quiet import set_environment

    set_environment()
    os.environ["OMP_NUM_THREADS"] = "1"  # as in a worker process
    demo = demo_rows()
    from atrl.credit.atrl import AtrlCredit

    settings = AtrlCredit().settings
    sets = {"demo": demo} | {str(tokens): [random_rows(tokens)] for tokens in arguments.tokens}
    lengths = [len(rows.density) for rows in demo]
    print(json.dumps({
        "responses": len(demo), "tokens": [min(lengths), max(lengths)], "tokens_in_all": sum(lengths),
        "seconds": parts_seconds(demo, settings, arguments.repeats),
        "worker_bytes": worker_bytes(demo, settings),
        "refinements": {name: refinements(rows, settings, arguments.repeats) for name, rows in sets.items()},
    }))  # fmt: skip


def demo_rows() -> list[TokenRows]:
    """What a step of the demo hands to its worker."""
    import torch

    torch.set_num_threads(1)
    from heads import sampled

    from atrl.credit.atrl import AtrlCredit, token_rows
    from atrl.credit.probe import AttentionProbe
    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.forward import ForwardPass
    from atrl.models.load import PretrainedModel
    from atrl.types import Evidence

    loaded, scheme = PretrainedModel(path="tiny").load(None), AtrlCredit()
    builder = PromptBuilder(processor=loaded.processor)
    problems = GeometryProblems(train_size=PROMPTS).load("train")
    batch, _ = sampled(loaded, builder.build_all(problems).prompts, GROUP_SIZE)
    probe = AttentionProbe(loaded.model, scheme.requests)
    with torch.no_grad(), probe.capture(batch) as recorder:
        logprobs, entropies = ForwardPass(temperature=1.0, banned_ids=()).logprobs(loaded.model, batch)
    read = recorder.results()
    density = scheme.density(batch, Evidence(logprobs, entropies, read))
    reading = density.any(dim=1).nonzero()[:, 0].tolist()
    return token_rows(read[scheme.requests[0]], density, batch.response_mask, reading)


def random_rows(tokens: int, images: int = IMAGE_TOKENS) -> TokenRows:
    """As many tokens, which look at a picture of `images`."""
    import numpy as np

    from atrl.credit.clusters import TokenRows

    generator = np.random.default_rng(0)
    image = generator.random((tokens, images), np.float32) ** 4
    return TokenRows(generator.random(tokens, np.float32), image, None, None)


def parts_seconds(responses: list[TokenRows], settings: ClusterSettings, repeats: int) -> dict[str, float]:
    """Of the parts, and of the whole in both orders."""
    from atrl.credit.clusters import token_graph, weigh, weigh_all

    graphs = [token_graph(rows, settings) for rows in responses]
    clusters = cuts(graphs, settings)
    work = {
        "graphs": lambda: [token_graph(rows, settings) for rows in responses],
        "cuts": lambda: cuts(graphs, settings),
        "weights": lambda: [weigh(rows.density, own, settings) for rows, own in zip(responses, clusters, strict=True)],
        "together": lambda: weigh_all(responses, settings),
        "in_turns": lambda: [weigh_all([rows], settings) for rows in responses],
    }
    return best_seconds(work, repeats)


def worker_bytes(responses: list[TokenRows], settings: ClusterSettings) -> int:
    """Resident memory of a worker process that was given the responses; Linux only."""
    import multiprocessing

    from atrl.credit import metis
    from atrl.credit.background import Background
    from atrl.credit.clusters import weigh_all

    background = Background(1, option="workers")
    background.open(metis.prepare_worker)
    try:
        [process] = multiprocessing.active_children()
        for _ in range(2):  # the first is worked on here
            background.submit(weigh_all, responses, settings)()
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        background.close()
    return 1024 * int(re.search(r"VmRSS:\s*(\d+) kB", status)[1])


def refinements(responses: list[TokenRows], settings: ClusterSettings, repeats: int) -> dict[str, dict[int, float]]:
    """Share of the weight that is cut, and the time, by `niter`."""
    from atrl.credit.clusters import token_graph

    graphs = [token_graph(rows, settings) for rows in responses]
    seconds = best_seconds({niter: partial(cuts, graphs, settings, niter) for niter in NITER}, repeats)
    return {
        "cut": {niter: cut_share(graphs, cuts(graphs, settings, niter)) for niter in NITER},
        "milliseconds": {niter: 1000 * taken for niter, taken in seconds.items()},
    }


def cuts(graphs: list[Graph], settings: ClusterSettings, niter: int = NITER[0]) -> list:
    """The clusters of each graph by METIS, which refines `niter` times at each level."""
    import numpy as np

    from atrl.credit import metis

    with patch.object(metis, "REFINEMENTS", niter):
        return [
            np.array(metis.partition(*graph, num_clusters=settings.clusters(len(graph[0]) - 1), seed=settings.seed))
            for graph in graphs
        ]


def cut_share(graphs: list[Graph], clusters: list) -> float:
    """Weight of the edges between clusters over that of all edges, of all graphs together."""
    import numpy as np

    from atrl.credit.clusters import cluster_links

    links = [cluster_links(*graph, own) for graph, own in zip(graphs, clusters, strict=True)]
    between, all_ = (sum(int(np.triu(matrix, first).sum()) for matrix in links) for first in (1, 0))
    return between / all_


if __name__ == "__main__":
    main()
