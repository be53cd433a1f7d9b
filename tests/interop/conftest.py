"""Fixtures of the interop tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffunet.interop import diffusers as hub
from tests.interop.folders import denoiser


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    hub.export(denoiser(), tmp_path / "folder")
    return tmp_path / "folder"
