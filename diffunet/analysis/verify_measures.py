"""What `verify` measures with: exact denoisers that answer as networks do, and errors of whole walks of a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffunet.analysis.convergence import MixtureDenoiser, gaussian_denoiser, measure_order, smooth_grid
from diffunet.denoiser import Denoiser
from diffunet.predictions import PREDICTIONS
from diffunet.samplers import Noise, Sampler


def levels(schedule: Any, t: float | Tensor, ndim: int) -> tuple[Any, Any]:
    """alpha and sigma: numbers for a float, else (B, 1, ...) to multiply `ndim` axes."""
    if not isinstance(t, Tensor):
        return schedule.alpha(t), schedule.sigma(t)
    alpha, sigma = schedule.alpha_sigma(t.double().reshape(-1, *[1] * (ndim - 1)))
    return alpha, sigma


class Answer(nn.Module):
    """An exact denoiser as a network: shown c_in x_t, it answers in the terms of a prediction.

    What a network is told of the time is float32, in which no order of convergence could be seen; `t` is the time
    itself, set by whoever asks.
    """

    def __init__(self, exact: MixtureDenoiser, prediction: str) -> None:
        super().__init__()
        self.exact, self.rule = exact, PREDICTIONS[prediction]()
        self.t: float | Tensor = 1.0

    def forward(self, shown: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """The guess (B, C, *S) for x_t as it is shown, at `self.t`."""
        alpha, sigma = levels(self.exact.schedule, self.t, shown.ndim)
        x_t = shown.double() / self.rule.input(torch.ones((), dtype=torch.float64), alpha, sigma)
        x0 = self.exact(x_t, self.t)
        return self.rule.target(x0, (x_t - alpha * x0) / sigma, alpha, sigma).to(shown.dtype)


class Posed:
    """A Denoiser around an `Answer`, which counts what it is asked, and knows the flow of its data."""

    def __init__(self, exact: MixtureDenoiser, prediction: str) -> None:
        self.schedule, self.exact, self.calls = exact.schedule, exact, 0
        self.network = Answer(exact, prediction)
        self.den = Denoiser(self.network, self.schedule, prediction)
        self.flow = exact.flow

    def __call__(self, x_t: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t], by way of the network's guess."""
        self.network.t, self.calls = t, self.calls + 1
        x0: Tensor = self.den(x_t, t, **cond)
        return x0


class Both(MixtureDenoiser):
    """Two rows of data at once: a Gaussian N(0.3, 0.5^2), written as two equal modes, and the mixture."""

    def __init__(self, schedule: Any) -> None:
        super().__init__(schedule)
        gaussian = torch.tensor([[0.5, 0.5], [0.3, 0.3], [0.25, 0.25]], dtype=torch.float64)
        modes = torch.stack([gaussian, torch.stack([self.w, self.m, self.v])], dim=1)
        self.w, self.m, self.v = modes.reshape(3, 2, 1, 1, 2)


class Basis(Noise):
    """Noise that is 1 at one row and 0 at the others, each time one row further: what is linear in noise shows how."""

    def __init__(self, first: int) -> None:
        super().__init__([])
        self.used, self.first = 0, first

    def like(self, x: Tensor) -> Tensor:
        """Rows of zeros, one of ones; none where the rows do not reach so far."""
        z, row = torch.zeros_like(x), self.first + self.used
        z[row : row + 1] = 1.0
        self.used += 1
        return z


def spread() -> Tensor:
    """Unit noise (2, 1, 7) in float64: seven quantiles for each of the two kinds of data."""
    return torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).expand(2, 1, 7).clone()


def last(rule: Sampler, den: Any, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Where a walk from x at times[0] ends."""
    *_, state = rule.walk(den, den.schedule, x, times, noise)
    return state.x


def draws_noise(rule: Sampler, schedule: Any, times: Sequence[float]) -> int:
    """How often a walk asks for noise."""
    noise = Basis(0)
    last(rule, gaussian_denoiser(schedule), torch.zeros(1, 1, 1, dtype=torch.float64), times, noise)
    return noise.used


def flow_error(rule: Sampler, den: Posed, times: Sequence[float]) -> float:
    """Root mean square distance to the probability flow, of a walk without noise over `Both`.

    It starts as `generate` does, at whichever time the grid begins; a grid that begins late is not the walk's fault.
    """
    x = rule.scale(den.schedule) * spread()
    return float((last(rule, den, x, times, Noise([])) - den.flow(x, times[0], 0.0)).square().mean().sqrt())


def gaussian_error(rule: Sampler, den: Posed, times: Sequence[float]) -> float:
    """Distance of the Gaussian that a walk with noise makes to the data's, of one mode: exact, nothing is drawn.

    The walk starts from the distribution of x_t. Its end is m' + g eps + sum_k h_k z_k, whose terms are read off rows
    in which all noise but one is 0.
    """
    m, v = float(den.exact.m[0]), float(den.exact.v[0])
    a, s = den.schedule.alpha(times[0]), den.schedule.sigma(times[0])
    eps = torch.zeros(draws_noise(rule, den.schedule, times) + 2, 1, 1, dtype=torch.float64)
    eps[1] = 1.0
    x = last(rule, den, a * m + math.sqrt(a**2 * v + s**2) * eps, times, Basis(2)).flatten()
    mean, deviation = float(x[0]), float((x[1:] - x[0]).square().sum().sqrt())
    return math.hypot(mean - m, deviation - math.sqrt(v))


def chances(rule: Sampler, den: Posed, draws: int, steps: int) -> dict[str, float]:
    """How many standard errors the draws of the mixture lie off: weight of the left mode, mean, deviation."""
    noise = Noise(range(8))
    start = rule.scale(den.schedule) * noise((1, draws // 8)).double()
    x = last(rule, den, start, rule.times(den.schedule, steps, "arc"), noise).flatten()
    n, (w, m, v) = len(x), (values.squeeze() for values in (den.exact.w, den.exact.m, den.exact.v))
    below = float((w * torch.special.ndtr(-m / v.sqrt())).sum())
    mean = float((w * m).sum())
    c = m - mean
    second, fourth = float((w * (c**2 + v)).sum()), float((w * (c**4 + 6 * c**2 * v + 3 * v**2)).sum())
    return {
        "left mode": (float((x < 0).double().mean()) - below) / math.sqrt(below * (1 - below) / n),
        "mean": (float(x.mean()) - mean) / math.sqrt(second / n),
        "variance": (float((x - mean).square().mean()) - second) / math.sqrt((fourth - second**2) / n),
    }


def window(schedule: Any, legs: int) -> tuple[float, float]:
    """From which lambda to which the order's grids run: -1 to 2, as far as the schedule reaches.

    In front there is room for the legs of the history, of which the coarsest grid takes six of `legs`.
    """
    noisy, clean = (float(schedule.logsnr(t)) / 2 for t in (schedule.t_max, schedule.t_min))
    reach = min(2.0, clean)
    return max(-1.0, noisy + (reach - noisy) * 10 / (legs + 10)), reach


def order_of(rule: Sampler, den: Posed, steps: tuple[int, ...]) -> float:
    """The measured order between the two finest grids of so many calls: more legs would leave little but rounding."""
    steps = tuple(n // rule.calls for n in steps)
    first, reach = window(den.schedule, steps[0])
    t = float(den.schedule.t_of_logsnr(2 * first))
    a, s = den.schedule.alpha(t), den.schedule.sigma(t)
    start = a * 0.5 + (a**2 + s**2) ** 0.5 * spread()
    grid = partial(smooth_grid, lam=(first, reach))
    return measure_order(rule, den, steps[-2:], grid=grid, x=start).orders[-1]
