"""Noise alone: y = x_0 + sigma_y n is, but for its size, x_t at the time whose noise is as large as y's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.inverse.method import Method
from diffunet.inverse.pointwise import Identity
from diffunet.samplers import Noise


def time_of(schedule: Any, sigma: float) -> float:
    """The time t at which sigma(t) / alpha(t) is the noise of a picture in [-1, 1]; the smallest one for less.

    Raises:
        ConfigError: no noise, or more than the schedule has at t = 1.
    """
    if sigma <= 0:
        raise ConfigError(f"sigma = {sigma:g}: a denoiser needs to know of some noise in the picture")
    alpha, most = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    if sigma * alpha > most * (1 + 1e-9):
        raise ConfigError(
            f"noise of {sigma * 127.5:.4g} (of 255) is more than the {most / alpha * 127.5:.4g} that this model knows"
        )
    return min(1.0, max(float(schedule.t_min), float(schedule.t_of_sigma(sigma))))


class Sample(Method):
    """The sampler's own steps from alpha y at the time t where sigma / alpha = sigma_y: a draw from p(x_0 | y).

    Without fresh noise (eta = 0) the draw is the flow's image of y; with one step it is the mean E[x_0 | y].
    """

    only = ("identity", Identity)

    def first_time(self, start: float | None) -> float:
        own = time_of(self.schedule, self.problem.sigma)
        return own if start is None else max(own, start)

    def begin(self, guess: Tensor, t: float, noise: Noise) -> Tensor:
        """alpha y with as much noise as it lacks at t: none where t is the time of y's own."""
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        missing = max(0.0, sigma**2 - (alpha * self.problem.sigma) ** 2)
        return alpha * guess + missing**0.5 * noise.like(guess)


class Mean(Sample):
    """E[x_0 | y] in one step."""
