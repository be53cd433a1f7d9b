"""Guidance by a Gaussian around the estimate: PiGDM (Song et al., ICLR 2023) and moment matching (2405.13712).

By Tweedie's formula E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma^2 / alpha) grad log p(y | x_t). With x_0 | x_t taken as
N(x_0(x_t), V), p(y | x_t) = N(A x_0(x_t), A V A^T + sigma_y^2 I), whose gradient is J^T A^T (A V A^T + sigma_y^2 I)^-1
(y - A x_0) with J = d x_0 / d x_t, if V is held fixed. The corrected estimate goes into any sampler's rule.

Where alpha is small, sigma^2 / alpha makes much of every error of a network's J: the corrected estimate is held within
the denoiser's threshold, without which the first steps leave the data's range for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffunet.inverse.method import Method, differentiable
from diffunet.samplers import Denoise, Noise, Step
from diffunet.samplers.base import Leg

Map = Callable[[Tensor], Tensor]


class PiGDM(Method):
    """V = r_t^2 I with r_t^2 = v sigma^2 / (alpha^2 v + sigma^2): exact where clean pixels are independent N(m, v)."""

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        return self.rule.step(lambda x_t, t: self._guided(denoise, x_t, t), x, leg, noise, history)

    def _guided(self, denoise: Denoise, x_t: Tensor, t: float) -> Tensor:
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        v = self.config.data_std**2
        r2 = v * sigma**2 / (alpha**2 * v + sigma**2)
        leaf, x0 = differentiable(denoise, x_t, t)

        def spread(u: Tensor) -> Tensor:
            """(sigma^2 / alpha) J^T u; its limit r_t^2 u where there is no signal in x_t."""
            if alpha == 0:
                return r2 * u
            return sigma**2 / alpha * torch.autograd.grad(x0, leaf, u, retain_graph=True)[0]

        return self.threshold(x0.detach() + spread(self._weighed(self.residual(x0.detach()), r2, spread)))

    def _weighed(self, residual: Tensor, r2: float, spread: Map) -> Tensor:
        """A^T (A V A^T + sigma_y^2 I)^-1 (y - A x_0)."""
        return self.problem.operator.ridge(residual, self.problem.sigma**2 / r2) / r2


class MMPS(PiGDM):
    """V = (sigma^2 / alpha) J, which is Cov[x_0 | x_t] of the exact denoiser: exact for every Gaussian prior.

    The system is solved by a few conjugate gradients from 0; each costs one vector-Jacobian product (J is symmetric).
    """

    def _weighed(self, residual: Tensor, r2: float, spread: Map) -> Tensor:
        A, _, sigma = self.problem

        def system(u: Tensor) -> Tensor:
            return A(spread(A.adjoint(u))) + sigma**2 * u

        return A.adjoint(conjugate_gradients(system, residual, self.config.iterations))


def conjugate_gradients(system: Map, b: Tensor, iterations: int) -> Tensor:
    """u with system(u) near b (B, *M), for a symmetric positive system, row by row (Hestenes and Stiefel, 1952)."""
    u, r, p = torch.zeros_like(b), b, b
    rr = dots(r, r)
    for _ in range(iterations):
        q = system(p)
        pq = dots(p, q)
        step = torch.where(pq > 0, rr / torch.where(pq > 0, pq, 1.0), 0.0)  # a network's J may fail to be positive
        u, r = u + step * p, r - step * q
        rr, before = dots(r, r), rr
        p = r + torch.where(before > 0, rr / torch.where(before > 0, before, 1.0), 0.0) * p
    return u


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each row, shaped to multiply it."""
    return (a * b).flatten(1).sum(dim=1).view(-1, *[1] * (a.ndim - 1))
