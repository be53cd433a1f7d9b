"""Euler's method in y = x / alpha against r = sigma / alpha, with EDM's churn or with ancestral noise.

There the process is y_r = x_0 + r eps whatever the schedule, and its probability flow dy/dr = (y - D) / r = eps
(2206.00364, eq 3 with s = 1; section 3 calls r sigma).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.errors import ConfigError
from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, Z, points
from diffunet.spec import EulerAncestralSampler, EulerSampler
from diffunet.spec.samplers import ChurnOptions


def ratio(p: Point) -> float:
    """r = sigma / alpha: EDM's sigma. Infinite where there is no signal."""
    return p.sigma / p.alpha if p.alpha > 0 else math.inf


def euler(x: Form, D: Form, t: Point, s: Point) -> Form:
    """y_s = y_t + (r_s - r_t) eps = D + r_s eps, which holds where t has no signal too."""
    eps = (x - t.alpha * D) / t.sigma
    return s.alpha * D + s.sigma * eps


def point_of_ratio(schedule: Any, r: float) -> Point:
    """The place on the schedule where sigma / alpha = r.

    Raises:
        ConfigError: a schedule that cannot say it.
    """
    if not hasattr(schedule, "t_of_sigma"):
        raise ConfigError(
            f"{type(schedule).__name__} has no t_of_sigma(r), the time of sigma / alpha, which this needs"
        )
    return points(schedule, [float(schedule.t_of_sigma(r))])[0]


class Churn:
    """Before a step, noise up to r_hat = (1 + gamma) r, gamma = min(churn / N, sqrt(2) - 1) (2206.00364, alg 2).

    The schedule ends at t = 1: no r_hat goes beyond, where EDM's own networks would be asked about more.
    """

    def __init__(self, options: ChurnOptions, schedule: Any, steps: int) -> None:
        self.options, self.schedule = options, schedule
        self.gamma = min(options.churn / steps, math.sqrt(2) - 1)
        self.top = ratio(points(schedule, [1.0])[0])

    def __call__(self, t: Point) -> tuple[Point, Form]:
        """The point of r_hat, and x there: y_hat = y + s_noise sqrt(r_hat^2 - r^2) z."""
        r, c = ratio(t), self.options
        r_hat = min(r * (1 + self.gamma), self.top)
        high = math.inf if c.churn_high is None else c.churn_high
        if r_hat <= r or not c.churn_low <= r <= high:
            return t, X
        hat = point_of_ratio(self.schedule, r_hat)
        return hat, hat.alpha * (X / t.alpha + c.churn_noise * math.sqrt(ratio(hat) ** 2 - r**2) * Z)


class Euler(Sampler):
    """y_s = y_t + (r_s - r_t) (y_t - D) / r_t: DDIM without noise in EDM's words (2206.00364, alg 1, first order).

    With `churn` each step first goes up in noise, as in algorithm 2.
    """

    order = 1

    def __init__(self, config: EulerSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        churn, legs = Churn(self.config, schedule, len(times) - 1), []
        for t, s in pairwise(points(schedule, times)):
            hat, x_hat = churn(t)
            legs.append(Leg.of(t, s, euler(x_hat, D0, hat, s), stages=[(hat, x_hat)]))
        return legs


class EulerAncestral(Sampler):
    """y_s = D + r_down eps + s_noise r_up z, with r_up^2 = eta^2 r_s^2 (1 - r_s^2 / r_t^2), r_down^2 = r_s^2 - r_up^2.

    At eta = 1, r_up^2 is the variance of q(y_s | y_t, x_0) for the process y_r = x_0 + r eps, so that this is DDPM with
    the smaller variance on every schedule; any eta is DDIM's. Taking sigma in place of sigma / alpha would be wrong
    wherever alpha < 1.
    """

    def __init__(self, config: EulerAncestralSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self._leg(t, s) for t, s in pairwise(points(schedule, times))]

    def _leg(self, t: Point, s: Point) -> Leg:
        r_s, c = ratio(s), self.config
        r_up = c.eta * r_s * math.sqrt(1 - (r_s / ratio(t)) ** 2)
        r_down = math.sqrt(r_s**2 - r_up**2)
        eps = (X - t.alpha * D0) / t.sigma
        return Leg.of(t, s, s.alpha * (D0 + r_down * eps + c.noise * r_up * Z))
