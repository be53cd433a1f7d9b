"""Operators that look at one pixel at a time: noise alone, missing pixels, lost colour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.inverse.operator import Operator, Spectrum
from diffunet.spec.inverse import GreyOperator, IdentityOperator, MaskOperator

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Identity(Operator):
    """A x = x."""

    def __init__(self, config: IdentityOperator, shape: Sequence[int]) -> None:
        self.shape = self.measured = tuple(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        return f(y.new_ones(())) * y


class Mask(Operator):
    """A x = m x with m in {0, 1}: a missing pixel is measured as 0, whatever y holds there.

    Args:
        config: how many pixels are known, where no mask is given.
        shape: (C, *S).
        known: (*S), (1, *S) or (C, *S), true or 1 where a pixel is known.

    Raises:
        ConfigError: a mask of another shape.
    """

    def __init__(self, config: MaskOperator, shape: Sequence[int], known: Tensor | None = None) -> None:
        self.shape = self.measured = tuple(shape)
        if known is None:
            generator = torch.Generator().manual_seed(config.seed)
            known = torch.rand(self.shape[1:], generator=generator) < config.known
        if known.shape not in {self.shape, self.shape[1:], (1, *self.shape[1:])}:
            raise ConfigError(f"a mask of shape {tuple(known.shape)} does not fit images of shape {self.shape}")
        self.known = known.bool().expand(self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.known.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        return f(y.new_ones(())) * self(y)

    def guess(self, y: Tensor) -> Tensor:
        """Each missing pixel as the nearest known one; grey where none is."""
        result = self(y)
        for channel, known in enumerate(self.known):
            if known.any() and not known.all():
                places = ndimage.distance_transform_edt(~known.numpy(), return_distances=False, return_indices=True)
                result[:, channel] = result[:, channel][:, *torch.from_numpy(places).to(y.device).long()]
        return result


class Grey(Operator):
    """A x = 0.299 R + 0.587 G + 0.114 B.

    Raises:
        ConfigError: images without three channels.
    """

    def __init__(self, config: GreyOperator, shape: Sequence[int]) -> None:
        if shape[0] != 3:
            raise ConfigError(f"operator 'grey' needs images of 3 channels, not {shape[0]}")
        self.shape, self.measured = tuple(shape), (1, *shape[1:])

    def _weights(self, like: Tensor) -> Tensor:
        return torch.tensor(LUMA, dtype=torch.float64).to(like).view(3, *[1] * (len(self.shape) - 1))

    def __call__(self, x: Tensor) -> Tensor:
        return (self._weights(x) * x).sum(dim=1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        size = self._weights(y).norm()
        return f(size) / size * self.adjoint(y)

    def guess(self, y: Tensor) -> Tensor:
        """Every channel as the grey value."""
        return y.expand(-1, *self.shape).clone()
