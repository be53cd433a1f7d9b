"""Samplers. A new one is its class in a file of its own, its line here, and its spec in spec.py."""

from __future__ import annotations

from typing import Any

from diffunet import spec
from diffunet.samplers.base import Denoise, Noise, Sampler, Spacing, State, Step
from diffunet.samplers.ddim import DDIM
from diffunet.samplers.ddpm import DDPM
from diffunet.samplers.diffusers_scheduler import DiffusersScheduler
from diffunet.table import Table, choose

SAMPLERS: Table[Any] = Table("sampler", {"ddpm": DDPM, "ddim": DDIM, "diffusers": DiffusersScheduler})


def build(sampler: Any) -> Sampler:
    """The sampler of a name, a dict or spec with `kind`, a diffusers class name ending in `Scheduler`, or a Sampler.

    Raises:
        ConfigError: unknown sampler; the message names the nearest.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        if sampler.endswith("Scheduler"):
            return DiffusersScheduler(spec.DiffusersSampler(scheduler=sampler))
        choose("sampler", sampler, SAMPLERS)
    return SAMPLERS.build(spec.sampler_config(sampler))


__all__ = ["SAMPLERS", "Denoise", "Noise", "Sampler", "Spacing", "State", "Step", "build"]
