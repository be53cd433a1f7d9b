"""Images of any size through a network that sees one tile at a time, mirrored beyond their edges (1505.04597, fig. 2).

A network of valid convolutions answers for the middle of what it sees: its tiles overlap by what it loses, so that
tiling changes nothing. One that keeps the size answers for all of it, but near a tile's rim from padding: there the rim
is seen and not used, which is exact where the rim is as wide as the network's reach and no layer looks at the whole
tile (group norm and attention do).

Legend: B batch, C channels, *S sides. A side is that of the network's input; `loss` is how much smaller its output is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call


def mirrored(start: int, stop: int, n: int) -> Tensor:
    """Indices into 0..n-1 of the places start..stop-1 of a row that goes on mirrored at both ends for ever.

    The last one is not repeated: of 0 1 2 it goes on with 1 0 1 2 1 0.
    """
    period = max(1, 2 * (n - 1))
    place = torch.arange(start, stop) % period
    return torch.minimum(place, period - place) if n > 1 else place


def window(image: Tensor, starts: Sequence[int], sides: Sequence[int]) -> Tensor:
    """The part of an image (C, *S) that begins at `starts` (below 0 too) with `sides`; mirrored beyond the edges."""
    for dim, (start, side) in enumerate(zip(starts, sides, strict=True), start=1):
        places = mirrored(start, start + side, image.shape[dim])
        image = image.index_select(dim, places.to(image.device))
    return image


def stride(network: nn.Module) -> int:
    """How many pixels one step of the deepest level is: moving the input by so many moves the output alike."""
    return 2 ** (len(cast(Any, network).down) - 1)


def loss_of(network: nn.Module, side: int) -> int | None:
    """How much smaller than `side` the output is; None where nothing is left. Without computing anything."""
    weights = {name: value.to("meta") for name, value in network.state_dict().items()}
    config: Any = cast(Any, network).config
    x = torch.empty(1, config.in_channels, *[side] * config.dims, device="meta")
    try:
        # a compiled network would be compiled again for each side
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return side - int(functional_call(network, weights, (x,)).shape[-1])
    except ValueError:  # the network's own message: too small
        return None


@dataclass(frozen=True)
class Fit:
    """Which sides a network takes without padding of its own: `least + k * stride`, each losing `loss`."""

    least: int
    stride: int
    loss: int

    @property
    def valid(self) -> bool:
        """Whether the output is smaller than the input."""
        return self.loss > 0

    def up(self, side: int) -> int:
        """The least such side from `side` on."""
        return self.least + max(0, math.ceil((side - self.least) / self.stride)) * self.stride

    def down(self, side: int) -> int:
        """The greatest such side up to `side`; the least of all where none is so small."""
        return self.least + max(0, (side - self.least) // self.stride) * self.stride


def fit(network: nn.Module) -> Fit:
    """Find the sides that a network takes.

    Valid convolutions pad an odd side before a pool, and then lose less than they should and no longer evenly on both
    ends: of `stride` sides in a row exactly one loses most, and that one is exact.
    """
    step = stride(network)
    first = getattr(network, "smallest", 1)
    losses = {side: loss_of(network, side) for side in range(first, first + step)}
    most = max(loss for loss in losses.values() if loss is not None)
    if most == 0:  # any side will do; a tile of whole strides keeps the grids of all tiles in step
        return Fit(step, step, 0)
    return Fit(next(side for side, loss in losses.items() if loss == most), step, most)


def _plan(sides: Sequence[int], tile: int, rim: int, fits: Fit) -> tuple[list[int], list[int], list[int]]:
    """For each dimension the side of a tile, the margin that its output lacks, and the step from tile to tile."""
    tiles, margins, steps = [], [], []
    for side in sides:
        margin = fits.loss // 2 if fits.valid else -(-rim // fits.stride) * fits.stride
        whole = fits.up(side + 2 * margin)
        chosen = min(whole, max(fits.down(tile), fits.up(2 * margin + fits.stride)))
        tiles.append(chosen)
        margins.append(margin)
        # the next tile stands a whole number of strides further, so that every pool sees what it would in one big pass
        steps.append((chosen - 2 * margin) // fits.stride * fits.stride or fits.stride)
    return tiles, margins, steps


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def tiled(
    network: nn.Module, image: Tensor, tile: int, margin: int, batch_size: int = 1, fits: Fit | None = None
) -> Tensor:
    """The network's output for every pixel of one image, (C_out, *S), tile by tile.

    Args:
        network: maps (B, C, *S) to (B, C_out, *S'); in eval mode.
        image: (C, *S) of any size.
        tile: largest side that the network sees at once (rounded down to one that it takes; never below its least).
        margin: rim of a tile that is seen and not used, for networks that keep the size.
        batch_size: tiles at once.
        fits: what `fit(network)` found, where it is known.
    """
    fits = fits or fit(network)
    sides = image.shape[1:]
    tiles, margins, steps = _plan(sides, tile, margin, fits)
    places = product(*(range(0, side, step) for side, step in zip(sides, steps, strict=True)))
    result: Tensor | None = None
    for batch in _batches(places, batch_size):
        corners = [[at - m for at, m in zip(place, margins, strict=True)] for place in batch]
        seen = torch.stack([window(image, corner, tiles) for corner in corners])
        answers = network(seen)
        if result is None:
            result = answers.new_empty(answers.shape[1], *sides)
        rims = [0] * len(margins) if fits.valid else margins
        for place, answer in zip(batch, answers, strict=True):
            for dim, (at, step, rim, side) in enumerate(zip(place, steps, rims, sides, strict=True), start=1):
                answer = answer.narrow(dim, rim, min(step, side - at))
            region = tuple(slice(at, at + n) for at, n in zip(place, answer.shape[1:], strict=True))
            result[(slice(None), *region)] = answer
    assert result is not None, "an image has at least one pixel"
    return result
