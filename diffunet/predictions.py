"""What a network guesses, and how that becomes the clean image: pure functions of x_t = alpha x_0 + sigma eps.

Each prediction says its training target, turns a guess into x_0 and into eps, scales the network's input, and gives the
factor by which an error of the guess is larger than the same error in x_0 would be (for loss weights stated in x_0
terms). The formulas hold for any alpha and sigma; where alpha^2 + sigma^2 = 1 (v) or alpha + sigma = 1 (flow) they are
the papers'.
Legend: x_t, x0, eps, guess (B, C, *S); alpha, sigma floats, or tensors broadcastable to them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffunet.table import Table

Size = Tensor | float


def root(value: Size) -> Size:
    """The square root of a number or a tensor."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def mix(x: Tensor, a: Size, y: Tensor, b: Size) -> Tensor:
    """a x + b y; in two operations where a and b are floats."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    return torch.add(x * a, y, alpha=b)


class Prediction:
    """Base: the network sees x_t as it is."""

    def input(self, x_t: Tensor, alpha: Size, sigma: Size) -> Tensor:
        """What the network is fed."""
        return x_t

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        """What the network should guess."""
        raise AssertionError("a prediction must say its target")

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        """The clean image that the guess means."""
        raise AssertionError("a prediction must say how it becomes x0")

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        """The noise that the guess means; sigma > 0."""
        return mix(x_t, 1 / sigma, self.x0(x_t, guess, alpha, sigma), -alpha / sigma)

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """w in |x0_guess - x0|^2 = w |guess - target|^2."""
        raise AssertionError("a prediction must say its weight")


class Eps(Prediction):
    """The noise (DDPM, 2006.11239)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return eps

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return mix(x_t, 1 / alpha, guess, -sigma / alpha)

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha) ** 2


class X0(Prediction):
    """The clean image itself."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return x0

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return guess

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


class V(Prediction):
    """v = alpha eps - sigma x_0 (2202.00512, appendix D)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return mix(eps, alpha, x0, -sigma)

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = alpha**2 + sigma**2
        return mix(x_t, alpha / total, guess, -sigma / total)

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = alpha**2 + sigma**2
        return mix(x_t, sigma / total, guess, alpha / total)

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / (alpha**2 + sigma**2)) ** 2


class Flow(Prediction):
    """u = eps - x_0, the velocity of x_t = (1 - t) x_0 + t eps from data to noise (2209.03003 runs time backwards)."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return eps - x0

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = alpha + sigma
        return mix(x_t, 1 / total, guess, -sigma / total)

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = alpha + sigma
        return mix(x_t, 1 / total, guess, alpha / total)

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / (alpha + sigma)) ** 2


class EDM(Prediction):
    """F in D = c_skip x + c_out F(c_in x), with alpha = 1 and data of deviation 0.5 (2206.00364, table 1).

    Where alpha is not 1, x is x_t / alpha and the noise sigma / alpha.
    """

    SIGMA_DATA = 0.5

    def _total(self, alpha: Size, sigma: Size) -> Size:
        """Variance of x_t."""
        return sigma**2 + (self.SIGMA_DATA * alpha) ** 2

    def input(self, x_t: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return x_t * (1 / root(self._total(alpha, sigma)))

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        # (x0 - c_skip x) / c_out, where sigma cancels
        deviation = root(self._total(alpha, sigma))
        return mix(x0, sigma / (self.SIGMA_DATA * deviation), eps, -self.SIGMA_DATA * alpha / deviation)

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = self._total(alpha, sigma)
        return mix(x_t, self.SIGMA_DATA**2 * alpha / total, guess, self.SIGMA_DATA * sigma / root(total))

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        total = self._total(alpha, sigma)
        return mix(x_t, sigma / total, guess, -self.SIGMA_DATA * alpha / root(total))

    def x0_weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (self.SIGMA_DATA * sigma) ** 2 / self._total(alpha, sigma)


class Score(Prediction):
    """grad log p(x_t) = -eps / sigma: no network's guess here, but a word that other libraries and proofs use."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return -eps / sigma

    def x0(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return mix(x_t, 1 / alpha, guess, sigma**2 / alpha)

    def eps(self, x_t: Tensor, guess: Tensor, alpha: Size, sigma: Size) -> Tensor:
        return -sigma * guess


PREDICTIONS: Table[type[Prediction]] = Table("prediction", {"eps": Eps, "x0": X0, "v": V, "flow": Flow, "edm": EDM})
MEANINGS: Table[type[Prediction]] = Table("meaning", {**PREDICTIONS, "score": Score})


def convert(value: Tensor, source: str, target: str, x_t: Tensor, alpha: Size, sigma: Size) -> Tensor:
    """Say in terms of `target` what `value` says in terms of `source`: eps, x0, v, flow, edm or score.

    v, flow and edm can be said at every alpha and sigma; of eps nothing follows at alpha = 0, of x0 nothing at
    sigma = 0, and of the score nothing at either.

    Args:
        value: the guess, estimate or score, (B, C, *S) in float32 or float64.
        x_t: what it was guessed from.
        alpha, sigma: floats, or tensors broadcastable to x_t.

    Raises:
        ConfigError: an unknown name.
    """
    given, wanted = MEANINGS[source](), MEANINGS[target]()
    if source == target:
        return value
    x0, eps = given.x0(x_t, value, alpha, sigma), given.eps(x_t, value, alpha, sigma)
    return wanted.target(x0, eps, alpha, sigma)
