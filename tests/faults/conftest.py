"""The zygote, the small run that nothing happened to, and a copy of it to be spoilt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import small
from tests.training.conftest import Zygote, zygote  # noqa: F401 (a fixture here too)


@pytest.fixture(scope="session")
def calm(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of a small run that went to its end undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    small.again(zygote, ["train", small.write_config(folder), "--out", folder / "run"], folder / "log")
    return folder / "run"


@pytest.fixture
def run(calm: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    small.write_config(tmp_path)
    return Path(shutil.copytree(calm, tmp_path / "run"))
