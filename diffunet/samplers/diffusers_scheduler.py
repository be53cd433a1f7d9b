"""Adapter: any diffusers scheduler drives our denoiser.

The scheduler is built from the run's own table of betas (several of diffusers' classes default to another one), its
input is scaled by `scale_model_input` and its first noise by `init_noise_sigma`, which the unconditional pipelines
leave out. Each call of `generate` gets a scheduler of its own: they keep state and are not safe to share.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from diffunet import compat
from diffunet.errors import ConfigError
from diffunet.samplers.base import Denoise, Noise, Sampler, Spacing, State
from diffunet.schedules import Discrete, Schedule
from diffunet.spec import DiffusersSampler
from diffunet.table import choose


class DiffusersScheduler(Sampler):
    """Runs the diffusers class named by the spec, e.g. `UniPCMultistepScheduler`, in its own default options.

    Raises:
        ConfigError: no such scheduler in diffusers, or a schedule that is not a discrete table.
    """

    def __init__(self, config: DiffusersSampler) -> None:
        self.config = config
        module = compat.diffusers()
        # diffusers loads its classes lazily, so they are known by name only
        names = [n for n in dir(module) if n.endswith("Scheduler") and not n.startswith(("Flax", "Scheduler"))]
        self.scheduler_class = getattr(module, choose("diffusers scheduler", config.scheduler, names))

    def times(self, schedule: Schedule, steps: int, spacing: Spacing = None) -> list[float]:
        return self._begin(schedule, steps, spacing)[1]

    def _begin(self, schedule: Schedule, steps: int, spacing: Spacing) -> tuple[Any, list[float]]:
        """A scheduler of our table, and the times that it visits."""
        if not isinstance(schedule, Discrete):
            raise ConfigError(f"diffusers schedulers need a discrete schedule, not '{schedule.config.kind}'")
        schedule.grid(steps, spacing)  # refuses steps and spacings that diffusers would meet later, less clearly
        wanted = {
            "num_train_timesteps": schedule.config.T,
            "trained_betas": schedule.betas().float().numpy(),
            "prediction_type": "epsilon",
            "clip_sample": False,  # the denoiser's own clip is the only one
            "timestep_spacing": spacing or schedule.default_spacing,
        }
        known = inspect.signature(self.scheduler_class.__init__).parameters
        missing = [name for name in ("trained_betas", "prediction_type") if name not in known]
        if missing:
            raise ConfigError(f"{self.config.scheduler} takes no {' or '.join(missing)}: it cannot drive this model")
        scheduler = self.scheduler_class(**{k: v for k, v in wanted.items() if k in known})
        scheduler.set_timesteps(steps)
        k = [float(v) for v in scheduler.timesteps]
        if min(k) < 0:  # np.arange(T, 0, -T / steps), one too long by rounding: 61, 103, 121, ... of 1000
            raise ConfigError(
                f"diffusers' {wanted['timestep_spacing']} grid of {steps} steps leaves the table by a rounding fault; "
                "take another number of steps, or another spacing"
            )
        return scheduler, [(v + 1) / schedule.config.T for v in k] + [0.0]

    def run(
        self, denoise: Denoise, schedule: Schedule, eps: Tensor, steps: int, spacing: Spacing, noise: Noise
    ) -> Iterator[State]:
        scheduler, times = self._begin(schedule, steps, spacing)
        x = float(scheduler.init_noise_sigma) * eps
        stochastic = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": noise.generators} if stochastic else {}
        for i, (k, t) in enumerate(zip(list(scheduler.timesteps), times, strict=False)):
            x_in = scheduler.scale_model_input(x, k)
            x0 = denoise(x_in, t)
            guess = (x_in - schedule.alpha(t) * x0) / schedule.sigma(t)
            x = scheduler.step(guess, k, x, **options).prev_sample
            yield State(i + 1, len(times) - 1, times[i + 1], x, x0)

    def walk(
        self, denoise: Denoise, schedule: Schedule, x: Tensor, times: Sequence[float], noise: Noise
    ) -> Iterator[State]:
        raise ConfigError("a diffusers scheduler chooses its own times: it cannot walk a part of them")
