"""Pairs: which label belongs to which image, which values are which class, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from diffunet.data import Pairs, Split, load
from diffunet.data.base import scale
from diffunet.data.decode import decode_any, decode_label
from diffunet.errors import DataError
from diffunet.spec import DataConfig


def pairs(path: Path, **options: object) -> Split[Pairs]:
    return load(DataConfig(name="pairs", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five grey images of five sizes; the labels hold 0, 7 and 255."""
    random = np.random.default_rng(0)
    for i in range(5):
        size = (6 + i, 9)
        save(random.integers(0, 256, size, dtype=np.uint8), tmp_path / "image" / f"{i}.png")
        save(random.choice(np.array([0, 7, 255], np.uint8), size), tmp_path / "label" / f"{i}.png")
    return tmp_path


def test_values_become_classes_in_rising_order_and_pixels_stay(root: Path) -> None:
    split = pairs(root)
    found = split.train
    assert (len(found), found.values, found.classes, found.shape) == (5, (0, 7, 255), ("0", "7", "255"), (1,))
    for i, name in enumerate(found.names):
        label = np.asarray(Image.open(root / "label" / name))
        assert np.array_equal(np.array(found.values)[found.classes_of(i)], label)
        image = np.asarray(Image.open(root / "image" / name))
        assert np.array_equal(found.image(i), scale(image[None], (0.0, 255.0)))
    assert found.counts().sum() == sum((6 + i) * 9 for i in range(5))
    assert "5 sizes" in found.about


def test_classes_may_have_names(root: Path) -> None:
    assert pairs(root, class_names=("a", "b", "c")).train.classes == ("a", "b", "c")
    with pytest.raises(DataError, match=r"has 2 names for 3 label values \(0, 7, 255\)"):
        pairs(root, class_names=("a", "b"))


def test_the_held_out_images_depend_on_the_seed_alone(root: Path) -> None:
    one, again, other = (pairs(root, held_out=0.4, seed=seed) for seed in (0, 0, 3))
    assert one.held_out is not None
    assert len(one.held_out) == 2
    assert sorted(one.held_out.names + one.train.names) == [f"{i}.png" for i in range(5)]
    assert again.held_out.names == one.held_out.names != other.held_out.names
    assert again.train.fingerprint == one.train.fingerprint != other.train.fingerprint


def test_the_fingerprint_sees_an_edit_of_image_or_label(root: Path) -> None:
    before = pairs(root).train.fingerprint
    for kind in ("image", "label"):
        path = root / kind / "3.png"
        kept = path.read_bytes()
        array = np.array(Image.open(path))
        array[0, 0] = 255 - array[0, 0] if kind == "image" else (7 if array[0, 0] != 7 else 0)
        save(array, path)
        assert pairs(root).train.fingerprint != before
        path.write_bytes(kept)
    assert pairs(root).train.fingerprint == before


def test_colour_palettes_and_depths(root: Path) -> None:
    """RGB images give three channels; a palette's indices and 16-bit values are label values."""
    random = np.random.default_rng(1)
    save(random.integers(0, 256, (8, 8, 3), dtype=np.uint8), root / "image" / "5.png")
    palette = Image.fromarray(np.full((8, 8), 7, np.uint8), "P")
    palette.putpalette([i for i in range(256) for _ in range(3)])
    palette.save(root / "label" / "5.png")
    found = pairs(root).train
    assert found.shape == (3,)
    assert (found.classes_of(5) == 1).all()
    save(np.full((8, 8), 40_000, np.uint16), root / "label" / "5.png")
    assert pairs(root).train.values == (0, 7, 255, 40_000)


def test_any_file_is_read_like_those_of_a_folder(root: Path, tmp_path: Path) -> None:
    """`decode_any`, of which segmenting a stranger's image is made, gives what the data set gives."""
    found = pairs(root).train
    for i, name in enumerate(found.names):
        again = decode_any(str(root / "image" / name), 1, (255, 255, 255), None, 10**6)
        assert np.array_equal(again, found.image(i))
    deep = save((np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4), tmp_path / "deep.png")
    assert decode_any(str(deep), 1, (0, 0, 0), None, 10**6)[0, 0, 1] == pytest.approx(5000 / 32767.5 - 1)
    assert decode_any(str(deep), 3, (0, 0, 0), (0.0, 5000.0), 10**6).max() == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_folders_and_partners_must_be_there(root: Path) -> None:
    (root / "label" / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 images in .* have no label: 2"):
        pairs(root)
    shutil.copy(root / "label" / "1.png", root / "label" / "2.png")
    with pytest.raises(DataError, match=r"label/2.png is 7 x 9 pixels \(height x width\), but its image is 8 x 9"):
        pairs(root)
    shutil.rmtree(root / "label")
    with pytest.raises(DataError, match=r"label is no folder; data.name = 'pairs' reads data.path/image/NAME"):
        pairs(root)


def test_a_label_without_an_image_is_left_out_with_a_note(root: Path) -> None:
    (root / "image" / "4.png").unlink()
    split = pairs(root)
    assert len(split.train) == 4
    assert "left out 1 labels without an image; first: 4" in split.notes


def test_one_name_with_two_endings_is_refused(root: Path) -> None:
    save(np.zeros((6, 9), np.uint8), root / "image" / "0.bmp")
    with pytest.raises(DataError, match="two files of one name"):
        pairs(root)


def test_what_is_no_label_is_refused(root: Path, tmp_path: Path) -> None:
    colour = np.zeros((6, 9, 3), np.uint8)
    colour[0, 0] = (1, 2, 3)
    with pytest.raises(DataError, match="is in colour; a label has one value a pixel"):
        decode_label(str(save(colour, tmp_path / "colour.png")), 10**6)
    grey = save(colour * 0 + 9, tmp_path / "grey.png")
    assert (decode_label(str(grey), 10**6) == 9).all()
    with pytest.raises(DataError, match="is a JPEG, which changes the values of labels"):
        decode_label(str(save(colour[..., 0], tmp_path / "lossy.jpg")), 10**6)
    for i, wrong in enumerate((np.float32(0.5), np.float32(-1), np.int32(70_000))):
        with pytest.raises(DataError, match="no whole numbers from 0 to 65535"):
            decode_label(str(save(np.full((2, 2), wrong), tmp_path / f"{i}.tif")), 10**6)
    for i in range(5):
        save(np.zeros((6 + i, 9), np.uint8), root / "label" / f"{i}.png")
    with pytest.raises(DataError, match=r"the labels hold 1 values \(0\); 2 to 256 make classes"):
        pairs(root)


def test_bad_files_are_named_or_left_out(root: Path) -> None:
    (root / "label" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read .*1.png: its label .*label/1.png: it is no PNG"):
        pairs(root)
    split = pairs(root, bad_files_cap=0.5)
    assert len(split.train) == 4
    assert [Path(bad.path).name for bad in split.skipped] == ["1.png"]


@pytest.mark.parametrize("option", [{"size": 8}, {"layout": "nhw"}, {"flip": True}])
def test_options_of_other_data_sets_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"is not for data\.name = 'pairs'"):
        DataConfig(name="pairs", path="x", **option)  # type: ignore[arg-type]


def test_the_real_slices(shared: Path) -> None:
    """ISBI 2012: thirty slices, two values, three quarters of the pixels inside cells."""
    split = pairs(shared / "isbi2012" / "train", held_out=0.34, class_names=("membrane", "cell"))
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out)) == (20, 10)
    assert split.train.values == (0, 255)
    membrane, cell = split.train.counts()
    assert 0.7 < cell / (membrane + cell) < 0.85
