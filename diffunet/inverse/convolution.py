"""Convolution with any kernel on images that go on at the other side: diagonal in the Fourier basis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.inverse.operator import Operator, Spectrum
from diffunet.spec.inverse import MotionBlurOperator


def spread(kernel: Tensor, sides: Sequence[int]) -> Tensor:
    """The kernel (*K) as an image (*S) with its middle at the origin, wrapped around."""
    image = torch.zeros(*sides, dtype=torch.float64)
    axes = [(torch.arange(k) - k // 2) % n for k, n in zip(kernel.shape, sides, strict=True)]
    places = torch.meshgrid(*axes, indexing="ij")
    return image.index_put(places, kernel.double(), accumulate=True)


class Convolution(Operator):
    """y = k * x, circular, the same for every channel; A^T is the correlation with k.

    Args:
        kernel: (*K), one dimension for each of the image.
        shape: (C, *S).

    Raises:
        ConfigError: a kernel of another number of dimensions.
    """

    def __init__(self, kernel: Tensor, shape: Sequence[int]) -> None:
        if kernel.ndim != len(shape) - 1:
            raise ConfigError(f"a kernel of {kernel.ndim} dimensions cannot blur images of shape {tuple(shape)}")
        self.shape = self.measured = tuple(shape)
        self.response = torch.fft.fftn(spread(kernel, shape[1:]))

    def _filtered(self, response: Tensor, x: Tensor) -> Tensor:
        """x (B, C, *S) with each frequency multiplied by its response."""
        dims = list(range(2, x.ndim))
        kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * response.to(x.device, kind), dim=dims).real

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(self.response, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(self.response.conj(), y)

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        size = self.response.abs()
        turn = torch.where(size > 0, self.response.conj() / torch.where(size > 0, size, 1.0), 1.0)
        return self._filtered(f(size.to(y)) * turn.to(y.device), y)


def line(length: float, angle: float) -> Tensor:
    """A kernel (k, k) of sum 1: a segment through the middle, drawn with bilinear weights."""
    reach = math.ceil(length / 2) + 1
    along = torch.linspace(-(length - 1) / 2, (length - 1) / 2, max(1, math.ceil(8 * length)), dtype=torch.float64)
    turn = math.radians(angle)
    place = torch.stack([-along * math.sin(turn), along * math.cos(turn)]) + reach  # rows go down, angles up
    low = place.floor()
    share = place - low
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        weight = torch.where(corner[:, None] == 1, share, 1 - share).prod(dim=0)
        row, column = low.long() + corner[:, None]
        kernel.index_put_((row, column), weight, accumulate=True)
    return kernel / kernel.sum()


class MotionBlur(Convolution):
    """Convolution with a straight line; pictures only.

    Raises:
        ConfigError: images that are not of two dimensions.
    """

    def __init__(self, config: MotionBlurOperator, shape: Sequence[int]) -> None:
        super().__init__(line(config.length, config.angle), shape)
