"""What trackers get, read back from the files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffunet.training.trackers import scalars, track

RECORD: dict[str, Any] = {
    "step": 7,
    "loss": 0.5,
    "lr": 1e-3,
    "skipped": True,
    "grad_norm": None,
    "held_out": {"loss": 0.6, "bins": [0.1, None, 0.3]},
    "seen": {"loss": float("nan")},
    "copies": {"pixels": {"ratio": 0.9, "flag": False}, "extractor": "random_conv", "nearest": [{"seed": 1}]},
}
FLAT = {
    "loss": 0.5,
    "lr": 1e-3,
    "skipped": 1.0,
    "held_out/loss": 0.6,
    "held_out/bins/0": 0.1,
    "held_out/bins/2": 0.3,
    "copies/pixels/ratio": 0.9,
    "copies/pixels/flag": 0.0,
}


def test_every_finite_number_has_a_path() -> None:
    assert scalars(RECORD) == FLAT


@pytest.fixture
def accelerator(tmp_path: Path) -> Any:
    pytest.importorskip("tensorboard", reason="tensorboard (extra `track`) is not installed")
    from accelerate import Accelerator

    made = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    made.init_trackers("diffunet")
    yield made
    made.end_training()


def test_tensorboard_reads_numbers_and_pictures_back(accelerator: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "step-00000007.png")
    pictures = {"preview": tmp_path / "step-00000007.png", "neighbours": tmp_path / "missing.png"}
    track(accelerator, RECORD, pictures)
    accelerator.end_training()
    found = EventAccumulator(str(tmp_path / "diffunet"))
    found.Reload()
    tags = found.Tags()
    assert set(tags["scalars"]) == set(FLAT)
    for name, value in FLAT.items():
        (event,) = found.Scalars(name)
        assert (event.step, event.value) == (7, pytest.approx(value))
    (image,) = found.Images("preview/0") if "preview/0" in tags["images"] else found.Images("preview")
    assert (image.step, image.width, image.height) == (7, 8, 6)


def test_without_trackers_nothing_happens(tmp_path: Path) -> None:
    from accelerate import Accelerator

    track(Accelerator(cpu=True), RECORD, {"preview": tmp_path / "none.png"})
    assert list(tmp_path.iterdir()) == []
