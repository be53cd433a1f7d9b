"""Volumes: orientation, ranges, sizes, parts, and files that are not what they should be."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffunet import config
from diffunet.data import Split, load, volumes
from diffunet.data.volumes import Plan, Unreadable, Volumes, fitted, read_volume
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig

RNG = np.random.default_rng(0)
WHOLE = Plan(None, (0, 100), None, 10**6)
RAS = np.eye(4)


def folder(path: Path, **options: object) -> Split:
    return load(DataConfig(name="volumes", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def saved(path: Path, values: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# --- what a volume becomes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["RAS", "LPS", "LPI", "SPL", "AIR", "IRP"])
def test_the_corner_of_the_patient_is_found_in_any_orientation(tmp_path: Path, code: str) -> None:
    """nibabel turns the file; the voxel that is most superior, anterior and right comes first, whatever the file."""
    values = np.zeros((4, 5, 6), np.float32)
    values[-1, -1, -1] = 1  # the right, anterior, superior corner: the file is RAS here
    values[0, -1, -1] = 0.5  # the same on the left
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    image = nibabel.Nifti1Image(values, RAS).as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(image.affine)) == code
    image.to_filename(tmp_path / "x.nii.gz")
    volume = read_volume(str(tmp_path / "x.nii.gz"), WHOLE)
    assert (volume.shape, volume.dtype) == ((1, 6, 5, 4), np.float32)
    assert volume.flags.c_contiguous
    assert volume[0, 0, 0, 0] == 1
    assert volume[0, 0, 0, -1] == 0  # data.flip mirrors the last axis: left and right


@pytest.mark.parametrize("dtype", ["u1", "i2", "<f4", ">f4", ">i2", "f8"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_types_and_scales_are_those_of_the_header(tmp_path: Path, dtype: str, ending: str) -> None:
    values = RNG.integers(0, 100, (3, 4, 5)).astype(dtype)
    image = nibabel.Nifti1Image(values, RAS)
    image.header.set_data_dtype(dtype)
    image.header.set_slope_inter(2.0, -7.0)
    nibabel.save(image, tmp_path / f"x{ending}")
    plan = Plan(None, (0, 100), (-7.0, 207.0), 10**6)
    # nibabel, which wrote the file with that scale, is the oracle
    expected = np.asarray(nibabel.load(tmp_path / f"x{ending}").dataobj, dtype=np.float64)
    volume = read_volume(str(tmp_path / f"x{ending}"), plan)[0]
    seen = np.clip(expected.transpose(2, 1, 0)[::-1, ::-1, ::-1], -7, 207)
    np.testing.assert_allclose((volume + 1) * 107 - 7, seen, atol=1e-3)


def test_each_volume_and_channel_is_normalised_by_its_own_percentiles(tmp_path: Path) -> None:
    values = noise(9, 8, 7, 2) * [1, 50] + [0, 1000]
    volume = read_volume(str(saved(tmp_path / "x.nii", values.astype(np.float32))), Plan(None, (5, 90), None, 10**6))
    assert volume.shape == (2, 7, 8, 9)
    for channel in volume:
        assert (channel == -1).mean() == pytest.approx(0.05, abs=0.01)
        assert (channel == 1).mean() == pytest.approx(0.10, abs=0.01)


def test_a_stated_range_holds_for_every_volume(tmp_path: Path) -> None:
    for i, level in enumerate((0, 100)):
        saved(tmp_path / f"{i}.nii", np.full((2, 2, 2), level, np.int16))
    split = folder(tmp_path, value_range=(-100, 300))
    assert [split.train[i].mean() for i in range(2)] == [-0.5, 0.0]


@pytest.mark.parametrize("size", [(3, 8, 5), (7, 5, 6), (4, 5, 6), (9, 2, 1)])
def test_cutting_and_padding_keep_the_middle(size: tuple[int, ...]) -> None:
    volume = noise(2, 4, 5, 6)
    out = fitted(volume, size)
    assert out.shape == (2, *size)
    middle = [side // 2 for side in size]
    # half of what is too much goes at the beginning, rounded down, and half of what is missing
    before = [int((have - want) / 2) + place for have, want, place in zip((4, 5, 6), size, middle, strict=True)]
    assert np.array_equal(out[(slice(None), *middle)], volume[(slice(None), *before)])
    assert set(np.unique(out)) <= set(np.unique(volume))  # what is padded repeats the outermost values


# --- a folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"), [("train/images", "test/images"), ("train", "test"), ("imagesTr", "imagesTs")]
)
def test_an_official_test_part_is_held_out_and_labels_are_left_alone(tmp_path: Path, train: str, test: str) -> None:
    for name in (f"{train}/a", f"{train}/b", f"{test}/c"):
        saved(tmp_path / f"{name}.nii.gz", noise(3, 4, 5))
    if train.endswith("images"):
        saved(tmp_path / "train/labels/a.nii.gz", noise(3, 4, 5))
    (tmp_path / train / "._a.nii.gz").write_bytes(b"a Mac's remark")
    split = folder(tmp_path, held_out=0.5)
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out), split.train.shape) == (2, 1, (1, 5, 4, 3))
    assert [Path(split.train.name_of(i)).name for i in range(2)] == ["a.nii.gz", "b.nii.gz"]


def test_without_one_a_share_is_held_out(tmp_path: Path) -> None:
    for i in range(4):
        saved(tmp_path / "deep" / f"{i}.nii", noise(2, 2, 2))
    split = folder(tmp_path, held_out=0.25)
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out)) == (3, 1)


def test_several_sizes_ask_for_one(tmp_path: Path) -> None:
    saved(tmp_path / "a.nii", noise(3, 4, 5))
    saved(tmp_path / "b.nii", noise(3, 4, 6))
    with pytest.raises(DataError, match=r"b\.nii is 6 x 4 x 3 voxels .* set data\.size"):
        folder(tmp_path)
    assert folder(tmp_path, size=(4, 4, 4)).train.shape == (1, 4, 4, 4)
    assert folder(tmp_path, size=4).train.shape == (1, 4, 4, 4)
    saved(tmp_path / "c.nii", noise(3, 4, 5, 2))
    with pytest.raises(DataError, match=r"c\.nii has 2 channels"):
        folder(tmp_path, size=4)


def test_what_does_not_fit_in_memory_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        saved(tmp_path / f"{name}.nii.gz", noise(3, 4, 5))
    whole = folder(tmp_path).train
    monkeypatch.setattr(volumes, "IN_MEMORY", 100)
    train = folder(tmp_path).train
    assert isinstance(train.source, Volumes)
    assert train.fingerprint == whole.fingerprint
    for i in range(3):
        assert np.array_equal(train[i], whole[i])
    (tmp_path / "b.nii.gz").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"b\.nii\.gz cannot be read"):
        train[1]


def test_missing_volumes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 0 volumes"):
        folder(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        folder(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"\[depth, height, width\]"):
        config.resolve({"data": {"name": "volumes", "path": ".", "size": [3, 4]}, "model": {"dims": 3}})


# --- hostile files ----------------------------------------------------------------------------------------------------


def body(path: Path) -> bytearray:
    return bytearray(saved(path, noise(4, 4, 4)).read_bytes())


def patched(offset: int, pattern: str, *values: float) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        struct.pack_into(pattern, data, offset, *values)
        return bytes(data)

    return change


HOSTILE: dict[str, tuple[Callable[[bytearray], bytes], str]] = {
    "empty": (lambda data: b"", "no NIfTI header"),
    "text": (lambda data: b"no volume at all" * 99, "no NIfTI header"),
    "cut in the header": (lambda data: bytes(data[:200]), "no NIfTI header"),
    "cut in the voxels": (lambda data: bytes(data[:-1]), "ends early"),
    "a million voxels a side": (patched(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1), "above data.max_pixels"),
    "no voxel": (patched(40, "<8h", 3, 0, 4, 4, 1, 1, 1, 1), "of shape"),
    "negative side": (patched(40, "<8h", 3, -4, 4, 4, 1, 1, 1, 1), ""),
    "two axes": (patched(40, "<8h", 2, 8, 8, 1, 1, 1, 1, 1), "of shape"),
    "five axes": (patched(40, "<8h", 5, 2, 2, 2, 2, 2, 1, 1), "of shape"),
    "complex": (patched(70, "<2h", 32, 64), "expected real numbers"),
    "colours": (patched(70, "<2h", 128, 24), "expected real numbers"),
    "unknown type": (patched(70, "<2h", 7777, 32), ""),
    "voxels far away": (patched(108, "<f", 3e9), "begin at byte"),
    "voxels nowhere": (patched(108, "<f", float("nan")), ""),
    "scaled to infinity": (patched(112, "<2f", 3e38, 3e38), "NaN or infinity"),
    "NaN in a voxel": (patched(352, "<f", float("nan")), "NaN or infinity"),
    "one value": (lambda data: bytes(data[:352]) + bytes(256), "nearly all of its values are the same"),
    "no place": (patched(280, "<12f", *[0.0] * 12), "no orientation"),
}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_named(tmp_path: Path, kind: str, ending: str) -> None:
    change, said = HOSTILE[kind]
    data = change(body(tmp_path / "good.nii"))
    (tmp_path / f"bad{ending}").write_bytes(gzip.compress(data) if ending == ".nii.gz" else data)
    with pytest.raises(DataError, match=rf"bad\.nii.*{said}"):
        folder(tmp_path, bad_files="fail")
    split = folder(tmp_path, bad_files_cap=0.5)
    assert len(split.train) == 1
    assert [Path(bad.path).name for bad in split.skipped] == [f"bad{ending}"]


def test_a_file_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    """64 MB behind a header that asks for 64 voxels: no more than those are read."""
    data = bytes(body(tmp_path / "good.nii"))
    (tmp_path / "good.nii").unlink()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(data + bytes(2**26), compresslevel=1))
    tracemalloc.start()
    assert len(folder(tmp_path).train) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_any_flipped_byte_of_a_header_ends_in_a_volume_or_an_error(tmp_path: Path) -> None:
    whole, path = body(tmp_path / "x.nii"), tmp_path / "x.nii"
    refused = 0
    for i in range(348):
        for value in (0x00, 0x7F, 0xFF):
            data = whole.copy()
            data[i] = value
            path.write_bytes(data)
            try:
                volume = read_volume(str(path), WHOLE)
            except Unreadable:
                refused += 1
            else:
                assert volume.ndim == 4
                assert np.isfinite(volume).all()
    assert 30 < refused < 3 * 348


def test_real_volumes_of_two_types_and_ranges_look_alike(shared: Path) -> None:
    split = folder(shared / "hippocampus3d", size=(32, 48, 32))
    assert split.held_out is not None
    assert (len(split.train), len(split.held_out), split.train.shape) == (64, 16, (1, 32, 48, 32))
    means = [split.train[i].mean() for i in range(64)]
    assert -0.3 < min(means) < max(means) < 0.4  # the files' own means run from 60 to 2e5
