"""The only place that imports torch-fidelity, and the way to hand it one of our extractors."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffunet import compat
from diffunet.errors import ConfigError

if TYPE_CHECKING:
    from diffunet.metrics.extractors import Extractor

LAYER = "features"


def fidelity() -> ModuleType:
    """Import torch-fidelity.

    Raises:
        ConfigError: it is not installed.
    """
    compat.torchvision()  # torch-fidelity imports it, so the broken pair of builds must be mended first
    try:
        return importlib.import_module("torch_fidelity")
    except ModuleNotFoundError as error:
        if error.name != "torch_fidelity":
            raise
        raise ConfigError("evaluation needs torch-fidelity; run: pip install 'diffunet[eval]'") from error


def register(name: str, extractor: Extractor) -> None:
    """Make `extractor` known to torch-fidelity, for `calculate_metrics(feature_extractor=name, ...)`.

    Its inputs are then uint8 images, as torch-fidelity reads them from files, or floats in [-1, 1].

    Raises:
        ConfigError: torch-fidelity is not installed.
        ValueError: torch-fidelity already knows the name.
    """

    class Registered(fidelity().FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            scaled = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
            return (extractor.forward(scaled).double(),)  # float64 as in distances.py

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return (LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    fidelity().register_feature_extractor(name, Registered)
