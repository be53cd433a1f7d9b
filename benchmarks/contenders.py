"""Who is compared, and on what: samplers with a budget of network calls; mixtures and trained models as targets."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffunet import Schedule, compat, generate
from diffunet.analysis.convergence import gaussian_denoiser
from diffunet.errors import ConfigError

KARRAS = {"use_karras_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}
# every scheduler of diffusers that can drive a plain denoiser, as it comes; and the options that its users know best
DIFFUSERS: dict[str, tuple[dict[str, Any], ...]] = {
    "DDPM": ({},),
    "DDPMParallel": ({},),
    "DDIM": (
        {},
        TRAILING,
    ),
    "DDIMParallel": ({},),
    "CogVideoXDDIM": ({},),
    "PNDM": ({}, TRAILING, {"skip_prk_steps": True}),
    "LMSDiscrete": ({}, TRAILING, KARRAS),
    "EulerDiscrete": ({}, TRAILING, KARRAS),
    "EulerAncestralDiscrete": ({},),
    "HeunDiscrete": ({}, KARRAS),
    "KDPM2Discrete": ({}, KARRAS),
    "KDPM2AncestralDiscrete": ({},),
    "DPMSolverSinglestep": ({}, KARRAS),
    "DPMSolverMultistep": ({}, TRAILING, KARRAS, {"use_lu_lambdas": True}, {"solver_order": 3} | KARRAS),
    "DEISMultistep": ({}, TRAILING, KARRAS),
    "UniPCMultistep": ({}, TRAILING, KARRAS, {"solver_order": 3} | TRAILING),
    "SASolver": ({},),
}
OURS = ("arc", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "lms", "heun", "dpm_solver_3", "ddpm", "dpmpp_2m_sde")
# the same steps under another name, as their equal figures on the mixtures show
TWINS = ("DDPMParallelScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler")
STOCHASTIC = ("DDPM", "CogVideoXDPM", "Ancestral", "SDE", "SASolver", "ddpm", "_sde")


def own_spacing(name: str) -> dict[str, Any]:
    """The spacing that a scheduler of diffusers has where nobody asks for one."""
    made = getattr(compat.diffusers(), f"{name}Scheduler")
    spacing = inspect.signature(made.__init__).parameters.get("timestep_spacing")
    return {} if spacing is None else {"timestep_spacing": spacing.default}


def contenders() -> dict[str, Any]:
    """Name -> sampler, as `generate` takes it."""
    theirs = {
        f"{name}Scheduler {' '.join(f'{k}={v}' for k, v in options.items())}".strip(): {
            "kind": "diffusers",
            "scheduler": f"{name}Scheduler",
            "options": own_spacing(name) | options,
        }
        for name, variants in DIFFUSERS.items()
        for options in variants
    }
    return {name: {"kind": name} for name in OURS} | theirs


def deterministic(name: str) -> bool:
    """Whether it follows the probability flow, so that an exact end is known for each start."""
    return not any(part in name for part in STOCHASTIC)


def calls(sampler: dict[str, Any], schedule: Schedule, steps: int) -> int:
    """Network calls of so many steps, counted."""
    exact, count = gaussian_denoiser(schedule), 0

    class Counting:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: Tensor, t: Any, **cond: Any) -> Tensor:
            nonlocal count
            count += 1
            return exact(x, t)

    generate(Counting(), (1, 1, 4), sampler, steps)
    return count


@cache
def _calls(name: str, schedule: Schedule, steps: int) -> float:
    try:
        return calls(contenders()[name], schedule, steps)
    except (ConfigError, ValueError):  # a number of steps that this scheduler cannot make
        return math.inf


def steps_of(name: str, schedule: Schedule, budget: int) -> int | None:
    """The most steps that need no more than `budget` calls; None where even the fewest need more."""
    steps = budget
    while steps > 0:
        needed = _calls(name, schedule, steps)
        if needed <= budget:
            return steps
        # a method of two calls a step begins its search at half of the budget
        steps = min(steps - 1, math.ceil(budget * steps / needed)) if math.isfinite(needed) else steps - 1
    return None


class Blobs:
    """A mixture of round Gaussians in d dimensions, drawn from a seed; overall deviation 0.6; an exact denoiser."""

    def __init__(self, d: int, seed: int, schedule: Schedule) -> None:
        self.schedule, g = schedule, torch.Generator().manual_seed(seed)
        modes = int(torch.randint(3, 9, (), generator=g))
        weights = torch.rand(modes, generator=g, dtype=torch.float64) + 0.3
        self.w = weights / weights.sum()
        means = torch.randn(modes, d, generator=g, dtype=torch.float64)
        deviations = 0.1 + 0.3 * torch.rand(modes, generator=g, dtype=torch.float64)
        centred = means - self.w @ means
        total = (self.w @ centred.square().mean(dim=1) + self.w @ deviations.square()).sqrt()
        self.m, self.s = means * 0.6 / total, deviations * 0.6 / total

    def estimate(self, x: Tensor, r: float) -> Tensor:
        """E[x_0 | x_0 + r eps = x] of x (B, d)."""
        total = self.s**2 + r**2
        squares = x.square().sum(dim=1)[:, None] - 2 * x @ self.m.T + self.m.square().sum(dim=1)
        p = (self.w.log() - squares / (2 * total) - x.shape[1] / 2 * total.log()).softmax(dim=1)
        keep = self.s**2 / total
        return (p * (1 - keep)) @ self.m + (p @ keep)[:, None] * x

    def __call__(self, x_t: Tensor, t: float, **cond: Any) -> Tensor:
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.estimate(x_t.double() / a, s / a).to(x_t.dtype)

    def draw(self, n: int, seed: int) -> Tensor:
        """(n, d) true samples."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.w, n, replacement=True, generator=g)
        return self.m[k] + self.s[k][:, None] * torch.randn(n, self.m.shape[1], generator=g, dtype=torch.float64)

    def flow(self, x: Tensor, steps: int = 600) -> Tensor:
        """Where the probability flow leads x_1 (B, d): Runge and Kutta's fourth order in log r, then the mean."""
        a, s, low = self.schedule.alpha(1.0), self.schedule.sigma(1.0), 3e-4
        high = math.log(s / a)
        h = (math.log(low) - high) / steps

        def slope(x: Tensor, log_r: float) -> Tensor:
            return x - self.estimate(x, math.exp(log_r))

        x = x / a
        for i in range(steps):
            log_r = high + i * h
            k_1 = slope(x, log_r)
            k_2 = slope(x + h / 2 * k_1, log_r + h / 2)
            k_3 = slope(x + h / 2 * k_2, log_r + h / 2)
            x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + slope(x + h * k_3, log_r + h))
        return self.estimate(x, low)


def sliced_wasserstein(a: Tensor, b: Tensor, slices: int = 256) -> float:
    """Root mean square difference of the sorted projections of a and b (n, d) on the same random directions."""
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], slices, generator=g, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    return float(((a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values).square().mean().sqrt())
