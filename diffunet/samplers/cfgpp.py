"""CFG++: the clean estimate is guided, the noise that is put back is not (2406.08070, alg 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from diffunet.samplers.base import D0, Denoise, Form, Leg, Noise, Point, Sampler, Step, X, apply, points
from diffunet.spec import CFGPlusPlusSampler

U0 = Form.of("U0")


class CFGPlusPlus(Sampler):
    """x_s = alpha_s D + sigma_s eps_u, where D is the guided estimate and eps_u = (x_t - alpha_t D_u) / sigma_t.

    The scale of the guidance is the paper's lambda, 0 to 1: 0 is DDIM on the unconditional model. D_u is the estimate
    that guidance leads away from, so that autoguidance works as well. Without guidance the two estimates are one, and
    this is DDIM.
    """

    order = 1

    def __init__(self, config: CFGPlusPlusSampler) -> None:
        self.config = config

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        return [self._leg(t, s) for t, s in pairwise(points(schedule, times))]

    def _leg(self, t: Point, s: Point) -> Leg:
        eps_u = (X - t.alpha * U0) / t.sigma
        return Leg.of(t, s, s.alpha * D0 + s.sigma * eps_u)

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        guided, origin = _pair(denoise, x, leg.t)
        return Step(apply(leg.end, {"x": x, "D0": guided, "U0": origin}), guided)


def _pair(denoise: Any, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The guided estimate and the one that guidance leads away from; one and the same where nothing is guided."""
    if hasattr(denoise, "pair"):
        guided, origin = denoise.pair(x, t)
        return guided, origin
    x0 = denoise(x, t)
    return x0, x0
