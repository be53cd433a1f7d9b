"""Adapter: any diffusers scheduler that suits the schedule drives our denoiser.

The scheduler is built from the run's own numbers (several of diffusers' classes default to another table of betas), its
input is scaled by `scale_model_input` and its first noise by `init_noise_sigma`, which the unconditional pipelines
leave out. It is asked how much noise it believes to be in x, and the network is told exactly that: between two indices
of a table, or where diffusers rounds the time that it gives to a network, its time alone would say something else. Each
call of `generate` gets a scheduler of its own: they keep state and are not safe to share.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffunet import compat
from diffunet.errors import ConfigError
from diffunet.samplers.base import Denoise, Leg, Noise, Sampler, Spacing, State
from diffunet.schedules import Discrete, Schedule
from diffunet.schedules.continuous import Flow, Karras
from diffunet.spec import DiffusersSampler
from diffunet.table import choose

DISTILLED = "it is made for networks distilled to jump to the clean image; of others it makes other images"
STAGED = "its stages or its network's output are those of one model of its own"
UPWARDS = "it leads from the clean image to noise, which diffunet.samplers.inversion.encode does"
# what takes all the right options and still cannot sample
UNFIT = {
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
    "FlowMatchLCMScheduler": DISTILLED,
    "CMStochasticIterativeScheduler": DISTILLED,
    "SCMScheduler": DISTILLED,
    "HeliosScheduler": STAGED,
    "HeliosDMDScheduler": STAGED,
    "PiflowScheduler": STAGED,
    "DDIMInverseScheduler": UPWARDS,
    "DPMSolverMultistepInverseScheduler": UPWARDS,
}


class Betas:
    """Schedulers of a table of betas, told the noise eps: they ask at its indices, or between them."""

    name, schedule = "discrete", Discrete
    options: ClassVar[tuple[str, ...]] = ("trained_betas", "prediction_type")
    spacings: ClassVar[tuple[str, ...]] = ("trailing", "leading", "linspace")

    def wanted(self, schedule: Any, spacing: str) -> dict[str, Any]:
        """Options for the constructor; it gets those that it knows."""
        return {
            "num_train_timesteps": schedule.config.T,
            "trained_betas": schedule.betas().float().numpy(),
            "prediction_type": "epsilon",
            "clip_sample": False,  # the denoiser's own clip is the only one
            "timestep_spacing": spacing,
            "snr_shift_scale": 1.0,  # CogVideoX's would bend the table
            "lower_order_final": True,  # nobody's onto the clean image may be higher
        }

    def times(self, scheduler: Any, schedule: Any) -> list[float]:
        """The times that it visits."""
        return [(float(k) + 1) / schedule.config.T for k in scheduler.timesteps]

    def time(self, scheduler: Any, k: Tensor, schedule: Any) -> float:
        """The time of x: that of index k, unless the scheduler's own noise is another (in 1/100 of an index)."""
        T = schedule.config.T
        t = (float(k) + 1) / T
        c = float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), k))
        if c != 1.0:
            r = math.sqrt(1 / c**2 - 1)  # x / sqrt(sigma^2 + 1) is what the network sees
        elif getattr(scheduler, "step_index", None) is not None:
            r = float(scheduler.sigmas[scheduler.step_index])
        else:
            return t
        if math.isnan(r):  # of KDPM2 ancestral: few steps on the cosine schedule
            name = type(scheduler).__name__
            raise ConfigError(f"{name} works out a noise level that is no number; take other steps or spacing")
        own = schedule.t_of_sigma(r)
        return t if abs(own - t) * T < 0.01 else max(own, schedule.t_min)

    def ask(self, scheduler: Any, denoise: Denoise, x: Tensor, k: Tensor, t: float, schedule: Schedule) -> Any:
        """What the scheduler is told of x, and the clean estimate."""
        x_in = scheduler.scale_model_input(x, k)
        x0 = denoise(x_in, t)
        return (x_in - schedule.alpha(t) * x0) / schedule.sigma(t), x0


class Sigmas:
    """Schedulers of EDM's kind: alpha = 1, and told F in D = c_skip x + c_out F."""

    name, schedule = "karras", Karras
    options: ClassVar[tuple[str, ...]] = ("sigma_data", "prediction_type")
    spacings: ClassVar[tuple[str, ...]] = ("karras",)

    def wanted(self, schedule: Any, spacing: str) -> dict[str, Any]:
        """Options for the constructor; it gets those that it knows."""
        c = schedule.config
        return {"sigma_min": c.sigma_min, "sigma_max": c.sigma_max, "rho": c.rho, "sigma_schedule": spacing}

    def times(self, scheduler: Any, schedule: Schedule) -> list[float]:
        """The times that it visits."""
        return [max(schedule.t_of_sigma(float(sigma)), schedule.t_min) for sigma in scheduler.sigmas[:-1]]

    def time(self, scheduler: Any, k: Tensor, schedule: Schedule) -> float:
        """The time of the scheduler's own sigma."""
        scheduler.scale_model_input(torch.ones(1), k)  # sets its index
        return max(schedule.t_of_sigma(float(scheduler.sigmas[scheduler.step_index])), schedule.t_min)

    def ask(self, scheduler: Any, denoise: Denoise, x: Tensor, k: Tensor, t: float, schedule: Schedule) -> Any:
        """What the scheduler is told of x, and the clean estimate: D(x, F) is linear, and is asked for its numbers."""
        x0, sigma = denoise(x, t), scheduler.sigmas[scheduler.step_index].double()
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        c_skip, c_out = (float(scheduler.precondition_outputs(*unit, sigma)) for unit in ((one, zero), (zero, one)))
        return (x0 - c_skip * x) / c_out, x0


class Straight:
    """Schedulers of flow matching, told the velocity eps - x_0; their sigma is our time."""

    name, schedule = "flow", Flow
    options: ClassVar[tuple[str, ...]] = ("shift", "num_train_timesteps")
    spacings: ClassVar[tuple[str, ...]] = ("uniform",)

    def wanted(self, schedule: Any, spacing: str) -> dict[str, Any]:
        """Options for the constructor; it gets those that it knows."""
        return {}

    def times(self, scheduler: Any, schedule: Schedule) -> list[float]:
        """The times that it visits."""
        return [self.time(scheduler, k, schedule) for k in scheduler.timesteps]

    def time(self, scheduler: Any, k: Tensor, schedule: Schedule) -> float:
        """The time that the scheduler counts in thousandths."""
        return float(k) / scheduler.config.num_train_timesteps

    def ask(self, scheduler: Any, denoise: Denoise, x: Tensor, k: Tensor, t: float, schedule: Schedule) -> Any:
        """What the scheduler is told of x, and the clean estimate."""
        x0 = denoise(x, t)
        return (x - x0) / t, x0


FAMILIES: tuple[Any, ...] = (Betas(), Sigmas(), Straight())


def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """What a function takes, but for `self`."""
    return {name: value for name, value in inspect.signature(function).parameters.items() if name != "self"}


class DiffusersScheduler(Sampler):
    """Runs the diffusers class named by the spec, e.g. `UniPCMultistepScheduler`, in its own default options.

    Schedulers with a table of betas run on discrete schedules, EDM's on karras, those of flow matching on flow.

    Raises:
        ConfigError: no such scheduler in diffusers, one that lacks a library, or one that cannot drive a denoiser; and
            when it runs, a schedule or a grid that it cannot have.
    """

    def __init__(self, config: DiffusersSampler) -> None:
        self.config = config
        module = compat.diffusers()
        # diffusers loads its classes lazily, so they are known by name only
        names = [n for n in dir(module) if n.endswith("Scheduler") and not n.startswith(("Flax", "Scheduler"))]
        self.scheduler_class: Any = getattr(module, choose("diffusers scheduler", config.scheduler, names))
        if config.scheduler in UNFIT:
            raise ConfigError(f"{config.scheduler} cannot sample: {UNFIT[config.scheduler]}")
        # a class whose library is absent stands there as an empty one that names its backends
        if lacking := " ".join(b for b in vars(self.scheduler_class).get("_backends", ()) if b != "torch"):
            raise ConfigError(f"{config.scheduler} needs {lacking}, which is not installed: pip install {lacking}")

    def times(self, schedule: Schedule, steps: int, spacing: Spacing = None) -> list[float]:
        return self._begin(schedule, steps, spacing, [])[2]

    def _family(self, schedule: Schedule) -> Any:
        known = parameters(self.scheduler_class.__init__)
        suited = [family for family in FAMILIES if all(name in known for name in family.options)]
        family = next((family for family in FAMILIES if isinstance(schedule, family.schedule)), None)
        if family in suited:
            return family
        kind, lacks = schedule.config.kind, [name for name in getattr(family, "options", ()) if name not in known]
        takes = f"{self.config.scheduler} takes no {' or '.join(lacks)}" if lacks else self.config.scheduler
        wants = f"it needs a {' or '.join(f.name for f in suited)} schedule, not '{kind}'"
        raise ConfigError(f"{takes}: {wants if suited else 'it cannot drive this model'}")

    def _begin(self, schedule: Any, steps: int, spacing: Spacing, seeds: list[int]) -> tuple[Any, Any, list[float]]:
        """Our family, a scheduler of our numbers, and the times that it visits."""
        family = self._family(schedule)
        if list(parameters(self.scheduler_class.step))[:3] != ["model_output", "timestep", "sample"]:
            raise ConfigError(f"{self.config.scheduler} steps from more than a guess, a time and x: it is not adapted")
        if spacing is not None and not isinstance(spacing, str):
            raise ConfigError("diffusers schedulers visit times of their own: give spacing by name")
        schedule.grid(steps, spacing)  # refuses steps and spacings that diffusers would meet later, less clearly
        spacing = choose("spacing of diffusers", spacing or schedule.default_spacing, family.spacings)
        wanted = family.wanted(schedule, spacing) | {"noise_sampler_seed": seeds}
        known = parameters(self.scheduler_class.__init__)
        free = [name for name in known if name not in wanted or name == "timestep_spacing"]
        chosen = {choose(f"option of {self.config.scheduler}", k, free): v for k, v in self.config.options.items()}
        scheduler = self.scheduler_class(**{k: v for k, v in wanted.items() if k in known} | chosen)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # looked up by time, two equal times would start at the second
        times = family.times(scheduler, schedule)
        if min(times) <= 0:  # np.arange(T, 0, -T / steps), one too long by rounding: 61, 103, 121, ... of 1000
            raise ConfigError(
                f"diffusers' {spacing} grid of {steps} steps leaves the table by a rounding fault; "
                "take another number of steps, or another spacing"
            )
        return family, scheduler, [*times, 0.0]

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        """None: a scheduler visits its own times.

        Raises:
            ConfigError: always; what starts from a noisy image needs a sampler of ours.
        """
        raise ConfigError(f"{self.config.scheduler} starts from noise at its own times: take one of our own samplers")

    def run(
        self, denoise: Denoise, schedule: Any, eps: Tensor, steps: int, spacing: Spacing, noise: Noise
    ) -> Iterator[State]:
        seeds = [generator.initial_seed() for generator in noise.generators]
        family, scheduler, times = self._begin(schedule, steps, spacing, seeds)
        x = float(getattr(scheduler, "init_noise_sigma", 1.0)) * eps
        options = {"generator": noise.generators} if "generator" in parameters(scheduler.step) else {}
        for i, k in enumerate(list(scheduler.timesteps)):
            t = family.time(scheduler, k, schedule)
            guess, x0 = family.ask(scheduler, denoise, x, k, t, schedule)
            x = scheduler.step(guess, k, x, **options).prev_sample
            yield State(i + 1, len(times) - 1, times[i + 1], x, x0)
