"""Volumes: a folder of NIfTI files (.nii, .nii.gz), each normalised by its own values, cut or padded to one size.

Voxels are turned to the axes nearest to (depth, height, width) = superior to inferior, anterior to posterior, right to
left of the patient, so that a slice reads like a radiologist's and data.flip mirrors left and right.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, NoReturn, Protocol, cast

import numpy as np
from einops import rearrange

from diffunet.data.base import BadFile, Images, Listing, Place, Range, Source, Split, Stored, shown
from diffunet.data.decode import Unreadable
from diffunet.data.folder import Sieve
from diffunet.data.scan import file_digest, fingerprint
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig

IN_MEMORY = 2 * 2**30  # bytes of normalised voxels; a larger folder is read file by file
ENDINGS = (".nii", ".nii.gz")
# folders of training and of held-out volumes, where a data set has both; the volumes lie in it, or in its images/
PARTS = (("train", "test"), ("imagesTr", "imagesTs"))
_HEAD = 540  # bytes of the longer of the two headers
_LEAST_BEFORE, _MOST_BEFORE = 348, 2**24  # bytes before the voxels: the shorter header; with extensions
Shape = tuple[int, ...]


class Header(Protocol):
    """What is used of nibabel's headers."""

    def get_data_shape(self) -> Shape: ...
    def get_data_dtype(self) -> np.dtype: ...
    def get_data_offset(self) -> int: ...
    def get_best_affine(self) -> np.ndarray: ...
    def data_from_fileobj(self, file: BinaryIO) -> np.ndarray: ...


@dataclass(frozen=True)
class Plan:
    """How every file becomes an array: see the keys of `DataConfig`; `size` is (depth, height, width)."""

    size: Shape | None
    percentiles: Range
    value_range: Range | None
    max_voxels: int


def _nibabel(config: DataConfig) -> None:
    try:
        import nibabel  # noqa: F401 (an extra)
    except ImportError as error:
        raise ConfigError(f"data '{config.name}' needs nibabel: pip install 'diffunet[volumes]'") from error


def _header(file: BinaryIO) -> Header:
    """The header at the beginning of a file, which says how much there is to read."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = file.read(_HEAD)
    for kind in (Nifti1Header, Nifti2Header):
        if kind.may_contain_header(start):
            return cast(Header, kind.from_fileobj(io.BytesIO(start)))
    raise Unreadable("it has no NIfTI header")


def _voxels(path: str, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Stored values (x, y, z, channels) of a file, scaled as its header says, and its affine (4, 4).

    No more is unpacked than the header asks for, and a header that asks for too much is refused first.
    """
    from nibabel.imageglobals import LoggingOutputSuppressor
    from nibabel.spatialimages import HeaderDataError

    try:
        with LoggingOutputSuppressor(), gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            header = _header(cast(BinaryIO, file))
            shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
            count = int(np.prod(shape, dtype=object))
            if len(shape) not in (3, 4) or count < 1 or dtype.kind not in "uif":
                raise Unreadable(f"it holds {dtype} of shape {shape}; expected real numbers, 3 axes or 4 (channels)")
            if count > plan.max_voxels:
                raise Unreadable(f"its {count} voxels are above data.max_pixels = {plan.max_voxels}; not read")
            if not _LEAST_BEFORE <= offset <= _MOST_BEFORE:
                raise Unreadable(f"its header says that voxels begin at byte {offset}")
            file.seek(0)
            body = file.read(offset + count * dtype.itemsize)
        if len(body) < offset + count * dtype.itemsize:
            raise Unreadable(f"it ends early: {len(body)} bytes, and its header says {offset + count * dtype.itemsize}")
        with np.errstate(all="ignore"):  # what a scale in the header makes too large is infinite, and found below
            values = np.asarray(header.data_from_fileobj(io.BytesIO(body)), dtype=np.float32)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, HeaderDataError) as error:
        raise Unreadable(shown(f"{type(error).__name__}: {error}")) from error
    if not (np.isfinite(values).all() and np.isfinite(affine).all()):
        raise Unreadable("it holds NaN or infinity")
    return values if values.ndim == 4 else values[..., None], affine


def _turned(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(x, y, z, channels) in any orientation to (channels, depth, height, width): see the head of this file."""
    from nibabel.orientations import OrientationError, apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    try:
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "I")))
        patient = apply_orientation(values, turn)
    except (OrientationError, ValueError, np.linalg.LinAlgError) as error:
        raise Unreadable(f"its affine says no orientation: {error}") from error
    return rearrange(patient, "w h d c -> c d h w")


def _normalised(volume: np.ndarray, plan: Plan) -> np.ndarray:
    """Each channel to [-1, 1]: from plan.value_range, or from two percentiles of its own values; others are clipped."""
    ends = np.array([plan.value_range or np.percentile(channel, plan.percentiles) for channel in volume])
    low, high = (rearrange(end.astype(np.float32), "c -> c 1 1 1") for end in ends.T)
    if not (low < high).all():
        raise Unreadable("nearly all of its values are the same, so that none can become -1 and 1")
    return np.clip((volume - low) / ((high - low) / 2) - 1, -1, 1)


def fitted(volume: np.ndarray, size: Shape) -> np.ndarray:
    """(C, D, H, W) cut, or padded with its outermost values, to `size` around its middle (an odd voxel at the end)."""
    for axis, want in enumerate(size, start=1):
        have = volume.shape[axis]
        before = abs(have - want) // 2
        if have > want:
            volume = volume.take(range(before, before + want), axis)
        elif have < want:
            pads = [(0, 0)] * volume.ndim
            pads[axis] = (before, want - have - before)
            volume = np.pad(volume, pads, mode="edge")
    return volume


def read_volume(path: str, plan: Plan) -> np.ndarray:
    """One file as float32 (C, D, H, W) in [-1, 1], of its own size where the plan has none.

    Raises:
        Unreadable: no NIfTI file, damaged, too large, not numbers, NaN, or one value everywhere.
    """
    # the values that are normalised by are those of the whole volume, also of what is then cut away
    volume = _normalised(_turned(*_voxels(path, plan)), plan)
    return np.ascontiguousarray(fitted(volume, plan.size) if plan.size else volume)


@dataclass(frozen=True, eq=False)
class Volumes:
    """Volumes read when they are asked for."""

    listing: Listing
    plan: Plan
    shape: Shape
    fingerprint: str
    value_range: Range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.listing)

    def read(self, i: int) -> np.ndarray:
        """Raises DataError where the file cannot be read, or is not like the first."""
        path = self.listing.path(i)
        try:
            volume = read_volume(path, self.plan)
        except Unreadable as error:
            raise DataError(f"{shown(path)} cannot be read: {error}; mend or remove it") from error
        if volume.shape != self.shape:
            raise DataError(_other_shape(path, volume.shape, self.shape))
        return volume

    def view(self, i: int, place: Place) -> np.ndarray:
        return self.read(i)

    def name(self, i: int) -> str:
        return self.listing.path(i)


def _other_shape(path: str, found: Shape, wanted: Shape) -> str:
    now, first = (" x ".join(map(str, shape[1:])) for shape in (found, wanted))
    if found[0] != wanted[0]:
        return f"{shown(path)} has {found[0]} channels, but the first volume has {wanted[0]}; take it out"
    return (
        f"{shown(path)} is {now} voxels (depth x height x width), but the first volume is {first}; "
        "set data.size = [depth, height, width], to which all are cut or padded"
    )


def _unlisted(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {shown(str(error.filename))}: {error.strerror}; it is part of data.path") from error


def _list(folder: str) -> Listing:
    """The volumes below a folder in order of their names; those in its images/ alone, where it has one."""
    if os.path.isdir(os.path.join(folder, "images")):
        folder = os.path.join(folder, "images")
    names = sorted(
        os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
        for place, _, files in os.walk(folder, onerror=_unlisted)
        for name in files
        if not name.startswith(".") and name.lower().endswith(ENDINGS)
    )
    if not names:
        raise DataError(f"found 0 volumes in {shown(folder)} (looked for {' '.join(ENDINGS)})")
    return Listing(folder, tuple(names), tuple(file_digest(os.path.join(folder, name)) for name in names))


def _images(folder: str, plan: Plan, config: DataConfig) -> tuple[Images, list[BadFile]]:
    """The volumes of a folder, in memory where they fit, and those that could not be read."""
    listing = _list(folder)
    sieve, (seal, _) = Sieve(config, len(listing)), fingerprint(listing)
    kept: dict[int, np.ndarray] = {}
    for i in range(len(listing)):
        volume = sieve.attempt(partial(read_volume, plan=plan), listing.path(i))
        if volume is None:
            continue
        kept[i] = volume
        if len(listing) * volume.nbytes > IN_MEMORY:
            rest = listing.select(range(i, len(listing)))  # the files before this one are bad
            return Images.of(cast(Source, Volumes(rest, plan, volume.shape, seal))), sieve.skipped
        if volume.shape != (first := next(iter(kept.values())).shape):
            raise DataError(_other_shape(listing.path(i), volume.shape, first))
    sieve.check()
    source = Stored(np.stack(list(kept.values())), (-1.0, 1.0), seal, listing=listing.select(list(kept)))
    return Images.of(source), sieve.skipped


def load_volumes(config: DataConfig) -> Split[Images]:
    """All the volumes of a folder; where it has train/ and test/ (or imagesTr/ and imagesTs/), test/ is held out.

    Raises:
        DataError: no folder, no volume, too many bad files, several sizes without data.size.
        ConfigError: nibabel is not installed.
    """
    _nibabel(config)
    root = str(config.path)
    if not os.path.isdir(root):
        is_what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"data.path = {shown(root)} {is_what}; data 'volumes' needs a folder of NIfTI files")
    size = (config.size,) * 3 if isinstance(config.size, int) else config.size
    plan = Plan(size, config.percentiles, config.value_range, config.max_pixels)
    pairs = [[os.path.join(root, name) for name in names] for names in PARTS]
    folders = next((pair for pair in pairs if all(map(os.path.isdir, pair))), [root])
    (train, skipped), *rest = [_images(folder, plan, config) for folder in folders]
    for held_out, more in rest:
        if held_out.shape != train.shape:
            raise DataError(_other_shape(held_out.name_of(0), held_out.shape, train.shape))
        return Split(train, held_out, (*skipped, *more))
    return Split(train, skipped=tuple(skipped))
