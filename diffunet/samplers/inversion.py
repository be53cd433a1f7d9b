"""DDIM run upwards: from an image to the noise that DDIM would make it of (2010.02502, section 4.3, eq 13-14)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.samplers.base import Form, Leg, Noise, Point, Sampler, Spacing, State, X, points
from diffunet.samplers.ddim import DDIM
from diffunet.spec import DDIMSampler


class InverseDDIM(Sampler):
    """The x_s above x_t from which DDIM's step leads to x_t.

    With w = x / sqrt(alpha^2 + sigma^2) and the angle u = atan2(sigma, alpha), DDIM's step is
    w_t = cos(d) w_s - sin(d) v_s, d = u_s - u_t, v = cos(u) eps - sin(u) D. As w_s stands on both sides of
    w_s = (w_t + sin(d) v(w_s)) / cos(d), it is approached in `iterations` rounds, each a call of the denoiser. The
    first takes v of the step before; out of the clean image, where no denoiser is asked, v = 0.
    """

    order = 1

    def __init__(self, iterations: int = 1) -> None:
        self.iterations = iterations

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        pairs = pairwise(points(schedule, times))
        return [self._leg(t, s, Form.of("V") if i else Form({})) for i, (t, s) in enumerate(pairs)]

    def _leg(self, t: Point, s: Point, v: Form) -> Leg:
        n_t, n_s = math.hypot(t.alpha, t.sigma), math.hypot(s.alpha, s.sigma)
        cos, sin = s.alpha / n_s, s.sigma / n_s
        d, stages = math.atan2(s.sigma, s.alpha) - math.atan2(t.sigma, t.alpha), []
        for k in range(self.iterations):
            w_s = (X / n_t + math.sin(d) * v) / math.cos(d)
            stages.append((s, n_s * w_s))
            v = (cos * w_s - Form.of(f"D{k}")) / sin
        w_s = (X / n_t + math.sin(d) * v) / math.cos(d)
        return Leg.of(t, s, n_s * w_s, keep={"V": v}, stages=stages)


def _visited(den: Any, steps: int, spacing: Spacing) -> list[float]:
    return DDIM(DDIMSampler()).times(den.schedule, steps, spacing)


def _last(states: Iterator[State]) -> Tensor:
    *_, state = states
    return state.x


@torch.no_grad()
def encode(den: Any, x0: Tensor, steps: int = 50, spacing: Spacing = None, iterations: int = 1, **cond: Any) -> Tensor:
    """The x_T of which `decode` makes x0 again, all but for an error that falls with `steps` and with `iterations`.

    Args:
        den: a denoiser; it must be deterministic.
        x0: clean images (N, C, *S).
        steps: as for `generate`; a call of the denoiser each, times `iterations`.
        spacing: the grid, as for `generate`.
        iterations: rounds that each step takes to meet DDIM's own.
        cond: class_labels (N,), ...: passed to the denoiser.

    Returns:
        x (N, C, *S) at the grid's first time. Divided by schedule.sigma(1) it is `generate`'s unit noise where that
        time is 1, as under trailing spacing.

    Raises:
        ConfigError: an unknown spacing, too many steps, or no iterations.
    """
    if iterations < 1:
        raise ConfigError(f"iterations = {iterations} but a step is approached in at least 1")
    times = _visited(den, steps, spacing)[::-1]
    return _last(InverseDDIM(iterations).walk(lambda x, t: den(x, t, **cond), den.schedule, x0, times, Noise([])))


@torch.no_grad()
def decode(den: Any, x_T: Tensor, steps: int = 50, spacing: Spacing = None, **cond: Any) -> Tensor:
    """The images (N, C, *S) that DDIM makes of x_T (N, C, *S), which stands at the grid's first time.

    Raises:
        ConfigError: an unknown spacing, or too many steps.
    """
    times = _visited(den, steps, spacing)
    return _last(DDIM(DDIMSampler()).walk(lambda x, t: den(x, t, **cond), den.schedule, x_T, times, Noise([])))
