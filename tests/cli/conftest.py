"""A finished tiny run for the commands that use one, and the zygote of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffunet import save
from diffunet.cli import main
from diffunet.spec import DataInfo
from tests import tiny
from tests.training.conftest import zygote  # noqa: F401 (a fixture here too)
from tests.training.runs import write_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, steps="12", checkpoint_every="6", held_out_every="6")
    # an estimate of v hardly meets the threshold of x0, so that what a flag changes is seen in the samples
    flags = ["--process.schedule", "cosine", "--process.prediction", "v"]
    assert main(["train", str(config), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Weights of a network that knows cats, dogs and birds, of which the training images were one part dogs."""
    den = tiny.denoiser(dims=2, num_classes=3, null_class=True)
    den.data = DataInfo(shape=(1, 6, 5), classes=("cat", "dog", "bird"), class_counts=(0, 10, 30))
    save(den, tmp_path / "named.safetensors")
    return tmp_path / "named.safetensors"
