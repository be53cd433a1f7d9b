"""Arrays: layouts, ranges, labels, large and hostile files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from diffunet.data import Split, arrays, load
from diffunet.data.base import NpyFile, Stored
from diffunet.errors import DataError, UnsafeError
from diffunet.spec import DataConfig

RNG = np.random.default_rng(0)


def array(path: Path, **options: object) -> Split:
    return load(DataConfig(name="array", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def saved(tmp_path: Path, values: np.ndarray, **options: object) -> Split:
    np.save(tmp_path / "x.npy", values)
    return array(tmp_path / "x.npy", **options)


LAYOUT_SHAPES = {
    "nl": ((5, 7), (1, 7)),
    "nlc": ((5, 7, 2), (2, 7)),
    "ncl": ((5, 2, 7), (2, 7)),
    "nhw": ((5, 6, 7), (1, 6, 7)),
    "nhwc": ((5, 6, 7, 3), (3, 6, 7)),
    "nchw": ((5, 3, 6, 7), (3, 6, 7)),
    "ndhw": ((5, 4, 6, 7), (1, 4, 6, 7)),
    "ndhwc": ((5, 4, 6, 7, 2), (2, 4, 6, 7)),
    "ncdhw": ((5, 2, 4, 6, 7), (2, 4, 6, 7)),
}


@pytest.mark.parametrize("layout", arrays.LAYOUTS)
def test_every_layout_puts_channels_first(tmp_path: Path, layout: str) -> None:
    stored, expected = LAYOUT_SHAPES[layout]
    values = RNG.integers(0, 256, stored, dtype=np.uint8)
    train = saved(tmp_path, values, layout=layout).train
    assert train.shape == expected == train[4].shape
    item = np.moveaxis(values[4], -1, 0) if layout.endswith("c") else values[4]
    np.testing.assert_allclose((train[4].reshape(-1) + 1) * 127.5, item.reshape(-1), atol=1e-4)
    assert train[4].flags.c_contiguous


@pytest.mark.parametrize("layout", ["nl", "nhw", "nhwc", "ncdhw"])
def test_without_a_layout_the_number_of_axes_decides(tmp_path: Path, layout: str) -> None:
    stored, expected = LAYOUT_SHAPES[layout]
    assert saved(tmp_path, np.zeros(stored, np.uint8)).train.shape == expected


def test_channels_that_could_be_first_or_last_are_asked_for(tmp_path: Path) -> None:
    values = np.zeros((9, 3, 32, 32), np.uint8)
    with pytest.raises(DataError, match=r"set data\.layout = 'nchw' or 'nhwc'"):
        saved(tmp_path, values)
    assert saved(tmp_path, values, layout="nchw").train.shape == (3, 32, 32)


@pytest.mark.parametrize(("shape", "layout"), [((5,), None), ((5, 6), "nhw"), ((1,) * 6, None), ((), None)])
def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path, shape: tuple[int, ...], layout: str | None) -> None:
    with pytest.raises(DataError, match=r"has shape .*data\.layout"):
        saved(tmp_path, np.zeros(shape, np.uint8), layout=layout)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255]], np.uint8), (0, 255)),
        (np.array([[3, 4]], np.uint8), (0, 255)),
        (np.array([[0, 65535]], np.uint16), (0, 65535)),
        (np.array([[0, 65535]], ">u2"), (0, 65535)),
        (np.array([[False, True]]), (0, 1)),
        (np.array([[0, 0.5]], np.float16), (0, 1)),
        (np.array([[-0.5, 1]], np.float64), (-1, 1)),
    ],
)
def test_types_with_a_usual_range_need_none(tmp_path: Path, values: np.ndarray, expected: tuple[float, float]) -> None:
    train = saved(tmp_path, values).train
    assert train.value_range == expected
    low, high = expected
    numbers = values.astype(np.float64)
    np.testing.assert_allclose(train[0], (numbers - low) / (high - low) * 2 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "values", [np.array([[0.0, 3.5]]), np.array([[-2, 9]], np.int16), np.array([[0, 1]], np.int64)]
)
def test_other_types_need_a_range_and_the_message_shows_the_values(tmp_path: Path, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    with pytest.raises(DataError, match=rf"x\.npy holds .* from {low:g} to {high:g}; .*data\.value_range"):
        saved(tmp_path, values)
    split = saved(tmp_path, values, value_range=(low, high))
    assert split.train[0].ravel().tolist() == [-1.0, 1.0]
    assert split.notes == ()


def test_values_beyond_a_stated_range_are_clipped_and_noted(tmp_path: Path) -> None:
    split = saved(tmp_path, np.array([[-10, 0, 100]], np.int16), value_range=(0, 50))
    assert split.train[0].ravel().tolist() == [-1.0, -1.0, 1.0]
    assert split.notes == ("values from -10 to 100 are clipped to data.value_range = [0, 50]",)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_item_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    values = np.zeros((9, 4), np.float32)
    values[[6, 8], 2] = bad
    with pytest.raises(DataError, match=r"x\.npy: item 6 holds NaN or infinity"):
        saved(tmp_path, values)


@pytest.mark.parametrize("values", [np.zeros((3, 4), complex), np.full((3, 4), "x"), np.zeros((3, 4), "M8[s]")])
def test_what_is_no_number_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(DataError, match="not numbers"):
        saved(tmp_path, values)


def test_npz_labels_become_numbered_classes(tmp_path: Path) -> None:
    for keys in (("arr_0", "arr_1"), ("images", "labels"), ("x", "y")):
        parts = (np.zeros((3, 4, 4), np.uint8), np.array([[2], [0], [2]], np.uint8))
        np.savez_compressed(tmp_path / "x.npz", **dict(zip(keys, parts, strict=True)))
        train = array(tmp_path / "x.npz").train
        assert train.classes == ("0", "1", "2")
        assert train.labels is not None
        assert train.labels.dtype == np.int64
        assert train.labels.tolist() == [2, 0, 2]


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros(2, int), np.array([0, -1, 2]), np.array([0, 1, 2**40])])
def test_wrong_labels_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=labels)
    with pytest.raises(DataError, match=r"x\.npz: labels "):
        array(tmp_path / "x.npz")


def test_an_npz_without_images_lists_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="no array arr_0 or images or x; it has pictures"):
        array(tmp_path / "x.npz")


def test_a_npy_file_is_read_item_by_item_and_by_workers(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (40, 5, 6)).astype(">u2")
    train = saved(tmp_path, values, held_out=0.5).train
    assert isinstance(train.source, Stored)
    assert isinstance(train.source.array, NpyFile)
    copy = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(train.source)) < 1000  # the pixels stay in the file
    for i in range(20):
        np.testing.assert_allclose((copy[i][0] + 1) * 32767.5, values[train.indices[i]], atol=0.01)


def test_fortran_order_is_read_whole(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (4, 5, 6), dtype=np.uint8)
    train = saved(tmp_path, np.asfortranarray(values)).train
    np.testing.assert_allclose((train[3][0] + 1) * 127.5, values[3], atol=1e-4)


def test_a_file_that_shrinks_in_use_is_an_error_and_no_crash(tmp_path: Path) -> None:
    train = saved(tmp_path, np.zeros((100, 64, 64), np.uint8)).train
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"x\.npy became shorter"):
        train[50]


def test_the_fingerprint_follows_values_and_not_the_file(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    first = saved(tmp_path, values).train.fingerprint
    assert saved(tmp_path, values).train.fingerprint == first
    values[25, 4, 4] ^= 1
    assert saved(tmp_path, values).train.fingerprint != first


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "raw.npy"])
def test_pickled_objects_are_refused_unopened(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    objects = np.array([Canary(canary)], dtype=object)
    if name == "raw.npy":
        (tmp_path / name).write_bytes(pickle.dumps(Canary(canary)))
    elif name == "x.npy":
        np.save(tmp_path / name, objects, allow_pickle=True)
    else:
        np.savez(tmp_path / name, images=objects, allow_pickle=True)
    with pytest.raises(UnsafeError, match=f"{name} holds pickled") as caught:
        array(tmp_path / name)
    assert caught.value.exit_code == 7
    assert not canary.exists()
    np.load(tmp_path / "x.npy", allow_pickle=True) if name == "x.npy" else None
    assert canary.exists() == (name == "x.npy")  # the trap was armed


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    values = RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.save(tmp_path / name, values) if name == "x.npy" else np.savez_compressed(tmp_path / name, images=values)
    whole = (tmp_path / name).read_bytes()
    for share in (0.0, 0.01, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises((DataError, UnsafeError), match=name):
            array(tmp_path / name)


def test_flipped_bytes_in_an_archive_are_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8))
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(DataError, match=r"x\.npz cannot be read"):
        array(tmp_path / "x.npz")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((4, 1024, 1024), np.uint8))
    assert len(array(tmp_path / "x.npz").train) == 4
    monkeypatch.setattr(arrays, "_BOMB", (2**20, 200))
    with pytest.raises(UnsafeError, match=r"'images\.npy' would unpack"):
        array(tmp_path / "x.npz")


def test_missing_and_empty_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npy does not exist"):
        array(tmp_path / "none.npy")
    with pytest.raises(DataError, match="is a folder"):
        array(tmp_path)
    np.savez(tmp_path / "x.npz", images=np.zeros((0, 4, 4), np.uint8))
    with pytest.raises(DataError, match="holds no images"):
        array(tmp_path / "x.npz")


def test_an_array_of_the_file_may_say_what_is_held_out(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "x.npz", images=values, labels=np.arange(5), test=np.array([0, 1, 0, 1, 0]))
    split = array(tmp_path / "x.npz", held_out_key="test", held_out=0.9)
    assert split.held_out is not None
    for part, kept in ((split.train, [0, 2, 4]), (split.held_out, [1, 3])):
        assert [round((part[i][0, 0, 0].item() + 1) * 127.5) for i in range(len(part))] == kept
    assert split.held_out.labels is not None
    assert split.held_out.labels.tolist() == [1, 3]
    assert split.train.classes == split.held_out.classes == ("0", "1", "2", "3", "4")
    assert split.train.fingerprint != array(tmp_path / "x.npz").train.fingerprint


@pytest.mark.parametrize(
    "parts", [np.zeros(3, int), np.ones(3, int), np.array([0, 1, 2]), np.array([0, 1]), np.array([0, 0.5, 1])]
)
def test_a_wrong_part_is_refused(tmp_path: Path, parts: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), part=parts)
    with pytest.raises(DataError, match=r"x\.npz: 'part' \(data\.held_out_key\) must be"):
        array(tmp_path / "x.npz", held_out_key="part")


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"no array data\.held_out_key = 'part'; it has images"):
        array(tmp_path / "x.npz", held_out_key="part")
    with pytest.raises(DataError, match=r"is one array, without data\.held_out_key"):
        saved(tmp_path, np.zeros((3, 4, 4), np.uint8), held_out_key="part")


def test_labels_may_have_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, 1, 1]))
    assert array(tmp_path / "x.npz", class_names=("cat", "dog", "bird")).train.classes == ("cat", "dog", "bird")
    with pytest.raises(DataError, match=r"labels run from 0 to 1; expected 0 to 0 \(data\.class_names\)"):
        array(tmp_path / "x.npz", class_names=("cat",))


def test_real_heart_beats_are_signals_with_classes_of_two_groups_of_patients(shared: Path) -> None:
    path = shared / "ecg" / "mitbih_beats.npz"
    split = array(path, value_range=(-1024, 1024), held_out_key="split", class_names=("N", "S", "V", "F", "Q"))
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out)) == (9554, 9852)
    assert split.train.shape == (1, 256)
    assert split.train.classes == ("N", "S", "V", "F", "Q")
    with np.load(path) as file:
        records = [set(file["record"][part.indices]) for part in (split.train, split.held_out)]
    assert (len(records[0]), len(records[1]), len(records[0] & records[1])) == (22, 22, 0)


def test_real_strips_have_two_channels(shared: Path) -> None:
    train = array(shared / "ecg" / "mitbih_strips.npz", value_range=(-1024, 1024), layout="ncl").train
    assert (len(train), train.shape) == (288, (2, 3600))
