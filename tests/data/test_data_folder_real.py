"""Folders of real pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import load
from diffunet.errors import DataError
from diffunet.spec import DataConfig


def test_real_class_folders_of_png(shared: Path) -> None:
    split = load(DataConfig(name="folder", path=str(shared / "fashion_mnist_png_sample")))
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out), split.train.shape) == (180, 20, (1, 28, 28))
    assert split.train.classes is not None
    assert split.train.labels is not None
    assert split.train.classes[:2] == ("ankle_boot", "bag")
    for i in range(0, 180, 13):
        path = Path(split.train.name_of(i))
        assert path.parent.name == split.train.classes[split.train.labels[i]]
        np.testing.assert_allclose((split.train[i][0] + 1) * 127.5, np.asarray(Image.open(path)), atol=1e-4)


def test_real_class_folders_of_jpeg_resized(shared: Path) -> None:
    split = load(DataConfig(name="folder", path=str(shared / "sign_digits"), size=32))
    assert split.held_out is not None
    assert len(split.train) + len(split.held_out) == 2059
    assert split.train.shape == (3, 32, 32)
    assert split.train.labels is not None
    assert np.bincount(split.train.labels).min() > 170
    assert split.skipped == ()


def test_real_pictures_of_two_shapes_need_a_size(shared: Path) -> None:
    config = DataConfig(name="folder", path=str(shared / "denoising" / "BSD68"))
    with pytest.raises(DataError, match=r"321 x 481 .*set --data\.size 321"):
        load(config)
    assert load(config.model_copy(update={"size": (64, 96)})).train.shape == (1, 64, 96)
