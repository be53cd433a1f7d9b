"""How sampling steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from diffunet.spec.base import ByName, Spec, validated


class DDPMSampler(Spec):
    """Ancestral sampling with the smaller or the larger of the two fixed variances (2006.11239)."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"


class DDIMSampler(Spec):
    """eta = 0 is deterministic, eta = 1 is DDPM with fixed-small variance (2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)


class DiffusersSampler(Spec):
    """Any diffusers scheduler by its class name."""

    kind: Literal["diffusers"] = "diffusers"
    scheduler: str = "DDIMScheduler"


SamplerConfig = Annotated[
    Annotated[DDPMSampler | DDIMSampler | DiffusersSampler, Field(discriminator="kind")],
    ByName,
]


def sampler_config(value: Any) -> Any:
    """The sampler spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("sampler", TypeAdapter(SamplerConfig), value)
