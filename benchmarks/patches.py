"""Patches of a picture as the matrix product that they are, against the convolution (`atrl/models/patches.py`).

    python benchmarks/patches.py [--patches 1024] [--repeats 30] [--threads 1]

The first layer of the shipped model's vision tower on random patches: milliseconds of the best pass, without and with
the backward one; the kinds take turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch
from timing import best_seconds
from torch import Tensor, nn

from atrl.models.load import PretrainedModel
from atrl.models.patches import PatchProjection
from atrl.quiet import set_environment


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1024, help="default 1024")
    parser.add_argument("--repeats", type=int, default=30, help="of which the best counts (default 30)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    arguments = parser.parse_args()
    set_environment()
    torch.set_num_threads(arguments.threads)
    model = PretrainedModel(path="tiny").load(None).model
    product = next(module for module in model.modules() if isinstance(module, PatchProjection))
    plain = nn.Conv3d(product.in_channels, product.out_channels, product.kernel_size, product.stride, bias=False)
    plain.load_state_dict(product.state_dict())
    patches = torch.randn(arguments.patches, product.in_channels, *product.kernel_size)
    assert torch.allclose(plain(patches), product(patches), atol=1e-5), "the product is not the convolution"
    layers = {"convolution": plain, "product": product}
    work = {name: partial(layer, patches) for name, layer in layers.items()}
    work |= {f"{name}_with_backward": partial(both_passes, layer, patches) for name, layer in layers.items()}
    best = {name: 1000 * seconds for name, seconds in best_seconds(work, arguments.repeats).items()}
    print(json.dumps({"patches": arguments.patches, "threads": arguments.threads, "milliseconds": best}))


def both_passes(layer: nn.Conv3d, patches: Tensor) -> None:
    """Forward, and backward to the weights: pixels have no gradient."""
    layer(patches).sum().backward()


if __name__ == "__main__":
    main()
