"""How noise is added: the schedules, and the names of the time grids that samplers visit."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from diffunet.spec.base import ByName, Spec, contradictions, validated

Beta = Annotated[float, Field(gt=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Side = Annotated[int, Field(ge=1, le=1_000_000)]
SHIFT = "side of the images in pixels: logSNR + 2 log(64 / side) (2301.11093); unset for no shift"


class ScheduleSpec(Spec):
    """What predictions ask of a schedule.

    preserves: alpha^2 + sigma^2 = 1. explodes: alpha = 1. straight: alpha + sigma = 1. own: the prediction made for it.
    """

    preserves: ClassVar[bool] = False
    explodes: ClassVar[bool] = False
    straight: ClassVar[bool] = False
    own: ClassVar[str] = "v"
    kind: str

    @property
    def ends_in_noise(self) -> bool:
        """Is alpha(1) = 0?"""
        return self.straight


class TableSchedule(ScheduleSpec):
    """A table of T indices, and what can be done to any of them."""

    preserves: ClassVar[bool] = True
    T: Steps = 1000
    zero_terminal_snr: bool = Field(False, description="the last index is pure noise (2305.08891, algorithm 1)")
    resolution: Side | None = Field(None, description=SHIFT)

    @property
    def ends_in_noise(self) -> bool:
        """Is alpha(1) = 0?"""
        return self.zero_terminal_snr

    @model_validator(mode="after")
    def _check(self) -> TableSchedule:
        if self.zero_terminal_snr and self.T < 2:
            contradictions([f"zero_terminal_snr keeps the first index and moves the last, but T = {self.T}"])
        return self


class LinearSchedule(TableSchedule):
    """beta rises linearly (DDPM, 2006.11239)."""

    kind: Literal["linear"] = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02


class ScaledLinearSchedule(TableSchedule):
    """sqrt(beta) rises linearly (latent diffusion)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012


class CosineSchedule(TableSchedule):
    """alpha^2 follows a squared cosine (improved DDPM, 2102.09672)."""

    kind: Literal["cosine"] = "cosine"
    s: float = Field(0.008, ge=0, lt=1)
    beta_max: float = Field(0.999, gt=0, lt=1)


class SigmoidSchedule(TableSchedule):
    """alpha^2 follows a sigmoid (2212.11972)."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = Field(1.0, gt=0)


class VPSchedule(ScheduleSpec):
    """The variance-preserving SDE: beta(t) rises linearly, t is continuous (score SDE, 2011.13456)."""

    preserves: ClassVar[bool] = True
    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0, le=1000)
    beta_max: float = Field(20.0, gt=0, le=1000)
    resolution: Side | None = Field(None, description=SHIFT)

    @model_validator(mode="after")
    def _check(self) -> VPSchedule:
        _rises(self, "beta_min", "beta_max")
        return self


class LaplaceSchedule(ScheduleSpec):
    """The logSNR of a uniform time has the Laplace distribution, cut at both ends (2407.03297)."""

    preserves: ClassVar[bool] = True
    kind: Literal["laplace"] = "laplace"
    mu: float = Field(0.0, ge=-20, le=20, description="the logSNR that is trained most")
    b: float = Field(0.5, ge=0.3, le=100, description="mean distance of the logSNR from mu")
    logsnr_min: float = Field(-10.0, ge=-20, le=20)
    logsnr_max: float = Field(10.0, ge=-20, le=20)
    resolution: Side | None = Field(None, description=SHIFT)

    @model_validator(mode="after")
    def _check(self) -> LaplaceSchedule:
        if not self.logsnr_min < self.mu < self.logsnr_max:
            contradictions([f"mu = {self.mu} must lie between logsnr_min and logsnr_max"])
        if max(self.mu - self.logsnr_min, self.logsnr_max - self.mu) > 25 * self.b:
            # chances of exp(-25) and less leave no times to tell the levels apart
            contradictions([f"logsnr_min and logsnr_max must lie within 25 b of mu, with b = {self.b}"])
        return self


class VESchedule(ScheduleSpec):
    """The variance-exploding SDE: alpha = 1, sigma geometric in t (score SDE, 2011.13456)."""

    explodes: ClassVar[bool] = True
    own: ClassVar[str] = "edm"
    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(0.01, gt=0)
    sigma_max: float = Field(50.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> VESchedule:
        _rises(self, "sigma_min", "sigma_max")
        return self


class KarrasSchedule(ScheduleSpec):
    """alpha = 1; sigma^(1/rho) is linear in t (EDM, 2206.00364)."""

    explodes: ClassVar[bool] = True
    own: ClassVar[str] = "edm"
    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> KarrasSchedule:
        _rises(self, "sigma_min", "sigma_max")
        return self


class FlowSchedule(ScheduleSpec):
    """alpha = 1 - t, sigma = t: straight paths (2209.03003)."""

    straight: ClassVar[bool] = True
    own: ClassVar[str] = "flow"
    kind: Literal["flow"] = "flow"
    time_scale: float = Field(1000.0, gt=0, description="the network sees t x time_scale")


def _rises(schedule: ScheduleSpec, low: str, high: str) -> None:
    if getattr(schedule, low) >= getattr(schedule, high):
        contradictions([f"{low} = {getattr(schedule, low)} must be below {high} = {getattr(schedule, high)}"])


ScheduleConfig = Annotated[
    Annotated[
        LinearSchedule
        | ScaledLinearSchedule
        | CosineSchedule
        | SigmoidSchedule
        | VPSchedule
        | LaplaceSchedule
        | VESchedule
        | KarrasSchedule
        | FlowSchedule,
        Field(discriminator="kind"),
    ],
    ByName,
]
SpacingName = Literal[
    "leading", "trailing", "linspace", "uniform", "quadratic", "karras", "logsnr", "blended", "optimised", "arc"
]


def schedule_config(value: Any) -> Any:
    """The schedule spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("schedule", TypeAdapter(ScheduleConfig), value)
