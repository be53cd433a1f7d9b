"""Fixtures of the data tests: the shared real data, and the original CIFAR-10 files rebuilt from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets."""
    if "DIFFUNET_DATA" not in os.environ:
        pytest.skip("DIFFUNET_DATA does not say where the real data sets are")
    return Path(os.environ["DIFFUNET_DATA"])


@pytest.fixture(scope="session")
def cifar_root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with cifar-10-batches-py in it: the original pickles, 180 MB, removed afterwards."""
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, str(shared / "cifar10" / "unpack.py"), "py", str(root)], check=True, timeout=120)
    yield root
    shutil.rmtree(root)
