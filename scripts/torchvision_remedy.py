"""Let a torchvision built for CUDA be imported beside a CPU torch.

The torchvision on the Python package index is a CUDA build. Beside a CPU torch its C++ library cannot load,
and the import then fails with ``operator torchvision::nms does not exist``, although its Python code (all
that image and video processors use) would work. The cure is to declare the schemas that the library would
have declared. Nothing is implemented: calling such an operator still raises.

``make setup`` copies this file into the environment's site-packages, next to a ``.pth`` file that calls
:func:`install` at every interpreter start, so that subprocesses have it too. It costs one entry on
``sys.meta_path`` and imports nothing until torchvision is. Where the library loads, it does nothing.
"""

import sys

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# torchvision's first module that needs the schemas. Its package imports `torchvision.extension` before it, so
# by now it is known whether the library loaded; declaring any earlier would clash with the library's own.
TRIGGER = "torchvision._meta_registrations"


def define_missing_operators() -> list[str]:
    """Declare the schemas of :data:`SCHEMAS` that the C++ library left undeclared; return their names."""
    import torch
    from torchvision.extension import _has_ops

    if _has_ops():
        return []
    missing = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMAS[name])
    return missing


class TorchvisionRemedy:
    """A meta-path finder that finds nothing; it only notices that torchvision is being imported."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname == TRIGGER:
            define_missing_operators()
        return None


def install() -> None:
    """Put the remedy first on the import path, once."""
    if TorchvisionRemedy not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionRemedy)
