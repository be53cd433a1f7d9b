"""Pairs of an image and a label picture, for segmentation: `PATH/image/NAME.*` and `PATH/label/NAME.*`, of any size.

The label values of the whole folder, in rising order, are the classes 0 .. K - 1. Pixels stay in memory as they are
stored; an image becomes float32 in [-1, 1] when it is asked for.
Legend: C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from diffunet.data.base import Listing, Range, Split, scale, shown
from diffunet.data.decode import Header, Plan, Unreadable, decode, decode_label, read_header
from diffunet.data.folder import Sieve, plan_of
from diffunet.data.scan import file_digest, fingerprint, scan
from diffunet.errors import DataError
from diffunet.spec import DataConfig

MOST = 16 * 2**30  # bytes of pixels, classes and pixel weights that are kept in memory
MOST_CLASSES = 256
_OTHER_BYTES = 1 + 4  # class and weight of a pixel


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images with their classes: `pairs.image(i)` is float32 (C, H, W) in [-1, 1], `pairs.classes_of(i)` (H, W) uint8.

    Attributes:
        names: of each image, below `image/`.
        pixels: (C, H, W) as stored, one array an image.
        labels: (H, W) uint8, the class of each pixel.
        values: the label value of each class.
        classes: the name of each class.
        value_range: the stored values that become -1 and 1.
        given_range: the same where the user gave it, else None: then it is each file's own full scale.
        seal: fingerprint of the whole folder.
        digests: of each image and its label.
    """

    names: tuple[str, ...]
    pixels: tuple[np.ndarray, ...] = field(repr=False)
    labels: tuple[np.ndarray, ...] = field(repr=False)
    values: tuple[int, ...]
    classes: tuple[str, ...]
    value_range: Range
    given_range: Range | None
    seal: str
    digests: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C,): the sides are each image's own."""
        return (self.pixels[0].shape[0],)

    @property
    def about(self) -> str:
        """What the pairs are, for people."""
        sides = sorted({p.shape[1:] for p in self.pixels})
        sizes = "x".join(map(str, sides[0])) if len(sides) == 1 else f"{len(sides)} sizes"
        named = ", ".join(f"{n} ({v})" for n, v in zip(self.classes, self.values, strict=True))
        return f"{self.shape[0]} channel(s), {sizes}, classes (label values) {named}"

    def image(self, i: int) -> np.ndarray:
        """Image i, float32 (C, H, W) in [-1, 1]."""
        return scale(self.pixels[i], self.value_range)

    def classes_of(self, i: int) -> np.ndarray:
        """The class of each pixel of image i, uint8 (H, W)."""
        return self.labels[i]

    def counts(self) -> np.ndarray:
        """Pixels of each class, (K,)."""
        return np.sum([np.bincount(label.reshape(-1), minlength=len(self.values)) for label in self.labels], axis=0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the folder, its classes, and the choice of images."""
        text = f"{self.seal}{self.values}{self.classes}{self.names}{self.value_range}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def files(self) -> dict[str, str]:
        """Name of each image -> digests of the image and its label."""
        return dict(zip(self.names, self.digests, strict=True))

    def subset(self, indices: np.ndarray) -> Pairs:
        """The pairs `indices` of these, in that order; shares the pixels."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            pixels=tuple(self.pixels[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            digests=tuple(self.digests[i] for i in chosen),
        )


def _matched(root: str) -> tuple[list[str], list[str], list[str]]:
    """Names of the images, of their labels (both below `root`), and notes.

    Raises:
        DataError: one of the two folders is missing or empty, or an image has no label, or two.
    """
    found: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for kind in ("image", "label"):
        folder = os.path.join(root, kind)
        if not os.path.isdir(folder):
            raise DataError(
                f"{shown(folder)} is no folder; data.name = 'pairs' reads data.path/image/NAME and data.path/label/NAME"
            )
        names, more = scan(folder)
        notes += more
        found[kind] = {os.path.splitext(name)[0]: name for name in names}
        if len(found[kind]) < len(names):
            raise DataError(f"{shown(folder)} holds two files of one name with different endings; keep one of them")
    images, labels = found["image"], found["label"]
    if missing := sorted(set(images) - set(labels)):
        first = ", ".join(shown(name) for name in missing[:3])
        raise DataError(
            f"{len(missing)} of {len(images)} images in {shown(root)} have no label: {first}; add or remove"
        )
    if spare := set(labels) - set(images):
        notes.append(f"left out {len(spare)} labels without an image; first: {shown(min(spare))}")
    stems = sorted(images, key=images.__getitem__)
    return [f"image/{images[stem]}" for stem in stems], [f"label/{labels[stem]}" for stem in stems], notes


def _read(image: str, label: str, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (C, H, W) and label values (H, W) of one pair.

    Raises:
        Unreadable: either file.
        DataError: they differ in size, or the label is none.
    """
    pixels = decode(image, plan)
    try:
        values = decode_label(label, plan.max_pixels)
    except Unreadable as error:
        raise Unreadable(f"its label {shown(label)}: {error}") from error
    if values.shape != pixels.shape[1:]:
        sizes = [" x ".join(map(str, shape)) for shape in (values.shape, pixels.shape[1:])]
        raise DataError(f"{shown(label)} is {sizes[0]} pixels (height x width), but its image is {sizes[1]}")
    return pixels, values


def _classes(config: DataConfig, values: list[np.ndarray]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The label values in rising order, and their names.

    Raises:
        DataError: fewer than two, more than 256, or another number than data.class_names.
    """
    found = tuple(int(v) for v in np.unique(np.concatenate([np.unique(v) for v in values])))
    shown_values = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    if not 2 <= len(found) <= MOST_CLASSES:
        raise DataError(f"the labels hold {len(found)} values ({shown_values}); 2 to {MOST_CLASSES} make classes")
    names = config.class_names or tuple(map(str, found))
    if len(names) != len(found):
        raise DataError(f"data.class_names has {len(names)} names for {len(found)} label values ({shown_values})")
    return found, names


def _check_memory(headers: list[Header], plan: Plan) -> None:
    pixels = sum(header.size[0] * header.size[1] for header in headers)
    need = pixels * (plan.channels * plan.dtype.itemsize + _OTHER_BYTES)
    if need > MOST:
        raise DataError(f"pairs are kept in memory, and these need {need / 1e9:.0f} GB (most: {MOST / 1e9:.0f})")


def load_pairs(config: DataConfig) -> Split[Pairs]:
    """All the pairs of a folder, without a held-out part.

    Raises:
        DataError: no folder, an image without label, sizes that differ, labels that are none, too many bad files.
    """
    root = str(config.path)
    images, labels, notes = _matched(root)
    names = (*images, *labels)
    listing = Listing(root, names, tuple(file_digest(os.path.join(root, name)) for name in names))
    seal, copies = fingerprint(listing)
    sieve = Sieve(config, len(images))
    paths = [listing.path(i) for i in range(len(images))]
    of = dict(zip(paths, (os.path.join(root, name) for name in labels), strict=True))
    digests = {path: f"{listing.digests[i]} {listing.digests[i + len(images)]}" for i, path in enumerate(paths)}
    headers: dict[str, Header] = {}
    for path in paths:
        header = sieve.attempt(lambda p: read_header(p, config.max_pixels), path)
        if header is not None:
            headers[path] = header
    sieve.check()
    plan = plan_of(config, listing.select([i for i, path in enumerate(paths) if path in headers]), [*headers.values()])
    _check_memory(list(headers.values()), plan)
    read = {path: sieve.attempt(lambda p: _read(p, of[p], plan), path) for path in headers}
    sieve.check()
    good = {path: pair for path, pair in read.items() if pair is not None}
    values, classes = _classes(config, [label for _, label in good.values()])
    pairs = Pairs(
        names=tuple(os.path.relpath(path, os.path.join(root, "image")) for path in good),
        pixels=tuple(pixels for pixels, _ in good.values()),
        labels=tuple(np.searchsorted(values, label).astype(np.uint8) for _, label in good.values()),
        values=values,
        classes=classes,
        value_range=plan.range,
        given_range=config.value_range,
        seal=seal,
        digests=tuple(digests[path] for path in good),
    )
    return Split(pairs, skipped=tuple(sieve.skipped), notes=(*notes, *copies))
