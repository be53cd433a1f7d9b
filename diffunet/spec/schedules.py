"""How noise is added: the schedules, and the names of the time grids that samplers visit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from diffunet.spec.base import ByName, Spec, validated

Beta = Annotated[float, Field(gt=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]


class LinearSchedule(Spec):
    """beta rises linearly (DDPM, 2006.11239)."""

    kind: Literal["linear"] = "linear"
    T: Steps = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02


class ScaledLinearSchedule(Spec):
    """sqrt(beta) rises linearly (latent diffusion)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    T: Steps = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012


class CosineSchedule(Spec):
    """alpha^2 follows a squared cosine (improved DDPM, 2102.09672)."""

    kind: Literal["cosine"] = "cosine"
    T: Steps = 1000
    s: float = Field(0.008, ge=0, lt=1)
    beta_max: float = Field(0.999, gt=0, lt=1)


class SigmoidSchedule(Spec):
    """alpha^2 follows a sigmoid (2212.11972)."""

    kind: Literal["sigmoid"] = "sigmoid"
    T: Steps = 1000
    start: float = -3.0
    end: float = 3.0
    tau: float = Field(1.0, gt=0)


class KarrasSchedule(Spec):
    """alpha = 1; sigma^(1/rho) is linear in t (EDM, 2206.00364)."""

    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)


class FlowSchedule(Spec):
    """alpha = 1 - t, sigma = t: straight paths (2209.03003)."""

    kind: Literal["flow"] = "flow"
    time_scale: float = Field(1000.0, gt=0, description="the network sees t x time_scale")


ScheduleConfig = Annotated[
    Annotated[
        LinearSchedule | ScaledLinearSchedule | CosineSchedule | SigmoidSchedule | KarrasSchedule | FlowSchedule,
        Field(discriminator="kind"),
    ],
    ByName,
]
SpacingName = Literal["leading", "trailing", "linspace", "uniform", "karras"]


def schedule_config(value: Any) -> Any:
    """The schedule spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("schedule", TypeAdapter(ScheduleConfig), value)
