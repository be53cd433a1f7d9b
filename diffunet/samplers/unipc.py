"""UniPC: DPM-Solver++'s predictor, and a corrector that costs no call (2302.04867, algorithms 1 and 2, for x0).

The corrector repeats the last leg once its end has an estimate: x_t is written anew from x and the estimates at the
leg's start, now with D(x_t) as one of them. That estimate is made at the predicted x_t and not made again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, points
from diffunet.samplers.exponential import Evaluation, data_correction, euler_data, finite, keep, legs_left, past
from diffunet.spec import UniPCSampler

B = {"bh1": lambda h: h, "bh2": lambda h: -math.expm1(-h)}


class UniPC(Sampler):
    """UniP of `config.order` estimates and UniC with one more; of order `config.order` + 1 with the corrector.

    With two points the weight of the only difference is B(h) / 2, as in the paper's code; with more, the polynomial in
    lambda is integrated exactly and B(h) has no influence.
    """

    def __init__(self, config: UniPCSampler) -> None:
        self.config = config
        self.order = config.order + config.corrector

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = points(schedule, times)
        return [self._leg(grid, i) for i in range(len(grid) - 1)]

    def _leg(self, grid: Sequence[Point], i: int) -> Leg:
        t, s = grid[i : i + 2]
        x = self._corrected(grid, i) if self.config.corrector and i > 0 and finite(grid[i - 1]) else X
        end = euler_data(x, D0, t, s) + self._added(t, s, [(t, D0), *past("H", grid, i, self._used(grid, i) - 1)])
        return Leg.of(t, s, end, {**keep("H", D0, i, self.config.order), "x1": x})

    def _corrected(self, grid: Sequence[Point], i: int) -> Form:
        """x at grid[i], written from the last leg's start with D0 as one estimate more than its predictor had."""
        before, now = grid[i - 1 : i + 1]
        start, *earlier = past("H", grid, i, self._used(grid, i - 1))
        return euler_data(Form.of("x1"), start[1], before, now) + self._added(before, now, [start, (now, D0), *earlier])

    def _used(self, grid: Sequence[Point], i: int) -> int:
        """Estimates that the predictor of leg i has."""
        left = legs_left(grid, i) if self.config.lower_order_final else self.config.order
        return min(self.config.order, left, i + 1)

    def _added(self, t: Point, s: Point, evaluations: Sequence[Evaluation]) -> Form:
        """What all estimates but the first, at t, add to a step with D constant."""
        (_, D_0), *others = evaluations
        others = [(point, form) for point, form in others if finite(point)]
        if len(others) != 1 or not finite(t, s):
            return data_correction(t, s, evaluations)
        ((other, D_1),) = others
        h = s.lam - t.lam
        r = (other.lam - t.lam) / h
        return s.alpha * B[self.config.variant](h) / (2 * r) * (D_1 - D_0)
