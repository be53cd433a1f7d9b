"""Restart sampling: over one stretch of noise, go up by fresh noise and down by the flow again (2306.14878)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from diffunet.samplers.base import Leg, Point, Sampler, X, Z, points
from diffunet.samplers.euler import point_of_ratio, ratio
from diffunet.samplers.heun import heun_leg
from diffunet.spec import RestartSampler
from diffunet.spec.samplers import RestartInterval

RHO = 7.0


def up(t: Point, s: Point) -> Leg:
    """y_s = y_t + sqrt(r_s^2 - r_t^2) z: noise alone (alg 1, line of the restart forward process)."""
    return Leg.of(t, s, s.alpha * (X / t.alpha + math.sqrt(ratio(s) ** 2 - ratio(t) ** 2) * Z), stages=())


class Restart(Sampler):
    """Heun's legs; where the grid comes nearest to the low end of an interval, `repeats` times up and down again.

    An interval is in r = sigma / alpha. Its way down has `steps` legs, evenly spaced in r^(1/7) (2206.00364, eq 5).
    What lies above the grid's first r is left out. The flow's own errors shrink with the grid; the noise contracts
    those that came before (theorem 1).
    """

    calls = 2

    def __init__(self, config: RestartSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        visited = points(schedule, times)
        inner, top = visited[1:], ratio(visited[0])
        # the clean image is no place to restart from: the grid's last r above 0 may stand for the low end
        noisy = [p for p in inner if p.sigma > 0]
        at: dict[float, list[RestartInterval]] = {}
        for interval in self.config.intervals if noisy else ():
            nearest = min(noisy, key=lambda p: abs(math.log(ratio(p) / interval.low)))
            at.setdefault(nearest.t, []).append(interval)
        legs = []
        for t, s in pairwise(visited):
            legs.append(heun_leg(t, s, t, X))
            for interval in at.get(s.t, ()):
                legs += self._again(schedule, s, interval, top)
        return legs

    def _again(self, schedule: Any, low: Point, interval: RestartInterval, top: float) -> Iterator[Leg]:
        """The legs of one interval whose low end is the grid's point `low`."""
        r_low, r_high = ratio(low), min(interval.high, top)
        if r_high <= r_low:
            return
        parts = [i / interval.steps for i in range(interval.steps)]
        roots = [r_high ** (1 / RHO) + u * (r_low ** (1 / RHO) - r_high ** (1 / RHO)) for u in parts]
        down = [*(point_of_ratio(schedule, root**RHO) for root in roots), low]
        for _ in range(interval.repeats):
            yield up(low, down[0])
            yield from (heun_leg(t, s, t, X) for t, s in pairwise(down))
