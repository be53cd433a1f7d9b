"""Arrays of any dimension and channel count: .npy (read item by item) and .npz (with labels).

`data.layout` names the axes: n items, c channels, then l (signals), h w (images) or d h w (volumes).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, NamedTuple

import numpy as np

from diffunet.data.base import Images, NpyFile, Range, Split, Stored, array_fingerprint, blocks, shown
from diffunet.errors import DataError, UnsafeError
from diffunet.spec import DataConfig
from diffunet.table import Table

IMAGE_KEYS = ("arr_0", "images", "x")
LABEL_KEYS = ("arr_1", "labels", "y")
_RANGES: dict[str, Range] = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
_BOMB = (2**30, 200)  # bytes, and times its packed size: an archive member above both is refused
_MOST_CLASSES = 10_000_000

LAYOUTS: Table[str] = Table(
    "data.layout",
    {
        "nl": "l -> 1 l",
        "nlc": "l c -> c l",
        "ncl": "c l -> c l",
        "nhw": "h w -> 1 h w",
        "nhwc": "h w c -> c h w",
        "nchw": "c h w -> c h w",
        "ndhw": "d h w -> 1 d h w",
        "ndhwc": "d h w c -> c d h w",
        "ncdhw": "c d h w -> c d h w",
    },
)
_USUAL = {2: "nl", 3: "nhw", 4: "nhwc", 5: "ncdhw"}


@contextmanager
def _careful(path: str) -> Iterator[None]:
    """Turn what numpy and zipfile raise into errors that name the file; pickled objects are UnsafeError."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise UnsafeError(
                f"{shown(path)} holds pickled Python objects, which could run code, or is no .npy or .npz file; "
                "it is not opened; save plain numbers with numpy.save or numpy.savez"
            ) from error
        raise DataError(f"{shown(path)} cannot be read as .npy or .npz: {error}") from error


def _refuse_bombs(archive: zipfile.ZipFile, path: str) -> None:
    for member in archive.infolist():
        if member.file_size > _BOMB[0] and member.file_size > _BOMB[1] * member.compress_size:
            raise UnsafeError(
                f"{shown(path)}: '{ascii(member.filename)[1:-1]}' would unpack {member.compress_size} bytes to "
                f"{member.file_size}; not opened (numpy.savez, uncompressed, makes it acceptable)"
            )


class Arrays(NamedTuple):
    """What a file holds: items (N, ...), their labels, and which of them are held out (None where it does not say)."""

    items: np.ndarray | NpyFile
    labels: np.ndarray | None = None
    held_out: np.ndarray | None = None


def _read_npz(file: BinaryIO, path: str, held_out_key: str | None) -> Arrays:
    with zipfile.ZipFile(file) as archive:
        _refuse_bombs(archive, path)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        images, labels = (
            next((arrays[key] for key in keys if key in arrays.files), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
        )
        names = ", ".join(arrays.files) or "none"
        held_out = arrays.get(held_out_key)
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"{shown(path)} has no array {' or '.join(IMAGE_KEYS)}; it has {shown(names)}; "
            "save the images under one of these names"
        )
    if held_out_key is not None and held_out is None:
        raise DataError(
            f"{shown(path)} has no array data.held_out_key = {held_out_key!a}; it has {shown(names)}; name one of these"
        )
    return Arrays(images, labels, held_out)


def read_arrays(path: str, held_out_key: str | None = None) -> Arrays:
    """The arrays of a .npy or .npz file.

    Raises:
        DataError: missing, damaged, or without one of the keys (a .npy file has none).
        UnsafeError: pickled objects, or an archive that unpacks to far more than its size.
    """
    if not os.path.isfile(path):
        is_what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise DataError(f"data.path = {shown(path)} {is_what}; data 'array' needs a .npy or .npz file")
    with _careful(path):
        with open(path, "rb") as file:  # opened here because numpy leaves a damaged archive open
            if file.read(2) == b"PK":
                return _read_npz(file, path, held_out_key)
        if held_out_key is not None:
            raise DataError(f"{shown(path)} is one array, without data.held_out_key = {held_out_key!a}; save an .npz")
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # reads the header only
        if not mapped.flags.c_contiguous:
            return Arrays(np.array(mapped))  # Fortran order: an item is scattered over the whole file
        return Arrays(NpyFile(path, mapped.dtype, mapped.shape, mapped.offset))


def _pattern(config: DataConfig, shape: tuple[int, ...]) -> str:
    """einops' pattern from one item to (C, *S)."""
    where = f"{shown(str(config.path))} has shape {shape}"
    layout = config.layout or _USUAL.get(len(shape))
    if layout is None or len(layout) != len(shape):
        raise DataError(f"{where}, which is not data.layout = {layout}; one of: {', '.join(LAYOUTS)}")
    if 0 in shape:
        raise DataError(f"{where}: it holds no images")
    if config.layout is None and len(shape) == 4 and shape[1] <= 4 < shape[3]:
        raise DataError(f"{where}: channels first or last? set data.layout = 'nchw' or 'nhwc'")
    return LAYOUTS[layout]


def _extent(array: np.ndarray | NpyFile, path: str) -> Range:
    """Smallest and largest value; DataError where one is NaN or infinite."""
    lows, highs = [], []
    for start, block in blocks(array):
        low, high = float(block.min()), float(block.max())
        if not np.isfinite([low, high]).all():
            bad = next(i for i, item in enumerate(block) if not np.isfinite(item).all())
            raise DataError(f"{shown(path)}: item {start + bad} holds NaN or infinity; mend or remove it")
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _value_range(config: DataConfig, array: np.ndarray | NpyFile) -> tuple[Range, list[str]]:
    """The values that become -1 and 1, and a note where some lie outside.

    data.value_range, else the whole range of bool, uint8 and uint16, else [0, 1] or [-1, 1] where floats lie in it.
    """
    path, kind = str(config.path), array.dtype
    if kind.kind not in "buif":
        raise DataError(f"{shown(path)} holds {kind}, not numbers")
    if config.value_range is None and kind.name in _RANGES:
        return _RANGES[kind.name], []
    low, high = _extent(array, path)
    if config.value_range is not None:
        first, last = config.value_range
        outside = low < first or high > last
        note = f"values from {low:g} to {high:g} are clipped to data.value_range = [{first:g}, {last:g}]"
        return config.value_range, [note] if outside else []
    for first, last in ((0.0, 1.0), (-1.0, 1.0)):
        if kind.kind == "f" and first <= low and high <= last:
            return (first, last), []
    raise DataError(
        f"{shown(path)} holds {kind} values from {low:g} to {high:g}; "
        "say which become -1 and 1: data.value_range = [low, high]"
    )


def _classes(labels: np.ndarray, count: int, config: DataConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 (N,), and data.class_names, or names "0", "1", ... up to the largest."""
    where = shown(str(config.path))
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "ui" or labels.size != count:
        what = f"{labels.dtype} of shape {labels.shape}" if isinstance(labels, np.ndarray) else "no array"
        raise DataError(f"{where}: labels must be {count} integers, one per image, not {what}")
    low, high = int(labels.min()), int(labels.max())
    most = len(config.class_names) if config.class_names else _MOST_CLASSES
    if low < 0 or high >= most:
        named = " (data.class_names)" if config.class_names else ""
        raise DataError(f"{where}: labels run from {low} to {high}; expected 0 to {most - 1}{named}")
    names = config.class_names or tuple(str(i) for i in range(high + 1))
    return labels.reshape(-1).astype(np.int64), names


def _parted(images: Images, held_out: np.ndarray, config: DataConfig) -> Split[Images]:
    """The items where `held_out` is 0 to train on, and those where it is 1."""
    where, key = shown(str(config.path)), config.held_out_key
    if not isinstance(held_out, np.ndarray) or held_out.dtype.kind not in "bui" or held_out.shape != (len(images),):
        raise DataError(f"{where}: '{key}' (data.held_out_key) must be {len(images)} numbers 0 or 1, one per item")
    parts = [np.flatnonzero(held_out == value) for value in (0, 1)]
    if not all(map(len, parts)) or sum(map(len, parts)) < len(images):
        found = ", ".join(map(str, np.unique(held_out)[:5]))
        raise DataError(
            f"{where}: '{key}' (data.held_out_key) must be 0 (train) and 1 (held out), both there; found {found}"
        )
    return Split(images.subset(parts[0]), images.subset(parts[1]))


def load_array(config: DataConfig) -> Split[Images]:
    """All the items of a .npy or .npz file; held out are those that data.held_out_key says, else none.

    Raises:
        DataError: missing, damaged or empty file, unknown layout, values without a range, NaN, labels without a name.
        UnsafeError: see `read_arrays`.
    """
    items, labels, held_out = read_arrays(str(config.path), config.held_out_key)
    pattern = _pattern(config, items.shape)
    value_range, notes = _value_range(config, items)
    numbers, classes = (None, None) if labels is None else _classes(labels, len(items), config)
    images = Images.of(Stored(items, value_range, array_fingerprint(items), pattern), numbers, classes)
    split = Split(images) if held_out is None else _parted(images, held_out, config)
    return replace(split, notes=tuple(notes))
