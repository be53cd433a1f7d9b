"""What a data set is to the rest of diffunet: numbered images in [-1, 1], with labels where there are any.

`Images` chooses items of a `Source` (an array, a .npy file, a folder), so that a split copies no pixel.
Legend: N items, C channels, *S sides (one to three of them).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
from einops import rearrange

from diffunet.errors import DataError

Range = tuple[float, float]
Place = Callable[[], np.random.Generator]  # makes the generator that places a part; called only where one is placed
_BLOCK = 2**24  # bytes read at a time where a whole array is looked through
_HASHED = 2**30  # bytes of an array up to which every item goes into its fingerprint


def shown(path: str | os.PathLike[str]) -> str:
    """A path fit for a message: as it is, or quoted and escaped where it holds a newline or no valid text."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def scale(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Map `value_range` onto [-1, 1] exactly at both ends, as contiguous float32; values outside are clipped."""
    low, high = value_range
    exact: type[np.floating] = np.float32 if values.dtype.itemsize <= 2 else np.float64
    numbers: np.ndarray = values.astype(exact)
    centred = (numbers - low) / ((high - low) / 2) - 1
    return np.ascontiguousarray(np.clip(centred, -1, 1), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Listing:
    """The files that items come from, in order: names below `root` (with /), and a digest of the bytes of each."""

    root: str
    names: tuple[str, ...] = field(repr=False)
    digests: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """Where file i is."""
        return os.path.join(self.root, self.names[i])

    def select(self, indices: Sequence[int]) -> Listing:
        """The files `indices` of these, in that order."""
        names, digests = (tuple(values[i] for i in indices) for values in (self.names, self.digests))
        return Listing(self.root, names, digests)


class Source(Protocol):
    """Where items come from. `read(i)` is float32 (C, *S) in [-1, 1]; sources pickle, for data workers.

    `view(i, place)` is what training sees of item i: the same, or a part that `place` puts somewhere. `listing` has one
    file for each item, or is None where items are no files.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def value_range(self) -> Range: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def listing(self) -> Listing | None: ...
    def __len__(self) -> int: ...
    def read(self, i: int) -> np.ndarray: ...
    def view(self, i: int, place: Place) -> np.ndarray: ...
    def name(self, i: int) -> str: ...


class NpyFile:
    """Items of a .npy file in C order, read when they are asked for, so that the file may be larger than the memory.

    Not a memory map: where another program shortens a mapped file, the process dies of SIGBUS; here it is a DataError.
    """

    def __init__(self, path: str, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> None:
        self.path, self.dtype, self.shape, self.offset = path, dtype, shape, offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> np.ndarray:
        start, stop = (key, key + 1) if isinstance(key, int) else key.indices(len(self))[:2]
        items = int(np.prod(self.shape[1:]))
        offset = self.offset + start * items * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, count=(stop - start) * items, offset=offset)
        if values.size != (stop - start) * items:
            raise DataError(f"{shown(self.path)} became shorter while it was in use; item {start} is missing")
        block = values.reshape(stop - start, *self.shape[1:])  # a .npy file is C order: a view, no pattern to name
        return block[0] if isinstance(key, int) else block


def blocks(array: np.ndarray | NpyFile, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Look through an array with little memory: (index of the first item, about 16 MiB of items), `every`-th block."""
    size = int(np.prod(array.shape[1:])) * array.dtype.itemsize
    count = max(1, _BLOCK // max(1, size))
    for start in range(0, len(array), count * every):
        yield start, array[start : start + count]


def array_fingerprint(array: np.ndarray | NpyFile) -> str:
    """SHA-256 of type, shape and values. Above 1 GiB only every k-th 16 MiB are read, so that about 1 GiB is."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    every = 1 + int(np.prod(array.shape)) * array.dtype.itemsize // _HASHED
    for _, block in blocks(array, every):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Stored:
    """Items of an array (N, ...) in memory or of a .npy file; `pattern` is einops' way from one item to (C, *S)."""

    array: np.ndarray | NpyFile
    value_range: Range
    fingerprint: str
    pattern: str = "c ... -> c ..."
    listing: Listing | None = field(default=None, repr=False)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.read(0).shape

    def __len__(self) -> int:
        return len(self.array)

    def read(self, i: int) -> np.ndarray:
        return scale(rearrange(self.array[i], self.pattern), self.value_range)

    def view(self, i: int, place: Place) -> np.ndarray:
        return self.read(i)

    def name(self, i: int) -> str:
        return self.listing.path(i) if self.listing else str(i)


@dataclass(frozen=True, eq=False)
class Images:
    """Some items of a source: `images[i]` is contiguous float32 (C, *S) in [-1, 1].

    Attributes:
        source: where the pixels are.
        indices: which of its items these are, in order.
        labels: int64, one per item of `indices`, or None.
        classes: name of each label, or None.
    """

    source: Source
    indices: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, source: Source, labels: np.ndarray | None = None, classes: Sequence[str] | None = None) -> Images:
        """All the items of a source."""
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        return cls(source, np.arange(len(source)), labels, None if classes is None else tuple(classes))

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        value_range: Range,
        labels: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
    ) -> Images:
        """An array (N, C, *S) of any real type, kept as it is; `value_range` becomes [-1, 1] item by item."""
        return cls.of(Stored(array, value_range, array_fingerprint(array)), labels, classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of every item."""
        return self.source.shape

    @property
    def value_range(self) -> Range:
        """The stored values that become -1 and 1."""
        return self.source.value_range

    @property
    def about(self) -> str:
        """What the items are, for people: `1x28x28`."""
        return "x".join(map(str, self.shape))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the data, its labels and the choice of items: changes where any of them does."""
        digest = hashlib.sha256(f"{self.source.fingerprint}{self.classes}".encode("utf-8", "surrogateescape"))
        for part in (self.indices, self.labels):
            digest.update(b"-" if part is None else np.ascontiguousarray(part, dtype="<i8").data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.source.read(int(self.indices[i]))

    def view(self, i: int, place: Place) -> np.ndarray:
        """What training sees of item i, float32 (C, *S): all of it, or with data.crop a part placed by `place()`."""
        return self.source.view(int(self.indices[i]), place)

    @property
    def files(self) -> dict[str, str] | None:
        """Name of each item's file -> digest of its bytes and its class; None where the items are no files."""
        listing = self.source.listing
        if listing is None:
            return None
        labels = ["" if self.labels is None else f" in class {label}" for label in self._class_names()]
        return {listing.names[i]: listing.digests[i] + label for i, label in zip(self.indices, labels, strict=True)}

    def _class_names(self) -> list[str]:
        numbers = [0] * len(self) if self.labels is None else self.labels.tolist()
        return [self.classes[number] if self.classes else str(number) for number in numbers]

    def name_of(self, i: int) -> str:
        """Path or number of item i in its source, for messages."""
        return self.source.name(int(self.indices[i]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Images:
        """The items `indices` of these, in that order; shares the pixels."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Images(self.source, self.indices[chosen], labels, self.classes)


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, and why."""

    path: str
    reason: str


class Dataset(Protocol):
    """What every data set can be asked: its length, its shape, what it holds in a few words, and for a part of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def about(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def files(self) -> dict[str, str] | None: ...
    def __len__(self) -> int: ...
    def subset(self, indices: np.ndarray) -> Dataset: ...


D = TypeVar("D", bound=Dataset)


@dataclass(frozen=True, eq=False)
class Split(Generic[D]):
    """A loaded data set. `notes` are remarks for people (what was left out, which frames were used), one line each."""

    train: D
    held_out: D | None = None
    skipped: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
