"""The clusters of a response as a graph: sizes, loads, and how strongly they hang together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from atrl.report.run_folder import Response
from atrl.report.text import printable

MAX_SHOWN = 12
"""Clusters in the graph; of more, those of the largest peak load."""
WIDTH, HEIGHT = 320, 240
_RADIUS = (118, 84)
_WORDS = 4


@dataclass(frozen=True, slots=True)
class Node:
    """A cluster: where it is drawn, and its figures. Loads are densities over the response's mean."""

    number: int
    size: int
    load: float
    peak: float
    anchors: int
    words: list[str]
    """Its densest tokens, printable but not escaped."""
    x: float
    y: float
    radius: float
    tint: float
    """0 … 1, by the peak load."""


@dataclass(frozen=True, slots=True)
class Link:
    """The edge weight between two clusters, drawn as wide as it is."""

    x1: float
    y1: float
    x2: float
    y2: float
    width: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What is drawn: nodes in order of peak load, the most loaded first."""

    nodes: list[Node]
    links: list[Link]
    left_out: int
    within: float | None
    """Share of the edge weight that lies inside clusters; None without edges."""


def cluster_view(sample: Response) -> ClusterView | None:
    """The clusters of a rollout; None where they weren't recorded."""
    if sample.clusters is None or sample.density is None or None in sample.density:
        return None
    of, density = np.array(sample.clusters.of), np.array(sample.density, float)
    mean = density.mean() or 1.0
    anchors = np.array(sample.anchors or [False] * len(of))
    present = sorted(set(of.tolist()), key=lambda cluster: (-density[of == cluster].max(), cluster))
    shown = present[:MAX_SHOWN]
    highest = density.max() or 1.0
    nodes = []
    for place, cluster in enumerate(shown):
        members = np.flatnonzero(of == cluster)
        angle = 2 * math.pi * place / len(shown) - math.pi / 2
        words = members[np.argsort(-density[members], kind="stable")][:_WORDS]
        nodes.append(
            Node(
                number=cluster,
                size=len(members),
                load=float(density[members].mean() / mean),
                peak=float(density[members].max() / mean),
                anchors=int(anchors[members].sum()),
                words=[printable(sample.tokens[i]).strip() or "␣" for i in words],
                x=round(WIDTH / 2 + _RADIUS[0] * math.cos(angle), 1),
                y=round(HEIGHT / 2 + _RADIUS[1] * math.sin(angle), 1),
                radius=round(8 + 14 * math.sqrt(len(members) / len(of)), 1),
                tint=round(float(density[members].max() / highest), 3),
            )
        )
    links = np.array(sample.clusters.links, float).reshape(-1, max(1, len(sample.clusters.links)))
    whole = links.diagonal().sum() + np.triu(links, 1).sum()
    return ClusterView(nodes, _drawn(nodes, links), len(present) - len(shown), links.trace() / whole if whole else None)


def _drawn(nodes: list[Node], links: np.ndarray) -> list[Link]:
    """Between the nodes, the widest 8 pixels; none that would be thinner than a quarter."""
    pairs = [(a, b, links[a.number, b.number]) for i, a in enumerate(nodes) for b in nodes[:i]]
    widest = max((weight for _, _, weight in pairs), default=0.0)
    wide = [(a, b, 8 * weight / widest) for a, b, weight in pairs if widest and 8 * weight / widest >= 0.25]
    return [Link(a.x, a.y, b.x, b.y, round(width, 2)) for a, b, width in wide]
