"""The digits that scikit-learn ships, as a run would split them, and one classifier for all the tests."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from diffunet.metrics import Extractor, RealImages, build
from diffunet.spec import EvaluateConfig


@pytest.fixture(scope="session")
def digits() -> RealImages:
    """1097 training and 700 held-out images of 1 x 8 x 8 in [-1, 1], with labels 0 to 9."""
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(data.target)[order]
    return RealImages(images[:1097], labels[:1097], images[1097:], labels[1097:])


@pytest.fixture(scope="session")
def classifier(digits: RealImages) -> Extractor:
    return build(EvaluateConfig(extractor="classifier"), digits)


@pytest.fixture(scope="session")
def noise(digits: RealImages) -> torch.Tensor:
    """As many images of pure noise as there are held-out ones."""
    return torch.randn(digits.held_out.shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
