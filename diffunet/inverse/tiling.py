"""A denoiser that sees one tile at a time and answers for images of any size.

The tiles overlap, and where they do their answers are averaged with weights that rise from each tile's rim, so that no
seam is left. It is a denoiser around a denoiser: methods and operators go on working on whole images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError

LARGEST = 256  # side that a network without attention sees by default


def default_tile(den: Any) -> int:
    """The side that a network may see at once: the trained one where it has attention, else up to 256.

    Attention compares all pixels with each other, and has learnt to do so at one size; convolutions have not.
    """
    config = getattr(getattr(den, "network", None), "config", None)
    trained = max(den.data.shape[1:], default=LARGEST) if getattr(den, "data", None) else LARGEST
    attends = bool(getattr(config, "attention_levels", ())) or getattr(config, "attention_in_mid", False)
    return trained if attends else max(trained, LARGEST)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover a side, each meeting the next in `overlap` pixels or more."""
    if side <= tile:
        return [0]
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def ramp(n: int, overlap: int, first: bool, last: bool) -> Tensor:
    """Weights (n,) in (0, 1] that rise over `overlap` pixels from an end at which another tile goes on."""
    place = torch.arange(n) + 0.5
    rise = torch.ones(n) if first else (place / max(overlap, 1)).clamp(max=1)
    fall = torch.ones(n) if last else ((n - place) / max(overlap, 1)).clamp(max=1)
    return rise * fall


class Tiled:
    """`den` on tiles of at most `tile` pixels a side.

    Args:
        den: a denoiser; what it has besides (classes, schedule, ...) is found here too.
        tile: largest side that it sees.
        overlap: pixels in which neighbours meet; a quarter of the tile if None.
        batch_size: tiles at once.

    Raises:
        ConfigError: an overlap that leaves a tile nothing of its own.
    """

    def __init__(self, den: Any, tile: int, overlap: int | None = None, batch_size: int = 16) -> None:
        self.den, self.tile, self.batch_size = den, tile, batch_size
        self.overlap = tile // 4 if overlap is None else overlap
        if not 0 <= self.overlap < tile:
            raise ConfigError(f"tiles of {tile} pixels cannot overlap by {self.overlap}; take 0 to {tile - 1}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.den, name)

    def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
        """x_0 estimated from x_t (B, C, *S) at t."""
        sides = x_t.shape[2:]
        if max(sides, default=0) <= self.tile:
            return self.den(x_t, t, **cond)
        corners = list(product(*(starts(side, self.tile, self.overlap) for side in sides)))
        total, weights = torch.zeros_like(x_t), torch.zeros(sides, dtype=x_t.dtype, device=x_t.device)
        at_once = max(1, self.batch_size // len(x_t))
        for begin in range(0, len(corners), at_once):
            places = [self._place(corner, sides) for corner in corners[begin : begin + at_once]]
            seen = torch.cat([x_t[:, :, *place] for place in places])
            answers = self.den(seen, t, **{name: self._cut(value, x_t, places) for name, value in cond.items()})
            for place, answer in zip(places, answers.chunk(len(places)), strict=True):
                weight = self._weight(place, sides).to(x_t)
                whole = torch.zeros_like(x_t)
                whole[:, :, *place] = answer * weight
                total = total + whole
                weights[place] += weight
        return total / weights

    def _place(self, corner: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
        return tuple(slice(at, min(at + self.tile, side)) for at, side in zip(corner, sides, strict=True))

    def _weight(self, place: Sequence[slice], sides: Sequence[int]) -> Tensor:
        weight = torch.ones(())
        for part, side in zip(place, sides, strict=True):
            ends = (part.start == 0, part.stop == side)
            weight = weight[..., None] * ramp(part.stop - part.start, self.overlap, *ends)
        return weight

    def _cut(self, value: Any, x_t: Tensor, places: Sequence[tuple[slice, ...]]) -> Any:
        """A condition for each tile: its part of one that is an image of this size, a copy of any other."""
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        spatial = value.ndim == x_t.ndim and value.shape[2:] == x_t.shape[2:]
        return torch.cat([value[:, :, *place] if spatial else value for place in places])
