"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; a test that needs it skips without it."""
    root = os.environ.get("DIFFUNET_DATA")
    if not root:
        pytest.skip("DIFFUNET_DATA is not set: it names the folder of real data sets")
    return Path(root)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
