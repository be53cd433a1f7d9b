"""Time grids: which times the steps of a sampler visit. Each is a function (schedule, steps) -> (steps,) float64.

All begin at t = 1 and fall; the last time, 0, is added by `Schedule.grid`. Grids over noise levels are stated in
r = sigma / alpha and run from r(t_max) to r(t_min); where alpha(1) = 0, r(1) is infinite, and the first time is still
t = 1, counted as if it stood at the level of t_max.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.schedules.optimised import levels as optimised_levels
from diffunet.table import Table

if TYPE_CHECKING:
    from diffunet.schedules.base import Schedule

RHO = 7.0


def leading(schedule: Schedule, steps: int) -> Tensor:
    """Indices 0, c, 2c, ... with c = T // steps (DDIM's own code, 2010.02502); it starts below t = 1."""
    T = schedule.config.T
    return (torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (T // steps) + 1) / T


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """Every (T / steps)-th index, counted from the noisy end, rounded (2305.08891, table 2)."""
    T = schedule.config.T
    return ((torch.arange(steps, 0, -1, dtype=torch.float64) * (T / steps)).round() - 1 + 1) / T


def linspace(schedule: Schedule, steps: int) -> Tensor:
    """Indices evenly from T - 1 to 0, rounded (improved DDPM's respacing, 2102.09672, section 4)."""
    T = schedule.config.T
    return (torch.linspace(T - 1, 0, steps, dtype=torch.float64).round() + 1) / T


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """t = i / steps; from 1 to t_min where that would ask below t_min."""
    t = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    return t if t[-1] >= schedule.t_min else torch.linspace(1, schedule.t_min, steps, dtype=torch.float64)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """sqrt(t) evenly from 1 to sqrt(t_min) (DDIM's second choice, 2010.02502, appendix D.2)."""
    return torch.linspace(1, schedule.t_min**0.5, steps, dtype=torch.float64) ** 2


def karras(schedule: Schedule, steps: int) -> Tensor:
    """r^(1/7) evenly (2206.00364, eq 5, rho = 7)."""
    high, low = (r ** (1 / RHO) for r in _ends(schedule))
    return _times(schedule, torch.linspace(high, low, steps, dtype=torch.float64) ** RHO)


def logsnr(schedule: Schedule, steps: int) -> Tensor:
    """logSNR evenly (DPM-Solver, 2206.00927, section 3.3).

    logSNR = -2 log r, so this is the geometric grid of r, which k-diffusion and diffusers call exponential.
    """
    return _times(schedule, _geometric(schedule, steps))


def blended(schedule: Schedule, steps: int) -> Tensor:
    """Geometric mean of r on the grids uniform and logsnr: between care for the outline and for the detail."""
    alpha, sigma = schedule.alpha_sigma(uniform(schedule, steps).clamp(max=schedule.t_max))
    return _times(schedule, (sigma / alpha * _geometric(schedule, steps)).sqrt())


def optimised(schedule: Schedule, steps: int) -> Tensor:
    """The grid of least DDIM error on Gaussian data, by our own search; see `schedules.optimised`."""
    return _times(schedule, optimised_levels(*_ends(schedule), steps))


def arc(schedule: Schedule, steps: int) -> Tensor:
    """arctan(r / 1.5) falls as (1 - i / steps)^p: the grid of the sampler of this name, whose last leg is a long one.

    p = 3/2, or less where many steps would ask below t_min.
    """
    high, low = (math.atan(r / 1.5) for r in _ends(schedule))
    high = high if schedule.t_max == 1 else math.pi / 2
    p = min(1.5, math.log(high / low) / math.log(steps)) if steps > 1 else 1.5
    left = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    return _times(schedule, 1.5 * torch.tan(high * left**p))


def custom(times: Sequence[float]) -> Tensor:
    """The grid of a list: falling times in [0, 1]; a last 0 is added where it is not there.

    Raises:
        ConfigError: no time above 0, times outside [0, 1], or times that do not fall.
    """
    grid = torch.tensor([float(t) for t in times], dtype=torch.float64)
    if not len(grid) or grid[-1] != 0:
        grid = torch.cat([grid, torch.zeros(1, dtype=torch.float64)])
    inside = bool(((grid >= 0) & (grid <= 1)).all())
    if len(grid) < 2 or not inside or not bool((grid.diff() < 0).all()):
        said = ", ".join(f"{float(t):g}" for t in times)
        raise ConfigError(f"spacing = [{said}] but a list of times must fall from at most 1 to above 0; sort it so")
    return grid


def _ends(schedule: Schedule) -> tuple[float, float]:
    """r at the noisy and at the clean end of what is asked of a network."""
    high, low = ((schedule.sigma(t) / schedule.alpha(t)) for t in (schedule.t_max, schedule.t_min))
    return high, low


def _geometric(schedule: Schedule, steps: int) -> Tensor:
    high, low = (torch.tensor(r, dtype=torch.float64).log().item() for r in _ends(schedule))
    return torch.linspace(high, low, steps, dtype=torch.float64).exp()


def _times(schedule: Schedule, r: Tensor) -> Tensor:
    """Times of falling levels; the first is t = 1 itself."""
    t = schedule.t_of_sigma(r)
    t[0] = 1.0
    return t


GRIDS: Table[Callable[[Schedule, int], Tensor]] = Table(
    "spacing",
    {
        "leading": leading,
        "trailing": trailing,
        "linspace": linspace,
        "uniform": uniform,
        "quadratic": quadratic,
        "karras": karras,
        "logsnr": logsnr,
        "blended": blended,
        "optimised": optimised,
        "arc": arc,
    },
)
CONTINUOUS = ("uniform", "quadratic", "karras", "logsnr", "blended", "optimised", "arc")  # the others need indices
