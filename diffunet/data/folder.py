"""A folder of images: decoded once into one array where that fits, item by item where it does not.

`scan` says which files count and what their classes are, `decode` how one file becomes an array.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from diffunet.data.base import BadFile, Images, Place, Range, Source, Split, Stored, scale, shown
from diffunet.data.decode import Header, Plan, Unreadable, decode, other_size, read_header
from diffunet.data.patches import Decoded, Patches
from diffunet.data.scan import fingerprint, label, scan
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig

IN_MEMORY = 2 * 2**30  # bytes of decoded pixels; a larger folder is decoded item by item
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Files:
    """Images decoded when they are asked for."""

    names: tuple[str, ...] = field(repr=False)
    plan: Plan
    fingerprint: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.plan.channels, *(self.plan.size or ()))

    @property
    def channels(self) -> int:
        return self.plan.channels

    @property
    def value_range(self) -> Range:
        return self.plan.range

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> np.ndarray:
        return scale(self.pixels(i), self.plan.range)

    def view(self, i: int, place: Place) -> np.ndarray:
        return self.read(i)

    def pixels(self, i: int) -> np.ndarray:
        """Raises DataError where the file cannot be decoded (only its header was read when the run began)."""
        try:
            return decode(self.names[i], self.plan)
        except Unreadable as error:
            raise DataError(f"{shown(self.names[i])} cannot be read: {error}; mend or remove it") from error

    def name(self, i: int) -> str:
        return self.names[i]


class Sieve:
    """Keeps the list of bad files and enforces data.bad_files and data.bad_files_cap."""

    def __init__(self, config: DataConfig, total: int) -> None:
        self.config, self.total = config, total
        self.skipped: list[BadFile] = []

    def attempt(self, read: Callable[[str], T], path: str) -> T | None:
        """The result of `read(path)`, or None for a bad file."""
        try:
            return read(path)
        except Unreadable as error:
            if self.config.bad_files == "fail":
                raise DataError(
                    f"{shown(path)} cannot be read: {error}; mend it or set data.bad_files = 'skip'"
                ) from error
            self.skipped.append(BadFile(path, str(error)))
            return None

    def check(self) -> None:
        """Raise DataError where too many files are bad, or all of them."""
        bad, cap = len(self.skipped), self.config.bad_files_cap
        if bad > cap * self.total or bad == self.total:
            first = "; ".join(f"{shown(file.path)}: {file.reason}" for file in self.skipped[:3])
            raise DataError(
                f"{bad} of {self.total} images cannot be read (data.bad_files_cap = {cap:g}); "
                f"mend or remove them; the first: {first}"
            )


def plan_of(config: DataConfig, paths: list[str], headers: list[Header]) -> Plan:
    """What the config and the headers say together about every file; without data.size, of any size.

    Channels: data.channels, else 1 where every header says grey and 3 otherwise.
    """
    if config.channels not in (None, 1, 3):
        raise ConfigError(f"data.channels = {config.channels}, but a folder of images is read as 1 (grey) or 3 (RGB)")
    scales = [header.full_scale for header in headers]
    if None in scales and config.value_range is None:
        path = shown(paths[scales.index(None)])
        raise DataError(f"{path} holds 32-bit integers; say which become -1 and 1: data.value_range = [low, high]")
    side = config.size
    height, width = (side, side) if isinstance(side, int) else side or (0, 0)
    return Plan(
        channels=config.channels or (1 if all(header.grey for header in headers) else 3),
        size=(height, width) if side else None,
        resize=side is not None,
        background=config.background,
        max_pixels=config.max_pixels,
        full_scale=max((s for s in scales if s is not None), default=1.0),
        value_range=config.value_range,
        deep=any(s != 255.0 for s in scales),
    )


def _common_size(paths: list[str], headers: list[Header], plan: Plan) -> tuple[int, int] | None:
    """(height, width) of the first image that decodes; None where none does, which the sieve then reports.

    The headers are compared now, in seconds, as far as they can be: EXIF may still swap height and width.
    """
    for path in paths:
        try:
            height, width = decode(path, plan).shape[1:]
        except Unreadable:
            continue
        for other, header in zip(paths, headers, strict=True):
            if sorted(header.size) != sorted((width, height)):
                raise DataError(other_size(other, header.size[::-1], (height, width)))
        return height, width
    return None


def _decode_all(paths: list[str], plan: Plan, sieve: Sieve) -> tuple[np.ndarray, list[int]]:
    """Every image that decodes, (N, C, H, W), and the positions of those in `paths`."""
    pixels = np.empty((len(paths), plan.channels, *(plan.size or (0, 0))), plan.dtype)
    good: list[int] = []
    for i, path in enumerate(paths):
        image = sieve.attempt(partial(decode, plan=plan), path)
        if image is not None:
            pixels[len(good)] = image
            good.append(i)
    return pixels[: len(good)], good


def _same_size(
    config: DataConfig, paths: list[str], headers: list[Header], plan: Plan, seal: str, sieve: Sieve
) -> tuple[Source, list[int]]:
    """Images that are all of one size, and the positions of those in `paths`."""
    plan = plan if plan.resize else replace(plan, size=_common_size(paths, headers, plan))
    files = Files(tuple(paths), plan, seal)
    if len(paths) * int(np.prod(files.shape)) * plan.dtype.itemsize > IN_MEMORY:
        return files, list(range(len(paths)))
    pixels, good = _decode_all(paths, plan, sieve)
    return Stored(pixels, plan.range, seal, names=tuple(paths[i] for i in good)), good


def _patches(
    config: DataConfig, paths: list[str], headers: list[Header], plan: Plan, seal: str, sieve: Sieve
) -> tuple[Source, list[int]]:
    """Parts of side data.crop of images of any size, and the positions of those in `paths`."""
    crop = config.crop or 0
    for path, header in zip(paths, headers, strict=True):
        if min(header.size) < crop:
            raise DataError(
                f"{shown(path)} is {header.size[1]} x {header.size[0]} pixels (height x width), too small for "
                f"data.crop = {crop}; lower it, or take the image out"
            )
    values = sum(plan.channels * header.size[0] * header.size[1] for header in headers)
    if values * plan.dtype.itemsize > IN_MEMORY:
        return Patches(Files(tuple(paths), plan, seal), crop), list(range(len(paths)))
    arrays = {
        i: image
        for i, path in enumerate(paths)
        if (image := sieve.attempt(partial(decode, plan=plan), path)) is not None
    }
    whole = Decoded(tuple(arrays.values()), tuple(paths[i] for i in arrays), plan.channels, plan.range, seal)
    return Patches(whole, crop), list(arrays)


def _frames_notes(headers: list[Header], paths: list[str]) -> list[str]:
    """One line for each format in which some file has several frames."""
    several: dict[str, list[str]] = {}
    for header, path in zip(headers, paths, strict=True):
        if header.frames:
            several.setdefault(header.format, []).append(path)
    return [
        f"the first frame is used of {len(files)} {name} files with several; first: {shown(files[0])}"
        for name, files in several.items()
    ]


def load_folder(config: DataConfig) -> Split[Images]:
    """All the images of a folder, without a held-out part.

    Raises:
        DataError: no folder, no image, too many bad files, several sizes without data.size or data.crop, an image
            smaller than data.crop, values without a range.
    """
    root = str(config.path)
    names, notes = scan(root)
    labels, classes, more = label(names, root)
    seal, copies = fingerprint(root, names)
    everything = [os.path.join(root, name) for name in names]
    sieve = Sieve(config, len(names))
    read = [sieve.attempt(partial(read_header, max_pixels=config.max_pixels), path) for path in everything]
    sieve.check()
    kept = [i for i, header in enumerate(read) if header is not None]
    paths, headers = [everything[i] for i in kept], [header for header in read if header is not None]
    plan = plan_of(config, paths, headers)
    source, good = (_patches if config.crop else _same_size)(config, paths, headers, plan, seal, sieve)
    sieve.check()
    kept = [kept[i] for i in good]
    images = Images.of(source, None if labels is None else labels[kept], classes)
    skipped = tuple(sorted(sieve.skipped, key=lambda bad: bad.path))
    return Split(images, skipped=skipped, notes=(*notes, *more, *copies, *_frames_notes(headers, paths)))
