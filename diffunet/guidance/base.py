"""What guidance is: a denoiser around a denoiser, whose estimate is mixed from several before the threshold.

Legend: x_t (B, C, *S) noisy images at t, a float or (B,); w the scale of guidance, 1 where nothing is changed; D an
estimate of x_0. At one x_t and t an estimate is affine in eps and in the score, so that mixing any of them is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffunet.denoiser import per_sample

Time = Tensor | float


class Estimates(NamedTuple):
    """What one call of a guidance finds, each (B, C, *S) and without a threshold.

    guided: the guided estimate. base: the one that w = 1 gives. origin: the one that guidance leads away from.
    """

    guided: Tensor
    base: Tensor
    origin: Tensor


def estimate(denoiser: Any, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
    """x_0 without the threshold; a denoiser that has no `estimate` of its own has no threshold either."""
    return getattr(denoiser, "estimate", denoiser)(x_t, t, **cond)


class Guidance(nn.Module):
    """A denoiser around a denoiser: called as den(x_t, t, **cond), with the inner one's schedule, data and threshold.

    A part says `estimates`; the threshold of the inner denoiser comes after the mixing.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule, self.data = denoiser.schedule, getattr(denoiser, "data", None)
        self.num_classes: int | None = getattr(denoiser, "num_classes", None)
        self.null_label: int | None = getattr(denoiser, "null_label", None)
        self.self_conditioning: bool = getattr(denoiser, "self_conditioning", False)
        self.learned_variance: bool = getattr(denoiser, "learned_variance", False)

    def estimates(self, x_t: Tensor, t: Time, **cond: Any) -> Estimates:
        """The guided estimate, and those that it was made of."""
        raise AssertionError(f"{type(self).__name__} must say its estimates")

    def acts(self, t: Time) -> bool:
        """Whether the guided estimate at t differs from that of w = 1, which may cost less."""
        return True

    def plain(self, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
        """The estimate of w = 1."""
        return estimate(self.denoiser, x_t, t, **cond)

    def estimate(self, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
        """The guided x_0 without the threshold."""
        return self.estimates(x_t, t, **cond).guided if self.acts(t) else self.plain(x_t, t, **cond)

    def threshold(self, x0: Tensor) -> Tensor:
        """The inner denoiser's threshold."""
        inner = getattr(self.denoiser, "threshold", None)
        return x0 if inner is None else inner(x0)

    def forward(self, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
        """The guided x_0 of x_t (B, C, *S) at times t in (0, 1], a float or (B,)."""
        return self.threshold(self.estimate(x_t, t, **cond))

    def pair(self, x_t: Tensor, t: Time, **cond: Any) -> tuple[Tensor, Tensor]:
        """The guided x_0 and the one that guidance leads away from: for step rules that need both, as CFG++ does."""
        found = self.estimates(x_t, t, **cond)
        return self.threshold(found.guided), self.threshold(found.origin)

    def with_variance(self, x_t: Tensor, t: Time, **cond: Any) -> tuple[Tensor, Tensor]:
        """The guided x_0, and the learned variance of the inner denoiser, which is not guided."""
        return self(x_t, t, **cond), self.denoiser.with_variance(x_t, t, **cond)[1]


class Around(Guidance):
    """A guidance around a guidance: where it says nothing of its own, the inner one speaks."""

    denoiser: Guidance

    def acts(self, t: Time) -> bool:
        return self.denoiser.acts(t)

    def plain(self, x_t: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.denoiser.plain(x_t, t, **cond)


class Interval(Around):
    """Guidance for low < t <= high only; elsewhere w = 1, at the cost of w = 1 (2404.07724).

    Args:
        guidance: what acts inside.
        low, high: times in [0, 1].
    """

    def __init__(self, guidance: Guidance, low: float, high: float) -> None:
        super().__init__(guidance)
        self.low, self.high = low, high

    def place(self, t: Time) -> Time:
        """What is held against the bounds."""
        return t

    def acts(self, t: Time) -> bool:
        return bool(torch.as_tensor(self._inside(t)).any()) and self.denoiser.acts(t)

    def estimates(self, x_t: Tensor, t: Time, **cond: Any) -> Estimates:
        inside = torch.as_tensor(self._inside(t), device=x_t.device)
        if not inside.any():
            plain = self.plain(x_t, t, **cond)
            return Estimates(plain, plain, plain)
        guided, base, origin = self.denoiser.estimates(x_t, t, **cond)
        here = inside.reshape(-1, *[1] * (x_t.ndim - 1))
        return Estimates(torch.where(here, guided, base), base, torch.where(here, origin, base))

    def _inside(self, t: Time) -> Tensor | bool:
        place = self.place(t)
        return (self.low < place) & (place <= self.high)


class SigmaInterval(Interval):
    """Guidance for low < sigma / alpha <= high only: the interval in EDM's sigma, as 2404.07724 states it."""

    def place(self, t: Time) -> Time:
        alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(t, dtype=torch.float64))
        return sigma / alpha


class Rescale(Around):
    """phi D std(D_base) / std(D) + (1 - phi) D, against the overexposure of a large w (2305.08891, eq 15-16).

    The deviations are those of one image over its channels and sides. The paper rescales the network's guess (v); here
    it is the clean image that gets the contrast of the conditional one, whatever the network guesses.

    Args:
        guidance: what is rescaled.
        phi: share of the rescaled estimate, 0 to 1; the paper takes 0.7.
    """

    def __init__(self, guidance: Guidance, phi: float) -> None:
        super().__init__(guidance)
        self.phi = phi

    def estimates(self, x_t: Tensor, t: Time, **cond: Any) -> Estimates:
        guided, base, origin = self.denoiser.estimates(x_t, t, **cond)
        ratio = _deviation(base) / _deviation(guided)
        return Estimates(guided * (self.phi * per_sample(ratio, guided) + (1 - self.phi)), base, origin)


def _deviation(x0: Tensor) -> Tensor:
    """Standard deviation of each image (B,), kept off zero, where there is no contrast to restore."""
    return x0.flatten(1).std(dim=1, correction=0).clamp(min=torch.finfo(x0.dtype).tiny)
