"""Arc: this house's own default, an Adams method with a free corrector along the circle of signal and noise.

With alpha = n cos phi, sigma = n sin phi and y = x_t / n (n = 1 where alpha^2 + sigma^2 = 1), the probability flow is

    dy / dphi = v = cos(phi) e - sin(phi) D        D the clean estimate, e = (y - cos(phi) D) / sin(phi) the noise

(2202.00512, appendix D). phi runs from 0 to pi / 2 at most, so no end of a process is at infinity: neither the clean
one, where lambda is, nor the noisy one, where sigma / alpha may be. D and e each get the Lagrange polynomial of the
last evaluations in u = arctan(2 tan phi), and the integral is exact:

    y_s = cos(phi_s) D_0 + sin(phi_s) e_0 + sum_i [a_i (D_i - D_0) + b_i (e_i - e_0)]
    a_i = -int sin(phi) l_i(u) dphi,  b_i = int cos(phi) l_i(u) dphi

which is DDIM's rotation and what bends it. Where D and e are constant (one single image) any number of steps is exact.
Two evaluations predict; once the next one is known, three correct, as in UniPC, at no further call: third order. The
last leg extrapolates to phi = 0, so no call is spent at the smallest noise. The grid is `arc` of `schedules.grids`.

Degrees, u and grid were chosen once, on Gaussian mixtures of 1 to 128 dimensions under two schedules, and are the same
for every number of steps; `benchmarks/samplers.md` judges them on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet.samplers.base import D0, Form, Leg, Point, Sampler, X, points
from diffunet.samplers.exponential import lagrange_weights
from diffunet.spec import ArcSampler

EMPTY = Form({})


def u(phi: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variable of the polynomials: quick where sigma is half of alpha, where images take their shape."""
    return np.arctan2(2 * np.sin(phi), np.cos(phi))


class Seen(NamedTuple):
    """An evaluation: its angle, the clean estimate and the noise."""

    phi: float
    D: Form
    e: Form

    @classmethod
    def at(cls, point: Point, x: Form, D: Form) -> Seen:
        """From x_t and its estimate."""
        return cls(math.atan2(point.sigma, point.alpha), D, (x - point.alpha * D) / point.sigma)


def bend(a: float, b: float, seen: Sequence[Seen]) -> Form:
    """sum_i [a_i (D_i - D_0) + b_i (e_i - e_0)] from angle a to b: what the rotation with the first of them lacks."""
    if len(seen) == 1:
        return EMPTY
    nodes = u(np.array([one.phi for one in seen])).tolist()
    of_D = lagrange_weights(nodes, a, b, lambda phi: -np.sin(phi), u)
    of_e = lagrange_weights(nodes, a, b, np.cos, u)
    first, *others = seen
    parts = [
        a_i * (one.D - first.D) + b_i * (one.e - first.e)
        for a_i, b_i, one in zip(of_D[1:], of_e[1:], others, strict=True)
    ]
    return sum(parts, EMPTY)


class Arc(Sampler):
    """Predicts with two evaluations, corrects with three."""

    order = 3
    spacing = "arc"

    def __init__(self, config: ArcSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = points(schedule, times)
        return [self._leg(grid, i) for i in range(len(grid) - 1)]

    def _leg(self, grid: Sequence[Point], i: int) -> Leg:
        t, s = grid[i : i + 2]
        past = [Seen.at(grid[i - k], Form.of(f"P{k}"), Form.of(f"H{k}")) for k in range(1, min(i, 2) + 1)]
        now, end = Seen.at(t, X, D0), math.atan2(s.sigma, s.alpha)
        # P1 and P2 are predictions; what the corrector would have added to x comes along on the next leg
        late = self._late(now, past) if past else EMPTY
        y = late + bend(now.phi, end, [now, *past[:1]])
        keep = {"P1": X, "H1": D0} | ({"P2": Form.of("P1"), "H2": Form.of("H1")} if i else {})
        return Leg.of(t, s, s.alpha * D0 + s.sigma * now.e + math.hypot(s.alpha, s.sigma) * y, keep)

    @staticmethod
    def _late(now: Seen, past: Sequence[Seen]) -> Form:
        """Corrector less predictor of the leg that ended now."""
        start, *before = past
        return bend(start.phi, now.phi, [start, now, *before]) - bend(start.phi, now.phi, past)
