"""Samplers. A new one is its class in a file of its own, its line here, and its spec in spec/samplers.py."""

from __future__ import annotations

from typing import Any

from diffunet import spec
from diffunet.samplers.arc import Arc
from diffunet.samplers.base import Denoise, Noise, Sampler, Spacing, State, Step
from diffunet.samplers.cfgpp import CFGPlusPlus
from diffunet.samplers.ddim import DDIM
from diffunet.samplers.ddpm import DDPM
from diffunet.samplers.deis import DEIS
from diffunet.samplers.diffusers_scheduler import DiffusersScheduler
from diffunet.samplers.dpm_solver import DPMSolver1, DPMSolver2, DPMSolver3
from diffunet.samplers.dpmpp import DPMpp2M, DPMpp2MSDE, DPMpp3M, DPMpp3MSDE
from diffunet.samplers.euler import Euler, EulerAncestral
from diffunet.samplers.heun import Heun
from diffunet.samplers.ipndm import IPNDM
from diffunet.samplers.lms import LMS
from diffunet.samplers.restart import Restart
from diffunet.samplers.rk45 import RK45
from diffunet.samplers.unipc import UniPC
from diffunet.table import Table, choose

SAMPLERS: Table[Any] = Table(
    "sampler",
    {
        "arc": Arc,
        "ddpm": DDPM,
        "ddim": DDIM,
        "cfg++": CFGPlusPlus,
        "euler": Euler,
        "euler_ancestral": EulerAncestral,
        "heun": Heun,
        "dpm_solver_1": DPMSolver1,
        "dpm_solver_2": DPMSolver2,
        "dpm_solver_3": DPMSolver3,
        "rk45": RK45,
        "restart": Restart,
        "dpmpp_2m": DPMpp2M,
        "dpmpp_3m": DPMpp3M,
        "dpmpp_2m_sde": DPMpp2MSDE,
        "dpmpp_3m_sde": DPMpp3MSDE,
        "unipc": UniPC,
        "deis": DEIS,
        "lms": LMS,
        "ipndm": IPNDM,
        "diffusers": DiffusersScheduler,
    },
)


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
