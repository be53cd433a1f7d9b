"""Heun's method with EDM's churn (2206.00364, algorithms 1 and 2), in y = x / alpha against r = sigma / alpha."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, points
from diffunet.samplers.euler import Churn, euler
from diffunet.spec import HeunSampler

D1 = Form.of("D1")


def heun_leg(t: Point, s: Point, hat: Point, x_hat: Form) -> Leg:
    """From x_t, raised to x_hat at `hat`: y_s = y_hat + (r_s - r_hat) (d + d') / 2, where d' is the slope at s.

    Onto the clean image, and from where there is no signal, it is Euler's step.
    """
    x_s = euler(x_hat, D0, hat, s)
    if s.sigma == 0 or hat.alpha == 0:
        return Leg.of(t, s, x_s, stages=[(hat, x_hat)])
    r_hat, r_s = hat.sigma / hat.alpha, s.sigma / s.alpha
    d = (x_hat / hat.alpha - D0) / r_hat
    d_s = (x_s / s.alpha - D1) / r_s
    y_s = x_hat / hat.alpha + (r_s - r_hat) * (d + d_s) / 2
    return Leg.of(t, s, s.alpha * y_s, stages=[(hat, x_hat), (s, x_s)])


class Heun(Sampler):
    """Two slopes a step, one at its end: 2 N - 1 calls for N steps onto the clean image.

    `churn` raises the noise before each step (EDM's S_churn), for ratios from churn_low to churn_high.
    """

    order = 2
    calls = 2

    def __init__(self, config: HeunSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        churn = Churn(self.config, schedule, len(times) - 1)
        return [heun_leg(t, s, *churn(t)) for t, s in pairwise(points(schedule, times))]
