"""Operators that are one matrix a dimension: A = A_1 x ... x A_n (Kronecker), the same for every channel.

Each A_i = U_i S_i V_i^T is decomposed once, and A = (U_1 x ... x U_n)(S_1 x ... x S_n)(V_1 x ... x V_n)^T follows. A
matrix has any border and any odd side written into it, so that adjoint and inverse are exact there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from scipy import fft, ndimage
from torch import Tensor
from torch.nn import functional as F

from diffunet.inverse.operator import Operator, Spectrum
from diffunet.spec.inverse import (
    AverageOperator,
    BicubicOperator,
    GaussianBlurOperator,
    SensingOperator,
    UniformBlurOperator,
)

BORDERS = {"replicate": "nearest", "reflect": "mirror", "circular": "wrap"}  # ours -> scipy's


def along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each spatial dimension of x (B, C, *S) by its matrix (n', n)."""
    for dim, matrix in enumerate(matrices, start=2):
        x = torch.tensordot(x, matrix.to(x), dims=([dim], [1])).movedim(-1, dim)
    return x


class Separable(Operator):
    """The operator of given matrices (m_i, n_i), one for each spatial dimension, in float64."""

    def __init__(self, shape: Sequence[int], matrices: Sequence[Tensor]) -> None:
        self.matrices = list(matrices)
        self.shape, self.measured = tuple(shape), (shape[0], *(len(matrix) for matrix in matrices))

    def __call__(self, x: Tensor) -> Tensor:
        return along(x, self.matrices)

    def adjoint(self, y: Tensor) -> Tensor:
        return along(y, [matrix.T for matrix in self.matrices])

    @cached_property
    def _decomposed(self) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """The U_i^T, the singular values of A as a tensor of one value for each combination, and the V_i."""
        parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in self.matrices]
        product = torch.ones((), dtype=torch.float64)
        for _, s, _ in parts:
            product = product[..., None] * s
        return [u.T for u, _, _ in parts], product, [v.T for _, _, v in parts]

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        u, s, v = self._decomposed
        return along(f(s.to(y)) * along(y, u), v)


def blocks(n: int, scale: int) -> Tensor:
    """Matrix (ceil(n / scale), n) of means over blocks; the last block may be smaller."""
    places = torch.arange(n) // scale
    members = (places[None] == torch.arange(math.ceil(n / scale))[:, None]).double()
    return members / members.sum(dim=1, keepdim=True)


def shrinking(n: int, scale: int) -> Tensor:
    """Matrix (ceil(n / scale), n) of torch's antialiased bicubic interpolation along one dimension."""
    columns = torch.eye(n, dtype=torch.float64)[None, None]
    return F.interpolate(columns, size=(math.ceil(n / scale), n), mode="bicubic", antialias=True)[0, 0]


class Average(Separable):
    """Means over blocks of `scale` pixels a side."""

    def __init__(self, config: AverageOperator, shape: Sequence[int]) -> None:
        super().__init__(shape, [blocks(n, config.scale) for n in shape[1:]])


class Bicubic(Separable):
    """Smaller by `scale` with the antialiased bicubic kernel."""

    def __init__(self, config: BicubicOperator, shape: Sequence[int]) -> None:
        super().__init__(shape, [shrinking(n, config.scale) for n in shape[1:]])


class GaussianBlur(Separable):
    """Convolution with a Gaussian."""

    def __init__(self, config: GaussianBlurOperator, shape: Sequence[int]) -> None:
        mode = BORDERS[config.border]
        rows = [ndimage.gaussian_filter1d(np.eye(n), config.std, axis=0, mode=mode) for n in shape[1:]]
        super().__init__(shape, [torch.from_numpy(matrix) for matrix in rows])


class UniformBlur(Separable):
    """Mean over the `size` nearest pixels a side."""

    def __init__(self, config: UniformBlurOperator, shape: Sequence[int]) -> None:
        mode = BORDERS[config.border]
        rows = [ndimage.uniform_filter1d(np.eye(n), config.size, axis=0, mode=mode) for n in shape[1:]]
        super().__init__(shape, [torch.from_numpy(matrix) for matrix in rows])


class Sensing(Operator):
    """A = P C D: random signs D, an orthonormal cosine transform C of every channel, a random choice P; A A^T = I."""

    def __init__(self, config: SensingOperator, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        generator = torch.Generator().manual_seed(config.seed)
        places = torch.randperm(math.prod(self.shape), generator=generator)
        self.kept = places[: max(1, round(config.share * len(places)))]
        self.measured = (len(self.kept),)
        self.signs = torch.randint(0, 2, self.shape, generator=generator) * 2 - 1
        self.cosines = [torch.from_numpy(fft.dct(np.eye(n), axis=0, norm="ortho")) for n in self.shape[1:]]

    def __call__(self, x: Tensor) -> Tensor:
        return along(self.signs.to(x) * x, self.cosines).flatten(1)[:, self.kept.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(len(y), math.prod(self.shape))
        flat[:, self.kept.to(y.device)] = y
        return self.signs.to(y) * along(flat.view(-1, *self.shape), [matrix.T for matrix in self.cosines])

    def back(self, f: Spectrum, y: Tensor) -> Tensor:
        return f(y.new_ones(())) * self.adjoint(y)
