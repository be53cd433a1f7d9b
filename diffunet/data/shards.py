"""Decoded images as a few large .npy files, written once and then read at any place.

A store is a folder: `part-0000.npy`, ... and a manifest, which is written anew after each part. So decoding that was
interrupted goes on behind the last whole part, and the manifest says what to believe: which files were decoded, how,
with which Pillow, which of them could not be, and the size, times and SHA-256 of each part.

Items are read with `pread` and not through a memory map. Both share the page cache between processes. But where a
mapped file is truncated, or its disk fails, the process dies of SIGBUS; here it is a DataError. It costs nothing: 3 KiB
take 1.7 microseconds (a copy out of a map 2.0), of about 80 that an item of 3x32x32 needs with its noise.

Legend: N items, C channels, H and W the sides of one image.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffunet.data.base import Listing, Place, Range, scale, shown
from diffunet.errors import DataError

HASHED = 2**30  # bytes of a store up to which it is hashed at every start; of a larger one, parts with other times


class Part:
    """One .npy file, held open while it is in use, so that a run outlives its removal. Pickles, for data workers."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    @cached_property
    def handle(self) -> int:
        """Its file descriptor.

        Raises:
            DataError: it is gone.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{shown(self.path)} cannot be opened ({error.strerror}); run the same command again"
            ) from None
        weakref.finalize(self, os.close, handle)
        return handle

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`; the position of the file is not used, so that processes may share the handle.

        Raises:
            DataError: the file became shorter, or its disk fails.
        """
        try:
            data = os.pread(self.handle, length, start)
        except OSError as error:
            raise DataError(f"{shown(self.path)} cannot be read: {error.strerror}; remove its folder") from None
        if len(data) != length:
            raise DataError(f"{shown(self.path)} became shorter while it was in use; run the same command again")
        return data

    def intact(self, known: dict[str, Any], hashed: bool) -> str | None:
        """What is wrong with it, or None. It is hashed where asked, or where its times are not those it was made at.

        Raises:
            DataError: it cannot be read.
        """
        status = os.stat(self.handle)
        if status.st_size != known["bytes"]:
            return f"it has {status.st_size} bytes instead of {known['bytes']}"
        if not hashed and known["times"] == [status.st_mtime_ns, status.st_ctime_ns]:
            return None
        return None if self.sha256() == known["sha256"] else "it does not match its SHA-256"

    def sha256(self) -> str:
        """SHA-256 (hex) of the whole file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Window:
    """The pixels (C, H, W) of one item, of which only the rows that are asked for are read."""

    part: Part
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        """The rows and columns (C', H', W') of three slices with step 1."""
        channels, height, width = self.shape
        top, bottom, _ = key[1].indices(height)
        row = width * self.dtype.itemsize
        rows = [
            self.part.read(self.start + (channel * height + top) * row, (bottom - top) * row)
            for channel in range(*key[0].indices(channels))
        ]
        block = np.frombuffer(b"".join(rows), self.dtype)
        return block.reshape(-1, bottom - top, width)[:, :, key[2]]  # rows as they lie in the file, no pattern to name


@dataclass(frozen=True, eq=False)
class Shards:
    """Items of a store, in order; all of one size, or (for data.crop) of any.

    Attributes:
        parts: its files.
        first: of each part, the number of its first item; rising from 0.
        starts: of each item, where in its part it begins.
        sides: (H, W) of each item, or one row for all.
    """

    parts: tuple[Part, ...] = field(repr=False)
    first: tuple[int, ...] = field(repr=False)
    starts: np.ndarray = field(repr=False)
    sides: np.ndarray = field(repr=False)
    channels: int
    dtype: np.dtype
    listing: Listing
    value_range: Range
    fingerprint: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) where all have one size."""
        return (self.channels, *map(int, self.sides[0]))

    def __len__(self) -> int:
        return len(self.starts)

    def pixels(self, i: int) -> Window:
        """Item i as it is stored."""
        sides = self.sides[i if len(self.sides) > 1 else 0]
        part = self.parts[bisect_right(self.first, i) - 1]
        return Window(part, int(self.starts[i]), (self.channels, *map(int, sides)), self.dtype)

    def read(self, i: int) -> np.ndarray:
        """Item i, float32 (C, H, W) in [-1, 1]."""
        part = self.parts[bisect_right(self.first, i) - 1]
        data = part.read(int(self.starts[i]), self._bytes)
        return scale(np.frombuffer(data, self.dtype).reshape(self.shape), self.value_range)  # as it lies in the file

    @cached_property
    def _bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def view(self, i: int, place: Place) -> np.ndarray:
        """The same."""
        return self.read(i)

    def name(self, i: int) -> str:
        """Path of the file that item i was decoded from."""
        return self.listing.path(i)


def opened_store(
    folder: Path, record: dict[str, Any], listing: Listing, value_range: Range, fingerprint: str
) -> Shards:
    """The items of a whole store; `listing` names the files that were decoded."""
    parts, channels, dtype = record["parts"], record["channels"], np.dtype(record["dtype"])
    sides = np.array(record["sides"], dtype=np.int64).reshape(-1, 2)
    counts = [part["items"] for part in parts]
    files = tuple(Part(str(folder / part["name"])) for part in parts)
    for file in files:
        file.handle  # noqa: B018  opened now: what is removed later stays readable
    sizes = np.prod(np.broadcast_to(sides, (sum(counts), 2)), axis=1) * channels * dtype.itemsize
    ends = np.cumsum(sizes)
    first = np.cumsum([0, *counts])[:-1]
    begins = [(ends - sizes)[i] - part["header"] for i, part in zip(first, parts, strict=True)]
    return Shards(
        parts=files,
        first=tuple(map(int, first)),
        starts=ends - sizes - np.repeat(begins, counts),
        sides=sides,
        channels=channels,
        dtype=dtype,
        listing=listing,
        value_range=value_range,
        fingerprint=fingerprint,
    )


def damage(folder: Path, parts: Sequence[dict[str, Any]]) -> str | None:
    """What is wrong with the first part that is not as it was written, or None."""
    hashed = sum(part["bytes"] for part in parts) <= HASHED
    for part in parts:
        try:
            wrong = Part(str(folder / part["name"])).intact(part, hashed)
        except (DataError, OSError):
            wrong = "it cannot be read"
        if wrong:
            return f"{part['name']}: {wrong}"
    return None
