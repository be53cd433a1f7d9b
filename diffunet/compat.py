"""The only place that imports torchvision and diffusers, and the work-around for one common broken pair of builds.

A CPU build of torch beside a CUDA build of torchvision fails with `operator torchvision::nms does not exist`, and takes
diffusers down with it. On exactly that error the two missing op schemas are registered and the import is tried again;
where torchvision is healthy nothing is touched.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # must stay alive as long as the process


def torchvision(submodule: str = "") -> ModuleType:
    """Import torchvision (or `torchvision.<submodule>`), mending the missing-nms pair of builds."""
    global _library
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if _MISSING not in str(error) or _library is not None:
                raise
            _library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _SCHEMAS:
                _library.define(schema)
            for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
                del sys.modules[name]
            importlib.import_module("torchvision")
        return importlib.import_module(f"torchvision.{submodule}" if submodule else "torchvision")


def diffusers() -> ModuleType:
    """Import diffusers after torchvision is known to import."""
    torchvision()
    return importlib.import_module("diffusers")
