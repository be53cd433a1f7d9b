"""What a network guesses, and how that becomes the clean image: pure functions of x_t = alpha x_0 + sigma eps.

Each prediction says its training target, turns a guess into x_0, scales the network's input, and gives the factor by
which an error of the guess is larger than the same error in x_0 would be (for loss weights stated in x_0 terms).
Legend: x_t, x0, eps, guess (B, C, *S); alpha, sigma broadcastable to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.table import Table


class Prediction:
    """Base: the network sees x_t as it is."""

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network is fed."""
        return x_t

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should guess."""
        raise AssertionError("a prediction must say its target")

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean image that the guess means."""
        raise AssertionError("a prediction must say how it becomes x0")

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """w in |x0_guess - x0|^2 = w |guess - target|^2."""
        raise AssertionError("a prediction must say its weight")


class Eps(Prediction):
    """The noise (DDPM, 2006.11239)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * guess) / alpha

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha) ** 2


class X0(Prediction):
    """The clean image itself."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


class V(Prediction):
    """v = alpha eps - sigma x_0, where alpha^2 + sigma^2 = 1 (2202.00512, appendix D)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * eps - sigma * x0

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x_t - sigma * guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2


class Flow(Prediction):
    """u = eps - x_0, the velocity of x_t = (1 - t) x_0 + t eps from data to noise (2209.03003 runs time backwards)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - x0

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x_t - sigma * guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2


class EDM(Prediction):
    """F in D = c_skip x + c_out F(c_in x), with alpha = 1 and data of deviation 0.5 (2206.00364, table 1)."""

    SIGMA_DATA = 0.5

    def _coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = sigma**2 + self.SIGMA_DATA**2
        return self.SIGMA_DATA**2 / total, sigma * self.SIGMA_DATA / total.sqrt(), 1 / total.sqrt()

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._coefficients(sigma)[2] * x_t

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, _ = self._coefficients(sigma)
        return (x0 - c_skip * (x0 + sigma * eps)) / c_out

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, _ = self._coefficients(sigma)
        return c_skip * x_t + c_out * guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._coefficients(sigma)[1] ** 2


PREDICTIONS: Table[type[Prediction]] = Table("prediction", {"eps": Eps, "x0": X0, "v": V, "flow": Flow, "edm": EDM})
