"""Dormand and Prince's pair of orders 5 and 4 with a step size of its own for each image.

The frame is w = x / sqrt(alpha^2 + sigma^2) against the angle u = atan2(sigma, alpha), in which every schedule is
w = cos(u) x_0 + sin(u) eps, from u = pi / 2 without signal down to 0, and the probability flow is smooth and finite:
dw/du = -sin(u) D + cos(u) eps = (cos(u) w - D) / sin(u), as eps = (w - cos(u) D) / sin(u).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffunet.errors import ConfigError, NumericError
from diffunet.samplers.base import Denoise, Noise, Sampler, State
from diffunet.spec import RK45Sampler

# Dormand and Prince (1980), table 2; also Hairer, Norsett and Wanner, Solving ODEs I, table II.5.2
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR = tuple(fifth - fourth for fifth, fourth in zip((*STAGES[6], 0), FOURTH, strict=True))
# how the next step follows from the last one's error (Hairer, Norsett and Wanner, section II.4)
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


class Place(NamedTuple):
    """Where each image stands: angle u, w there, the slope dw/du there, the estimate behind it, the next step h > 0.

    Angles and steps are numbers, one per image: vectors of them would round by their place in the batch.
    """

    u: list[float]
    w: Tensor
    slope: Tensor
    x0: Tensor
    h: list[float]


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """One number per image, shaped to multiply (B, C, *S)."""
    return torch.tensor(values, dtype=torch.float64).to(like).reshape(-1, *[1] * (like.ndim - 1))


def rms(values: Tensor) -> list[float]:
    """Root mean square of each image, summed image by image: no image's depends on its batch."""
    rows = [row.double().square().mean() for row in values]
    return torch.stack(rows).sqrt().tolist() if rows else []


def combine(row: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The sum of slopes that a row of the table stands for."""
    terms = [factor * slope for factor, slope in zip(row, slopes, strict=True) if factor]
    return sum(terms[1:], terms[0])


class Flow:
    """dw/du of a denoiser that is asked about each image at its own time."""

    def __init__(self, denoise: Any, schedule: Any) -> None:
        if not hasattr(schedule, "t_of_sigma"):
            raise ConfigError(
                f"{type(schedule).__name__} has no t_of_sigma(r), the time of sigma / alpha, which rk45 needs"
            )
        self.denoise, self.schedule, self.calls = denoise, schedule, 0

    def angle(self, t: float) -> float:
        """u of a time."""
        return math.atan2(self.schedule.sigma(t), self.schedule.alpha(t))

    def time(self, u: float) -> float:
        """The time of u; at pi / 2 there is no signal, which is t = 1."""
        return float(self.schedule.t_of_sigma(math.tan(u))) if u < math.pi / 2 else 1.0

    def norm(self, t: float) -> float:
        """|x_t| / |w|."""
        return math.hypot(self.schedule.alpha(t), self.schedule.sigma(t))

    def __call__(self, u: Sequence[float], w: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and estimate at w (B, C, *S) and an angle for each image."""
        times = [self.time(angle) for angle in u]
        x = column([self.norm(t) for t in times], w) * w
        x0 = self.denoise(x, torch.tensor(times, dtype=torch.float64, device=w.device))
        self.calls += 1
        cos, sin = (column([f(angle) for angle in u], w) for f in (math.cos, math.sin))
        return (cos * w - x0) / sin, x0


class RK45(Sampler):
    """An attempt costs six calls for the whole batch; each image takes its own step, and accepts or repeats it alone.

    Its error is kept below `tolerance` (1 + |w|), root mean square over the image. Onto the clean image the flow ends
    at the schedule's `t_min`, and the estimate there is the image. The grid's inner times only pace the progress: a
    state comes when all images have passed the next of them, and shows those ahead where they are. So `steps` changes
    nothing but how often one looks.

    Raises:
        ConfigError: a schedule without t_of_sigma.
        NumericError: values that are not finite, or more than `max_calls` calls.
    """

    calls = 6

    def __init__(self, config: RK45Sampler) -> None:
        self.config = config

    def walk(self, denoise: Denoise, schedule: Any, x: Tensor, times: Sequence[float], noise: Noise) -> Iterator[State]:
        flow, steps = Flow(denoise, schedule), len(times) - 1
        clean = schedule.sigma(times[-1]) == 0
        last = min(schedule.t_min, times[0]) if clean else times[-1]
        start, end = flow.angle(times[0]), flow.angle(last)
        # inner times that lie beyond the last are passed with it
        pace = [abs(flow.angle(max(t, last) if clean else t) - start) for t in times[1:]]
        u, w = [start] * len(x), x / flow.norm(times[0])
        first = 0.2 * self.config.tolerance**0.2 * abs(end - start)
        place, done = Place(u, w, *flow(u, w), [first] * len(x)), 0
        while any(angle != end for angle in place.u):
            place = self.attempt(flow, place, end)
            way = min(abs(angle - start) for angle in place.u)
            if (passed := sum(part <= way for part in pace[:-1])) > done:
                done = passed
                yield State(done, steps, times[done], self._x(flow, place), place.x0)
        yield State(steps, steps, times[-1], place.x0 if clean else self._x(flow, place), place.x0)

    @staticmethod
    def _x(flow: Flow, place: Place) -> Tensor:
        return column([flow.norm(flow.time(u)) for u in place.u], place.w) * place.w

    def attempt(self, flow: Flow, place: Place, end: float) -> Place:
        """Try h for every image, and keep what was good enough; who has arrived stays."""
        left = [end - u for u in place.u]
        h = [math.copysign(min(size, abs(rest)), rest) for size, rest in zip(place.h, left, strict=True)]
        slopes, w, x0, step = [place.slope], place.w, place.x0, column(h, place.w)
        for node, row in zip(NODES[1:], STAGES[1:], strict=True):
            w = place.w + step * combine(row, slopes)
            slope, x0 = flow([u + node * size for u, size in zip(place.u, h, strict=True)], w)
            slopes.append(slope)
        scale = self.config.tolerance * (1 + torch.maximum(place.w.abs(), w.abs()))
        errors = rms(step * combine(ERROR, slopes) / scale)
        self._check(flow, errors)
        good = [error <= 1 for error in errors]
        factors = [min(GROW, max(SHRINK, SAFETY * error**-0.2)) if error else GROW for error in errors]
        arrived = [g and abs(size) >= abs(rest) for g, size, rest in zip(good, h, left, strict=True)]
        u = [
            end if there else u + size if g else u for there, u, size, g in zip(arrived, place.u, h, good, strict=True)
        ]
        kept = torch.tensor(good, device=w.device).reshape(-1, *[1] * (w.ndim - 1))
        w, slope, x0 = (torch.where(kept, new, old) for new, old in zip((w, slopes[-1], x0), place[1:4], strict=True))
        return Place(u, w, slope, x0, [abs(size) * factor for size, factor in zip(h, factors, strict=True)])

    def _check(self, flow: Flow, errors: Sequence[float]) -> None:
        if bad := sum(not math.isfinite(error) for error in errors):
            raise NumericError(f"{bad} of {len(errors)} images are not finite; the weights or the input are broken")
        if flow.calls > self.config.max_calls:
            raise NumericError(
                f"rk45 made {flow.calls} calls without reaching the end: raise `tolerance` or `max_calls`, "
                "or take a sampler of fixed steps"
            )
