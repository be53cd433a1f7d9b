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
for every number of steps; `python -m benchmarks.samplers` judges them on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffunet.samplers.base import Form, Leg, Point, Sampler, points
from diffunet.samplers.exponential import legendre
from diffunet.spec import ArcSampler

Array = NDArray[np.float64]
QUADRATURE = 24  # points: over a quarter of a circle at most, float64's own precision
# what an evaluation is called: x and D on its own leg, one leg later, two legs later
NAMES = (("x", "D0"), ("P1", "H1"), ("P2", "H2"))


def u(phi: Array) -> Array:
    """The variable of the polynomials: quick where sigma is half of alpha, where images take their shape."""
    return np.arctan2(2 * np.sin(phi), np.cos(phi))


def bends(start: Array, end: Array, nodes: Sequence[Array]) -> list[tuple[Array, Array]]:
    """a_i and b_i of each node but the first, from angle `start` to `end`; every array has an entry for each leg."""
    xi, omega = legendre(QUADRATURE)
    half = ((end - start) / 2)[:, None]
    phi = ((end + start) / 2)[:, None] + half * xi
    here, at = u(phi), [u(node)[:, None] for node in nodes]
    found = []
    for i, node in enumerate(at[1:], 1):
        others = [other for j, other in enumerate(at) if j != i]
        polynomial = np.prod([(here - other) / (node - other) for other in others], axis=0)
        weight = omega * half * polynomial
        found.append((-(weight * np.sin(phi)).sum(axis=1), (weight * np.cos(phi)).sum(axis=1)))
    return found


class Arc(Sampler):
    """Predicts with two evaluations, corrects with three."""

    order = 3
    spacing = "arc"

    def __init__(self, config: ArcSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        grid = points(schedule, times)
        a, b = self._weights(np.array([math.atan2(point.sigma, point.alpha) for point in grid]))
        return [self._leg(grid, i, a[i].tolist(), b[i].tolist()) for i in range(len(grid) - 1)]

    @staticmethod
    def _weights(phi: Array) -> tuple[Array, Array]:
        """Of each leg: what D and e of this evaluation, the one before and the one before that add to a rotation."""
        legs = len(phi) - 1
        a, b = np.zeros((legs, 3)), np.zeros((legs, 3))

        def add(first: int, base: int, node: int, weights: tuple[Array, Array], sign: float = 1.0) -> None:
            """a (D_node - D_base) + b (e_node - e_base), on leg `first` and the next ones."""
            for total, w in zip((a, b), weights, strict=True):
                total[first : first + len(w), node] += sign * w
                total[first : first + len(w), base] -= sign * w

        if legs > 1:  # the predictor: a line through this evaluation and the last
            (line,) = bends(phi[1:-1], phi[2:], [phi[1:-1], phi[:-2]])
            add(1, 0, 1, line)
            # the corrector on the second leg: a line through both ends of the first; its predictor was a rotation
            (line,) = bends(phi[:1], phi[1:2], [phi[:1], phi[1:2]])
            add(1, 1, 0, line)
        if legs > 2:  # later: a parabola through three, less the line that had predicted
            newest, oldest = bends(phi[1:-2], phi[2:-1], [phi[1:-2], phi[2:-1], phi[:-3]])
            (line,) = bends(phi[1:-2], phi[2:-1], [phi[1:-2], phi[:-3]])
            add(2, 1, 0, newest)
            add(2, 1, 2, oldest)
            add(2, 1, 2, line, -1.0)
        return a, b

    @staticmethod
    def _leg(grid: Sequence[Point], i: int, a: list[float], b: list[float]) -> Leg:
        t, s = grid[i : i + 2]
        n = math.hypot(s.alpha, s.sigma)
        a, b = [n * w for w in a], [n * w for w in b]
        a[0], b[0] = a[0] + s.alpha, b[0] + s.sigma  # DDIM
        terms: dict[str, float] = {}
        for k in range(min(i, 2) + 1):
            x, D = NAMES[k]
            seen = grid[i - k]
            # e = (x - alpha D) / sigma; P1 and P2 are x as it was predicted
            terms[x], terms[D] = b[k] / seen.sigma, a[k] - b[k] * seen.alpha / seen.sigma
        keep = {"P1": "x", "H1": "D0"} | ({"P2": "P1", "H2": "H1"} if i else {})
        return Leg.of(t, s, Form(terms), {name: Form.of(of) for name, of in keep.items()})
