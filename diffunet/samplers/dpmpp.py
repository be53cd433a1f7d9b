"""DPM-Solver++, multistep: the clean estimate as a polynomial in lambda (2211.01095, algorithm 2).

x_s = alpha_s D_0 + g (x_t - alpha_t D_0) + what earlier estimates add + noise, g = (sigma_s / sigma_t) exp(-eta h),
h = lambda_s - lambda_t. eta = 0 is the probability flow, eta = 1 the reverse SDE with the noise of DDPM.

Other libraries halve the curvature in 3M and so stay at order 2; here the polynomial is integrated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, Z, points
from diffunet.samplers.exponential import (
    Evaluation,
    data_correction,
    euler_data,
    finite,
    keep,
    legs_left,
    past,
    spread,
)
from diffunet.spec import DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSampler, DPMpp3MSDESampler

Rule = Callable[[Point, Point, Sequence[Evaluation], float], Form]


def midpoint(t: Point, s: Point, evaluations: Sequence[Evaluation], eta: float = 0.0) -> Form:
    """alpha_s (1 - exp(-(1 + eta) h)) (D_0 - D_1) / (2 r), r = (lambda_t - lambda_1) / h: as algorithm 2 writes it.

    It takes D half a step ahead on the line through two estimates. Empty where t, s or D_1 is at infinite lambda.
    """
    if len(evaluations) < 2 or not finite(t, s, evaluations[1][0]):
        return Form({})
    (_, D_0), (before, D_1) = evaluations
    h = s.lam - t.lam
    r = (t.lam - before.lam) / h
    return -s.alpha * math.expm1(-(1 + eta) * h) / (2 * r) * (D_0 - D_1)


def heun(t: Point, s: Point, evaluations: Sequence[Evaluation], eta: float = 0.0) -> Form:
    """The integral of the polynomial itself; other libraries call it the solver type `heun`."""
    return data_correction(t, s, evaluations, eta=eta)


RULES: dict[str, Rule] = {"midpoint": midpoint, "heun": heun}


class DPMpp(Sampler):
    """Goes on with the last `used` estimates; starts with fewer; a leg onto the clean image ends in D_0.

    lower_order_final: the last legs of a grid that ends on the clean image use no more estimates than legs are left.
    """

    def __init__(self, used: int, rule: Rule, eta: float = 0.0, lower_order_final: bool = False) -> None:
        self.used, self.rule, self.eta, self.lower_order_final = used, rule, eta, lower_order_final

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = points(schedule, times)
        return [self._leg(grid, i) for i in range(len(grid) - 1)]

    def _leg(self, grid: Sequence[Point], i: int) -> Leg:
        t, s = grid[i : i + 2]
        used = min(self.used, legs_left(grid, i)) if self.lower_order_final else self.used
        evaluations = [(t, D0), *past("H", grid, i, used - 1)]
        end = euler_data(X, D0, t, s, self.eta) + self.rule(t, s, evaluations, self.eta) + spread(t, s, self.eta) * Z
        return Leg.of(t, s, end, keep("H", D0, i, self.used - 1))


class DPMpp2M(DPMpp):
    """Two estimates (algorithm 2)."""

    order = 2

    def __init__(self, config: DPMpp2MSampler) -> None:
        super().__init__(2, RULES[config.solver_type])


class DPMpp3M(DPMpp):
    """Three estimates."""

    order = 3

    def __init__(self, config: DPMpp3MSampler) -> None:
        super().__init__(3, heun, lower_order_final=config.lower_order_final)


class DPMpp2MSDE(DPMpp):
    """Two estimates, and noise."""

    def __init__(self, config: DPMpp2MSDESampler) -> None:
        super().__init__(2, RULES[config.solver_type], config.eta)


class DPMpp3MSDE(DPMpp):
    """Three estimates, and noise."""

    def __init__(self, config: DPMpp3MSDESampler) -> None:
        super().__init__(3, heun, config.eta, config.lower_order_final)
