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


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between runs goes where nobody else's is; programs that a test starts inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
