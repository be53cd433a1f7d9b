"""What every data set promises: range, split, order, fingerprint, pickling."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from diffunet.data import DATASETS, Images, load
from diffunet.data.arrays import LAYOUTS
from diffunet.data.base import array_fingerprint, scale
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig


def choices(field: str) -> set[str]:
    """The names that the Literal of a DataConfig field allows (None aside)."""
    kinds = [DataConfig.model_fields[field].annotation]
    while any(get_args(kind) for kind in kinds):
        kinds = [inner for kind in kinds for inner in (get_args(kind) or [kind])]
    return {kind for kind in kinds if isinstance(kind, str)}


@pytest.fixture
def numbers() -> Images:
    array = np.arange(10 * 3 * 4, dtype=np.uint8).reshape(10, 1, 3, 4)
    return Images.from_array(array, (0.0, 255.0), np.arange(10) % 2, ("even", "odd"))


def test_spec_and_tables_name_the_same_things() -> None:
    assert choices("name") == set(DATASETS)
    assert choices("layout") == set(LAYOUTS)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("uint16", 0, 65535), ("int16", -1024, 728), ("float32", 0.1, 0.7), ("float64", -1e6, 3e6)],
)
def test_the_ends_of_the_range_become_exactly_minus_one_and_one(dtype: str, low: float, high: float) -> None:
    values = np.array([low, high], dtype=dtype)
    out = scale(values, (float(values[0]), float(values[1])))
    assert out.dtype == np.float32
    assert out.tolist() == [-1.0, 1.0]


def test_values_outside_the_range_are_clipped() -> None:
    assert scale(np.array([-5.0, 0.5, 9.0]), (0.0, 1.0)).tolist() == [-1.0, 0.0, 1.0]


def test_all_bytes_are_evenly_spaced() -> None:
    out = scale(np.arange(256, dtype=np.uint8), (0.0, 255.0))
    np.testing.assert_allclose(out, np.arange(256) / 127.5 - 1, atol=1e-7)


def test_items_are_contiguous_floats_and_end(numbers: Images) -> None:
    assert len(list(numbers)) == len(numbers) == 10
    assert numbers.shape == (1, 3, 4) == numbers[0].shape
    assert numbers[-1].dtype == np.float32
    assert numbers[-1].flags.c_contiguous
    with pytest.raises(IndexError):
        numbers[10]


def test_a_subset_keeps_items_labels_and_names_together(numbers: Images) -> None:
    part = numbers.subset([7, 2]).subset([1, 0])
    assert [part.name_of(i) for i in range(2)] == ["2", "7"]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(part[1], numbers[7])


def test_images_survive_pickling(numbers: Images) -> None:
    part = numbers.subset([3, 1])
    copy = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(copy[0], part[0])
    assert copy.fingerprint == part.fingerprint


def test_the_fingerprint_sees_pixels_labels_and_choice(numbers: Images) -> None:
    array = np.arange(10 * 3 * 4, dtype=np.uint8).reshape(10, 1, 3, 4)
    labels = np.arange(10) % 2
    edited, relabelled = array.copy(), labels.copy()
    edited[9, 0, 2, 3] ^= 1
    relabelled[9] ^= 1
    names = ("even", "odd")
    others = [
        Images.from_array(edited, (0.0, 255.0), labels, names),
        Images.from_array(array, (0.0, 255.0), relabelled, names),
        Images.from_array(array[:9], (0.0, 255.0), labels[:9], names),
        numbers.subset(range(9)),
    ]
    assert Images.from_array(array, (0.0, 255.0), labels, names).fingerprint == numbers.fingerprint
    assert len({numbers.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_the_fingerprint_of_an_array_sees_its_type_and_shape() -> None:
    zeros = np.zeros((4, 6), np.uint8)
    assert len({array_fingerprint(a) for a in (zeros, zeros.reshape(6, 4), zeros.astype(np.int8))}) == 3


def test_digits_have_their_published_shape() -> None:
    split = load(DataConfig(name="digits", held_out=0.39))
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out)) == (1097, 700)
    assert split.train.shape == (1, 8, 8)
    assert split.train.classes == tuple("0123456789")
    pixels = np.stack(list(split.train))
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)
    assert split.train.value_range == (0.0, 16.0)


def test_parts_are_disjoint_complete_ordered_and_the_same_each_time() -> None:
    config = DataConfig(name="digits", held_out=0.39)
    one, two = load(config), load(config)
    assert one.held_out is not None
    assert two.held_out is not None
    train, held_out = one.train.indices, one.held_out.indices
    assert sorted([*train, *held_out]) == list(range(1797))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    np.testing.assert_array_equal(held_out, two.held_out.indices)
    assert one.train.fingerprint == two.train.fingerprint


def test_the_split_of_a_seed_never_changes() -> None:
    """Held-out images of a released recipe must stay held out, whatever the version of numpy."""
    first = load(DataConfig(name="digits")).held_out
    other = load(DataConfig(name="digits", seed=1)).held_out
    assert first is not None
    assert other is not None
    assert first.indices[:8].tolist() == FROZEN_SEED_0
    assert other.indices[:8].tolist() == FROZEN_SEED_1


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.29, 29), (0.57, 57), (0.999, 99)])
def test_the_held_out_count_is_the_share_rounded_down(tmp_path: Path, share: float, expected: int) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 2, 2), np.uint8))
    split = load(DataConfig(name="array", path=str(tmp_path / "x.npy"), held_out=share))
    assert len(split.train) == 100 - expected
    assert (len(split.held_out) if split.held_out else 0) == expected


def test_a_size_that_the_data_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.size = 32, but data 'digits' is 8 x 8"):
        load(DataConfig(name="digits", size=32))
    assert load(DataConfig(name="digits", size=8)).train.shape == (1, 8, 8)


def test_a_channel_count_that_the_data_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.channels = 3, but data 'digits' has 1"):
        load(DataConfig(name="digits", channels=3))


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffunet\[demo\]'"):
        load(DataConfig(name="digits"))


FROZEN_SEED_0 = [0, 21, 38, 43, 54, 66, 69, 85]
FROZEN_SEED_1 = [3, 5, 24, 27, 43, 54, 58, 60]
