"""What both ways to a likelihood share: their result, bins of time, grey values, and draws that are an image's own.

Legend: N images of d values each, C channels, *S sides; levels L: how many values a grey value can have, evenly spaced
on [-1, 1], 2 / (L - 1) apart; None for continuous data. Bits are per dimension, that is divided by d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.posterior import discretized_log_likelihood
from diffunet.samplers import Noise

BINS = 10
LOG2 = math.log(2)


class Likelihood(NamedTuple):
    """-log2 p of each image in bits per dimension, and what it is the sum of.

    bits: (N,). parts: (N,) each, by name, from data to noise; those of a time say what its tenth of [0, 1] adds.
    """

    bits: Tensor
    parts: dict[str, Tensor]

    @property
    def mean(self) -> float:
        """Bits per dimension of the data set."""
        return float(self.bits.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean, over images (and the noise that each was measured with)."""
        return float(self.bits.std() / len(self.bits) ** 0.5) if len(self.bits) > 1 else math.nan

    @classmethod
    def of(cls, parts: Mapping[str, Tensor]) -> Likelihood:
        """The sum of parts."""
        return cls(torch.stack(list(parts.values())).sum(dim=0), dict(parts))

    @classmethod
    def cat(cls, batches: Sequence[Likelihood]) -> Likelihood:
        """Batches one behind the other."""
        names = batches[0].parts
        return cls(torch.cat([b.bits for b in batches]), {n: torch.cat([b.parts[n] for b in batches]) for n in names})


def bin_name(b: int) -> str:
    """What the contribution of one tenth of time is called."""
    return f"t {b / BINS:.1f}-{(b + 1) / BINS:.1f}"


def bin_of(t: float | Tensor) -> Any:
    """The tenth of (0, 1] that a time lies in, 0 to 9; a time on a border belongs to the earlier one."""
    if isinstance(t, Tensor):
        return (t * BINS - 1e-9).floor().clamp(0, BINS - 1).long()
    return min(max(math.floor(t * BINS - 1e-9), 0), BINS - 1)


def per_dimension(nats: Tensor) -> Tensor:
    """Nats of each value (N, C, *S) as bits per dimension (N,)."""
    return nats.double().flatten(1).mean(dim=1) / LOG2


def check(x0: Tensor, levels: int | None) -> None:
    """Refuse images that are not what they are said to be.

    Raises:
        ConfigError: values that are not grey values of `levels`, or no images.
    """
    if len(x0) == 0:
        raise ConfigError("0 images have no likelihood: give one or more")
    if levels is None:
        return
    if levels < 2:
        raise ConfigError(f"levels = {levels} but grey values have 2 or more")
    places = (x0.double() + 1) / 2 * (levels - 1)
    off = float((places - places.round()).abs().max())
    if off > 0.05 or not -0.05 <= float(places.min()) <= float(places.max()) <= levels - 0.95:
        raise ConfigError(
            f"the images are not made of {levels} values from -1 to 1, 2 / {levels - 1} apart; set levels to their "
            "number, or to None where they are continuous"
        )


def decode(x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int | None) -> Tensor:
    """-log p(x0) under N(mean, exp(log_variance)) in bits per dimension (N,).

    A density where `levels` is None, else the mass on each grey value's bin, of which the outer two own the tails
    (2006.11239, eq. 13).
    """
    if levels is None:
        gaussian = (x0 - mean) ** 2 * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi)
        return per_dimension(gaussian / 2)
    return per_dimension(-discretized_log_likelihood(x0, mean, log_variance, 1 / (levels - 1)))


class Batch(NamedTuple):
    """Some of the images, their conditions, and their own random draws."""

    x0: Tensor
    cond: dict[str, Any]
    noise: Noise


def batches(x0: Tensor, cond: Mapping[str, Any], seed: int, size: int) -> Iterator[Batch]:
    """Rows of images and of conditions; image i draws from seed + i, whatever its batch."""
    for first in range(0, len(x0), size):
        rows = slice(first, first + size)
        part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in cond.items()}
        images = x0[rows]
        yield Batch(images.double(), part, Noise(range(seed + first, seed + first + len(images))))


def uniform(noise: Noise, shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform draws in [0, 1) of each image, (N, *shape) in float64."""
    rows = [torch.rand(tuple(shape), generator=g, dtype=torch.float64) for g in noise.generators]
    return torch.stack(rows).to(device)
