"""Square parts of larger images: what training sees of a folder whose images may all have other sizes.

Legend: C channels, H and W the sides of one image, `crop` the side of a part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from diffunet.data.base import Listing, Place, Range, scale


class Pixels(Protocol):
    """One image (C, H, W) that can be cut: an array, or pixels of which only the part asked for is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, part: tuple[slice, slice, slice], /) -> np.ndarray: ...


class Whole(Protocol):
    """Images of any size, as they are stored: `pixels(i)` is (C, H, W) in `value_range`."""

    @property
    def channels(self) -> int: ...
    @property
    def value_range(self) -> Range: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def listing(self) -> Listing | None: ...
    def __len__(self) -> int: ...
    def pixels(self, i: int) -> Pixels: ...
    def name(self, i: int) -> str: ...


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images of any size in memory, in the type they were decoded to (uint8 where 8 bits hold them)."""

    arrays: tuple[np.ndarray, ...] = field(repr=False)
    listing: Listing
    channels: int
    value_range: Range
    fingerprint: str

    def __len__(self) -> int:
        return len(self.arrays)

    def pixels(self, i: int) -> np.ndarray:
        """Image i, (C, H, W)."""
        return self.arrays[i]

    def name(self, i: int) -> str:
        """Its path."""
        return self.listing.path(i)


@dataclass(frozen=True, eq=False)
class Patches:
    """One square of side `crop` of each image: its centre by `read`, a uniformly placed one by `view`.

    Every image is at least `crop` high and wide (the folder has looked).
    """

    whole: Whole
    crop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.whole.channels, self.crop, self.crop)

    @property
    def value_range(self) -> Range:
        return self.whole.value_range

    @property
    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint} in parts of {self.crop}"

    @property
    def listing(self) -> Listing | None:
        return self.whole.listing

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, i: int) -> np.ndarray:
        """The centre of image i, float32 (C, crop, crop) in [-1, 1]; half a pixel up and left where it has to be."""
        pixels = self.whole.pixels(i)
        return self._part(pixels, *((side - self.crop) // 2 for side in pixels.shape[1:]))

    def view(self, i: int, place: Place) -> np.ndarray:
        """The part of image i that `place` draws: every position inside the image is as likely as any other."""
        pixels, random = self.whole.pixels(i), place()
        return self._part(pixels, *(int(random.integers(side - self.crop + 1)) for side in pixels.shape[1:]))

    def name(self, i: int) -> str:
        """Path of image i."""
        return self.whole.name(i)

    def _part(self, pixels: Pixels, top: int, left: int) -> np.ndarray:
        return scale(pixels[:, top : top + self.crop, left : left + self.crop], self.value_range)
