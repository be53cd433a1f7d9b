"""How noise is added, what is guessed and minimised, and how sampling steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from diffunet.errors import ConfigError
from diffunet.spec.base import ByName, Pair, Spec, contradictions

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
PredictionName = Literal["eps", "x0", "v", "flow", "edm"]
OWN = {"karras": "edm", "flow": "flow"}  # the prediction made for a schedule
SpacingName = Literal["leading", "trailing", "linspace", "uniform", "karras"]


def mismatch(schedule: str, prediction: str) -> list[str]:
    """Why the formula of a prediction cannot hold on a schedule; empty where it can."""
    if prediction in ("edm", "flow"):
        own = {name: schedule for schedule, name in OWN.items()}[prediction]
        return [] if schedule == own else [f"prediction '{prediction}' needs schedule '{own}', not '{schedule}'"]
    if prediction == "v" and schedule in ("karras", "flow"):
        return [
            f"prediction 'v' needs alpha^2 + sigma^2 = 1, which schedule '{schedule}' has not; use '{OWN[schedule]}'"
        ]
    if prediction == "eps" and schedule == "flow":
        return ["prediction 'eps' says nothing of the image at t = 1, where schedule 'flow' has alpha = 0; use 'flow'"]
    return []


class ProcessConfig(Spec):
    """How noise is added and what the network guesses."""

    schedule: ScheduleConfig = LinearSchedule()
    prediction: PredictionName = "eps"
    clip: Pair | None = Field((-1.0, 1.0), description="static threshold of the clean estimate; false for none")

    @model_validator(mode="before")
    @classmethod
    def _no_clip(cls, data: Any) -> Any:
        # TOML has no null: `clip = false` says "no threshold".
        return data | {"clip": None} if isinstance(data, dict) and data.get("clip") is False else data

    @model_validator(mode="after")
    def _check(self) -> ProcessConfig:
        bad = []
        if self.clip and self.clip[0] >= self.clip[1]:
            bad.append(f"clip = {list(self.clip)} must be [low, high]")
        bad += mismatch(self.schedule.kind, self.prediction)
        if self.prediction in ("eps", "x0") and self.schedule.kind == "karras":
            bad.append(f"prediction '{self.prediction}' feeds the network sigmas up to 80; use 'edm' with 'karras'")
        contradictions(bad)
        return self


class SimpleWeight(Spec):
    """Every time weighs the same (DDPM's L_simple)."""

    kind: Literal["simple"] = "simple"


class MinSNRWeight(Spec):
    """min(SNR, gamma) in x0 terms (2303.09556)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)


WeightConfig = Annotated[
    Annotated[SimpleWeight | MinSNRWeight, Field(discriminator="kind")],
    ByName,
]


class ObjectiveConfig(Spec):
    """What training minimises."""

    weight: WeightConfig = SimpleWeight()
    class_dropout: float = Field(0.0, ge=0, le=1, description="chance that a sample's class becomes the null class")


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


def _validated(what: str, adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
        raise ConfigError(f"{what} {value!r}: {'; '.join(reasons)}") from None


def sampler_config(value: Any) -> Any:
    """The sampler spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return _validated("sampler", TypeAdapter(SamplerConfig), value)


def schedule_config(value: Any) -> Any:
    """The schedule spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return _validated("schedule", TypeAdapter(ScheduleConfig), value)


def weight_config(value: Any) -> Any:
    """The spec of a weight over times: of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return _validated("weight", TypeAdapter(WeightConfig), value)
