"""What a sampler is: a frozen step rule x_t -> x_s on a grid of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffunet.schedules import Schedule

Denoise = Callable[[Tensor, float], Tensor]


class Step(NamedTuple):
    """Result of one step: the next x, the clean estimate on the way, and what a multistep method remembers."""

    x: Tensor
    x0: Tensor
    history: Any = None


class Start(NamedTuple):
    """How a sampler begins: times it visits (the last is where it ends), size of the first noise, first history."""

    times: Sequence[float]
    scale: float
    history: Any = None


def levels(schedule: Any, t: float) -> tuple[float, float]:
    """alpha and sigma at t as numbers."""
    return float(schedule.alpha(t)), float(schedule.sigma(t))


class Noise:
    """Unit noise with one generator per image, on the CPU, so that an image never depends on its batch or device.

    Image i of seed s starts as `torch.randn(shape, generator=torch.Generator().manual_seed(s))`.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Fresh noise (N, *shape) in float32."""
        rows = [torch.randn(tuple(shape), generator=generator) for generator in self.generators]
        return torch.stack(rows).to(device)

    def like(self, x: Tensor) -> Tensor:
        """Fresh noise shaped as x (N, C, *S), on its device and in its dtype."""
        return self(x.shape[1:], x.device).to(x.dtype)


class Sampler:
    """A step rule. `order` is the order of convergence that it claims; stochastic rules claim none."""

    order: ClassVar[int | None] = None

    def start(self, schedule: Schedule, steps: int, spacing: str | None) -> Start:
        """Grid and first noise: sigma(1) eps on every schedule; one that brings no grid of its own is cut evenly."""
        own = getattr(schedule, "grid", None)
        times = own(steps, spacing).tolist() if own else [1 - i / steps for i in range(steps + 1)]
        return Start(times, float(schedule.sigma(1.0)))

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: float, s: float, noise: Noise, history: Any = None
    ) -> Step:
        """Go from x_t (B, C, *S) at t to s < t; `denoise(x_t, t)` gives the clean estimate."""
        raise AssertionError("a sampler must say its step")
