"""A folder of images: decoded once, into the cache or into memory; item by item where neither can hold them.

`scan` says which files count, `index` what is known of each, `labels` their classes, `decode` how one file becomes an
array, and `store` keeps the arrays for other runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from diffunet.data.base import BadFile, Images, Listing, Place, Range, Source, Split, Stored, scale, shown
from diffunet.data.bulk import decode_many
from diffunet.data.cache import Cache, cache_of
from diffunet.data.decode import Header, Plan, Unreadable, decode, other_size
from diffunet.data.index import facts_of
from diffunet.data.labels import labels_of
from diffunet.data.patches import Decoded, Patches
from diffunet.data.scan import fingerprint, survey
from diffunet.data.shards import Shards
from diffunet.data.store import Request, stored
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig

IN_MEMORY = 2 * 2**30  # bytes of decoded pixels that are kept in memory where no cache holds them
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Files:
    """Images decoded when they are asked for."""

    listing: Listing
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
        return len(self.listing)

    def read(self, i: int) -> np.ndarray:
        return scale(self.pixels(i), self.plan.range)

    def view(self, i: int, place: Place) -> np.ndarray:
        return self.read(i)

    def pixels(self, i: int) -> np.ndarray:
        """Raises DataError where the file cannot be decoded (only its header was read when the run began)."""
        try:
            return decode(self.name(i), self.plan)
        except Unreadable as error:
            raise DataError(f"{shown(self.name(i))} cannot be read: {error}; mend or remove it") from error

    def name(self, i: int) -> str:
        return self.listing.path(i)


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
            self.leave_out(path, str(error))
            return None

    def judge(self, path: str, reason: str) -> None:
        """Raise DataError where a bad file ends the run."""
        if self.config.bad_files == "fail":
            raise DataError(f"{shown(path)} cannot be read: {reason}; mend it or set data.bad_files = 'skip'")

    def leave_out(self, path: str, reason: str) -> None:
        """Enter a bad file in the list, unless it ends the run."""
        self.judge(path, reason)
        self.skipped.append(BadFile(path, reason))

    def check(self) -> None:
        """Raise DataError where too many files are bad, or all of them."""
        bad, cap = len(self.skipped), self.config.bad_files_cap
        if bad > cap * self.total or bad == self.total:
            first = "; ".join(f"{shown(file.path)}: {file.reason}" for file in self.skipped[:3])
            raise DataError(
                f"{bad} of {self.total} images cannot be read (data.bad_files_cap = {cap:g}); "
                f"mend or remove them; the first: {first}"
            )


def plan_of(config: DataConfig, listing: Listing, headers: list[Header]) -> Plan:
    """What the config and the headers say together about every file; without data.size, of any size.

    Channels: data.channels, else 1 where every header says grey and 3 otherwise.
    """
    if config.channels not in (None, 1, 3):
        raise ConfigError(f"data.channels = {config.channels}, but a folder of images is read as 1 (grey) or 3 (RGB)")
    scales = [header.full_scale for header in headers]
    if None in scales and config.value_range is None:
        path = shown(listing.path(scales.index(None)))
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


def _common_size(listing: Listing, headers: list[Header], plan: Plan) -> tuple[int, int] | None:
    """(height, width) of the first image that decodes; None where none does, which the sieve then reports.

    The headers are compared now, in seconds, as far as they can be: EXIF may still swap height and width.
    """
    for i in range(len(listing)):
        try:
            height, width = decode(listing.path(i), plan).shape[1:]
        except Unreadable:
            continue
        for other, header in enumerate(headers):
            if sorted(header.size) != sorted((width, height)):
                raise DataError(other_size(listing.path(other), header.size[::-1], (height, width)))
        return height, width
    return None


@dataclass(frozen=True)
class Decoding:
    """How the images of a folder are decoded, and where the result is kept.

    Attributes:
        cache: or None, where nothing is kept.
        sieve: takes the files that cannot be decoded.
        notes: takes remarks for people.
    """

    cache: Cache | None
    sieve: Sieve
    notes: list[str]

    def kept(self, request: Request) -> Shards | None:
        """The images of a request out of the cache; None where it has none, or they are not worth it."""
        if self.cache is None or not (self.cache.asked or request.costly or request.need > IN_MEMORY):
            return None
        found = stored(
            self.cache, request, lambda i, reason: self.sieve.judge(request.listing.path(i), reason), self.notes
        )
        if found is None:
            return None
        shards, bad = found
        for i, reason in bad:
            self.sieve.leave_out(request.listing.path(i), reason)
        return shards

    def decoded(self, request: Request) -> Iterator[tuple[int, np.ndarray]]:
        """Every image that decodes, (C, H, W), and its number in the request."""
        listing = request.listing
        paths = [listing.path(i) for i in range(len(listing))]
        with closing(decode_many(paths, request.pixels, request.plan)) as images:
            for i, image in enumerate(images):
                if isinstance(image, Unreadable):
                    self.sieve.leave_out(paths[i], str(image))
                else:
                    yield i, image

    def same_size(self, request: Request) -> Source:
        """Images that are all of one size."""
        if (shards := self.kept(request)) is not None:
            return shards
        listing, plan = request.listing, request.plan
        if request.need > IN_MEMORY:
            return Files(listing, plan, request.seal)
        pixels = np.empty((len(listing), plan.channels, *(plan.size or (0, 0))), plan.dtype)
        good: list[int] = []
        for i, image in self.decoded(request):
            pixels[len(good)] = image
            good.append(i)
        return Stored(pixels[: len(good)], plan.range, request.seal, listing=listing.select(good))

    def patches(self, request: Request, crop: int) -> Source:
        """Parts of side `crop` of images of any size."""
        if (shards := self.kept(request)) is not None:
            return Patches(shards, crop)
        listing, plan = request.listing, request.plan
        if request.need > IN_MEMORY:
            return Patches(Files(listing, plan, request.seal), crop)
        arrays = dict(self.decoded(request))
        chosen = listing.select(list(arrays))
        return Patches(Decoded(tuple(arrays.values()), chosen, plan.channels, plan.range, request.seal), crop)


def _check_crop(crop: int, listing: Listing, headers: list[Header]) -> None:
    for i, header in enumerate(headers):
        if min(header.size) < crop:
            raise DataError(
                f"{shown(listing.path(i))} is {header.size[1]} x {header.size[0]} pixels (height x width), too small "
                f"for data.crop = {crop}; lower it, or take the image out"
            )


def _source(config: DataConfig, listing: Listing, headers: list[Header], seal: str, way: Decoding) -> Source:
    """The images of files whose headers could be read."""
    plan = plan_of(config, listing, headers)
    pixels = [header.size[0] * header.size[1] for header in headers]
    if config.crop is not None:
        _check_crop(config.crop, listing, headers)
        return way.patches(Request(listing, pixels, plan, seal), config.crop)
    plan = plan if plan.resize else replace(plan, size=_common_size(listing, headers, plan))
    return way.same_size(Request(listing, pixels, plan, seal))


def _frames_notes(listing: Listing, headers: list[Header]) -> list[str]:
    """One line for each format in which some file has several frames."""
    several: dict[str, list[int]] = {}
    for i, header in enumerate(headers):
        if header.frames:
            several.setdefault(header.format, []).append(i)
    return [
        f"the first frame is used of {len(files)} {name} files with several; first: {shown(listing.path(files[0]))}"
        for name, files in several.items()
    ]


def load_folder(config: DataConfig) -> Split[Images]:
    """All the images of a folder, without a held-out part.

    Raises:
        DataError: no folder, no image, too many bad files, several sizes without data.size or data.crop, an image
            smaller than data.crop, values without a range.
    """
    root, cache = str(config.path), cache_of(config)
    found, notes = survey(root)
    facts, more = facts_of(root, found, config.max_pixels, cache)
    notes += more
    everything = Listing(root, tuple(file.name for file in found), tuple(fact.digest for fact in facts))
    labels, classes, more = labels_of(config, everything.names)
    notes += more
    seal, more = fingerprint(everything)
    notes += more
    sieve = Sieve(config, len(found))
    for i, fact in enumerate(facts):
        if fact.header is None:
            sieve.leave_out(everything.path(i), fact.reason)
    sieve.check()
    listing = everything.select([i for i, fact in enumerate(facts) if fact.header])
    headers = [fact.header for fact in facts if fact.header]
    source = _source(config, listing, headers, seal, Decoding(cache, sieve, notes))
    sieve.check()
    used = source.listing
    assert used is not None, "what is read from files has a listing"
    skipped = tuple(sorted(sieve.skipped, key=lambda bad: bad.path))
    images = Images.of(source, None if labels is None else np.array([labels[name] for name in used.names]), classes)
    return Split(images, skipped=skipped, notes=(*notes, *_frames_notes(listing, headers)))
