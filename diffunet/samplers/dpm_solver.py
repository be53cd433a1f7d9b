"""DPM-Solver, single-step: orders 1, 2 and 3 in the noise that is predicted (2206.00927, section 3 and appendix B).

The flow from t to s is x_s = (alpha_s / alpha_t) x_t - alpha_s int e^-lambda eps dlambda with lambda = log(alpha /
sigma): the integral takes the exponential exactly, and eps as a polynomial of lambda. h = lambda_s - lambda_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.errors import ConfigError
from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, points
from diffunet.samplers.euler import euler
from diffunet.spec import DPMSolver1Sampler, DPMSolver2Sampler, DPMSolver3Sampler


def point_at(schedule: Any, lam: float) -> Point:
    """The place on the schedule where log(alpha / sigma) = lam.

    Raises:
        ConfigError: a schedule that cannot say it.
    """
    if not hasattr(schedule, "t_of_logsnr"):
        raise ConfigError(
            f"{type(schedule).__name__} has no t_of_logsnr(l), the time of a logSNR, which DPM-Solver needs"
        )
    return points(schedule, [float(schedule.t_of_logsnr(2 * lam))])[0]


def noise(x: Form, k: int, p: Point) -> Form:
    """eps of estimate k, which was made of x at p."""
    return (x - p.alpha * Form.of(f"D{k}")) / p.sigma


def first(x: Form, eps: Form, t: Point, s: Point) -> Form:
    """x_s = (alpha_s / alpha_t) x_t - sigma_s (e^h - 1) eps (eq 3.7)."""
    return s.alpha / t.alpha * x - s.sigma * math.expm1(s.lam - t.lam) * eps


class DPMSolver1(Sampler):
    """Order 1, which is DDIM without noise (2206.00927, section 4.1)."""

    order = 1

    def __init__(self, config: DPMSolver1Sampler | DPMSolver2Sampler | DPMSolver3Sampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        """Legs from no signal or onto no noise, where lambda is infinite, are of order 1."""
        pairs = list(pairwise(points(schedule, times)))
        ends = [math.isinf(t.lam) or math.isinf(s.lam) for t, s in pairs]
        return [
            Leg.of(t, s, euler(X, D0, t, s)) if end else self._leg(schedule, t, s)
            for (t, s), end in zip(pairs, ends, strict=True)
        ]

    def _leg(self, schedule: Any, t: Point, s: Point) -> Leg:
        return Leg.of(t, s, first(X, noise(X, 0, t), t, s))

    @staticmethod
    def _inside(schedule: Any, t: Point, s: Point, part: float) -> Point:
        """The point that lies `part` of the way in lambda."""
        return point_at(schedule, t.lam + part * (s.lam - t.lam))


class DPMSolver2(DPMSolver1):
    """Order 2: u at the middle r_1 = 1/2 of the step in lambda, then x_s with eps(u) in place of eps(x_t) (alg 1)."""

    order = 2
    calls = 2

    def _leg(self, schedule: Any, t: Point, s: Point) -> Leg:
        m = self._inside(schedule, t, s, 1 / 2)
        u = first(X, noise(X, 0, t), t, m)
        return Leg.of(t, s, first(X, noise(u, 1, m), t, s), stages=[(t, X), (m, u)])


class DPMSolver3(DPMSolver1):
    """Order 3: u_1, u_2 at r_1 = 1/3 and r_2 = 2/3 of the step in lambda, D_i = eps(u_i) - eps(x_t) (alg 2).

    u_2 = first(r_2) - sigma (r_2 / r_1) ((e^(r_2 h) - 1) / (r_2 h) - 1) D_1 and
    x_s = first - (sigma_s / r_2) ((e^h - 1) / h - 1) D_2.
    """

    order = 3
    calls = 3

    def _leg(self, schedule: Any, t: Point, s: Point) -> Leg:
        r_1, r_2, h = 1 / 3, 2 / 3, s.lam - t.lam
        s_1, s_2 = self._inside(schedule, t, s, r_1), self._inside(schedule, t, s, r_2)
        eps = noise(X, 0, t)
        u_1 = first(X, eps, t, s_1)
        D_1 = noise(u_1, 1, s_1) - eps
        u_2 = first(X, eps, t, s_2) - s_2.sigma * r_2 / r_1 * (math.expm1(r_2 * h) / (r_2 * h) - 1) * D_1
        D_2 = noise(u_2, 2, s_2) - eps
        x_s = first(X, eps, t, s) - s.sigma / r_2 * (math.expm1(h) / h - 1) * D_2
        return Leg.of(t, s, x_s, stages=[(t, X), (s_1, u_1), (s_2, u_2)])
