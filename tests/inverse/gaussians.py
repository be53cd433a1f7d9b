"""Images whose prior is a Gaussian of any covariance: the exact denoiser, and the exact posterior given y = A x + n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffunet.inverse import Operator
from diffunet.schedules import Schedule


class Correlated:
    """x_0 ~ N(mean, C) of images (1, d), one dimension; called as den(x_t, t) with x_t (B, 1, d) in float64."""

    def __init__(self, schedule: Schedule, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean, self.covariance = schedule, mean, covariance
        self.shape = (1, len(mean))

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x_0 | x_t] = m + a C (a^2 C + s^2 I)^-1 (x_t - a m)."""
        a, s = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        total = a**2 * self.covariance + s**2 * torch.eye(len(self.mean), dtype=torch.float64)
        gain = a * torch.linalg.solve(total, self.covariance)
        return self.mean + (x_t - a * self.mean) @ gain

    def posterior(self, operator: Operator, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of x_0 given y (1, *measured)."""
        A = matrix(operator)
        rows = A @ self.covariance @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64)
        gain = torch.linalg.lstsq(rows, A @ self.covariance, driver="gelsd").solution.T
        mean = self.mean + gain @ (y.flatten() - A @ self.mean)
        return mean, self.covariance - gain @ A @ self.covariance


class OneStream:
    """Noise of a whole batch from one generator: as many images as statistics need, quickly."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def like(self, x: Tensor) -> Tensor:
        """Unit noise shaped as x."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def matrix(operator: Operator) -> Tensor:
    """A as a matrix (M, N) in float64, column by column."""
    n = 1
    for side in operator.shape:
        n *= side
    columns = torch.eye(n, dtype=torch.float64).view(n, *operator.shape)
    return operator(columns).flatten(1).T


def smooth(d: int, length: float = 1.5, std: float = 0.5) -> Tensor:
    """Covariance (d, d) of neighbours that are alike: std^2 exp(-|i - j| / length)."""
    place = torch.arange(d, dtype=torch.float64)
    return std**2 * torch.exp(-(place[:, None] - place[None]).abs() / length)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of samples (B, 1, d)."""
    flat = x.flatten(1)
    return flat.mean(dim=0), torch.cov(flat.T)


SHAPES: Sequence[tuple[int, ...]] = ((3, 7, 9), (3, 6, 5))
