"""diffunet: train, sample and import time-conditioned U-Nets for diffusion.

Public names are imported on first use, so that `import diffunet` costs nothing and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffunet.denoiser import Denoiser
    from diffunet.generation import generate
    from diffunet.nn import ClassicUNet, UNet, presets
    from diffunet.objectives import Objective
    from diffunet.schedules import Schedule
    from diffunet.segmenter import Segmenter
    from diffunet.spec import ClassicUNetConfig, UNetConfig
    from diffunet.weights import load, load_segmenter, save

__version__ = "0.1.0"

_HOMES = {
    "ClassicUNet": "nn",
    "ClassicUNetConfig": "spec",
    "Denoiser": "denoiser",
    "Objective": "objectives",
    "Schedule": "schedules",
    "Segmenter": "segmenter",
    "UNet": "nn",
    "UNetConfig": "spec",
    "generate": "generation",
    "load": "weights",
    "load_segmenter": "weights",
    "presets": "nn",
    "save": "weights",
}
__all__ = [
    "ClassicUNet",
    "ClassicUNetConfig",
    "Denoiser",
    "Objective",
    "Schedule",
    "Segmenter",
    "UNet",
    "UNetConfig",
    "generate",
    "load",
    "load_segmenter",
    "presets",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffunet' has no attribute '{name}'")
    value = getattr(import_module(f"diffunet.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
