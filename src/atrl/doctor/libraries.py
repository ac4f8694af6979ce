"""Libraries whose presence says little: whether they do what runs ask of them."""

from __future__ import annotations

from importlib import metadata
from itertools import combinations

from atrl.doctor.finding import Finding, note, ok, problem

REMEDY = "run `make setup`, which mends what a CPU torch breaks (docs/install.md)"


def metis() -> Finding:
    """METIS cuts two cliques, which one edge joins, at that edge."""
    from atrl.credit.metis import partition

    half = 6
    edges = [*combinations(range(half), 2), *combinations(range(half, 2 * half), 2), (0, half)]
    neighbours: list[list[int]] = [[] for _ in range(2 * half)]
    for one, other in edges:
        neighbours[one].append(other)
        neighbours[other].append(one)
    starts = [sum(map(len, neighbours[:node])) for node in range(2 * half + 1)]
    targets = [target for row in neighbours for target in row]
    try:
        clusters = partition(starts, targets, [1] * len(targets), num_clusters=2)
    except ImportError as error:
        return problem("METIS", f"pymetis can't be imported: {error}", "install pymetis; credit=token_level needs none")
    if len(set(clusters[:half])) == len(set(clusters[half:])) == 1 and clusters[0] != clusters[half]:
        return ok("METIS", f"pymetis {metadata.version('pymetis')} cuts where it should")
    return problem("METIS", f"it cut two cliques into {clusters}", "install another version of pymetis")


def torchvision() -> Finding:
    """Pre-processing of pictures and videos needs it, and a build that doesn't match torch can't be imported."""
    try:
        import torchvision.transforms.v2.functional  # noqa: F401
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return problem("torchvision", f"it can't be imported: {reason}", REMEDY)
    return ok("torchvision", metadata.version("torchvision"))


def triton() -> Finding:
    """Reads attention on GPUs; elsewhere torch does."""
    import torch

    from atrl.credit.attention import fused_available

    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        version = None
    if not torch.cuda.is_available():
        return ok("Triton", f"{version or 'not installed'}; it is for GPUs, and here torch reads attention")
    if fused_available(torch.device("cuda")):
        return ok("Triton", f"{version} reads attention on the GPU")
    return note("Triton", "attention is read by torch, which takes more memory", "pip install triton")
