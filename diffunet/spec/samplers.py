"""How sampling steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, model_validator

from diffunet.spec.base import ByName, Spec, contradictions, validated


class ArcSampler(Spec):
    """The default: third order along the circle of signal and noise, one call a step; see diffunet/samplers/arc.py."""

    kind: Literal["arc"] = "arc"


class DDPMSampler(Spec):
    """Ancestral sampling with the smaller, the larger (2006.11239) or a learned variance between (2102.09672)."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed_small", "fixed_large", "learned"] = "fixed_small"


class DDIMSampler(Spec):
    """eta = 0 is deterministic, eta = 1 is DDPM with fixed-small variance (2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)


class ChurnOptions(Spec):
    """Fresh noise before each step, over a stretch of r = sigma / alpha (S_churn and its kin, 2206.00364, alg 2)."""

    churn: float = Field(0.0, ge=0, description="r rises by the factor 1 + min(churn / steps, sqrt(2) - 1)")
    churn_low: float = Field(0.0, ge=0)
    churn_high: float | None = Field(None, gt=0, description="none: no upper end")
    churn_noise: float = Field(
        1.0, gt=0, description="size of that noise; a little above 1 makes up for a smooth model"
    )


class EulerSampler(ChurnOptions):
    """Euler's method in x / alpha against sigma / alpha; with churn its noise is renewed (2206.00364)."""

    kind: Literal["euler"] = "euler"


class EulerAncestralSampler(Spec):
    """Euler's method down to less noise than asked, the rest made up afresh; eta = 1 is DDPM, 0 is Euler."""

    kind: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = Field(1.0, ge=0, le=1)
    noise: float = Field(1.0, gt=0, description="size of the fresh noise")


class HeunSampler(ChurnOptions):
    """Second order with two network calls a step, and EDM's churn (2206.00364)."""

    kind: Literal["heun"] = "heun"


class DPMSolver1Sampler(Spec):
    """Single-step DPM-Solver of order 1 (2206.00927)."""

    kind: Literal["dpm_solver_1"] = "dpm_solver_1"


class DPMSolver2Sampler(Spec):
    """Single-step DPM-Solver of order 2: two network calls a step (2206.00927)."""

    kind: Literal["dpm_solver_2"] = "dpm_solver_2"


class DPMSolver3Sampler(Spec):
    """Single-step DPM-Solver of order 3: three network calls a step (2206.00927)."""

    kind: Literal["dpm_solver_3"] = "dpm_solver_3"


class RK45Sampler(Spec):
    """Dormand-Prince with a step size for each image; the tolerance decides how many calls are made."""

    kind: Literal["rk45"] = "rk45"
    tolerance: float = Field(1e-3, ge=1e-10, le=0.5, description="error allowed a step, absolute and relative")
    max_calls: int = Field(6000, ge=7, description="an error beyond it: a network that is not smooth, or too tight")


class RestartInterval(Spec):
    """A stretch of r = sigma / alpha that is walked `repeats` times more, in `steps` steps each."""

    low: float = Field(0.06, gt=0)
    high: float = Field(0.3, gt=0)
    steps: int = Field(3, ge=1)
    repeats: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _rises(self) -> RestartInterval:
        contradictions([f"low = {self.low} but high = {self.high}"] if self.low >= self.high else [])
        return self


class RestartSampler(Spec):
    """Heun's method that goes back up over stretches of noise (2306.14878); the default is the paper's for CIFAR-10."""

    kind: Literal["restart"] = "restart"
    intervals: Annotated[tuple[RestartInterval, ...], Strict(False)] = (RestartInterval(),)


class DPMpp2MSampler(Spec):
    """DPM-Solver++ with two estimates (2211.01095); heun integrates the line through them exactly."""

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    solver_type: Literal["midpoint", "heun"] = "midpoint"


class DPMpp3MSampler(Spec):
    """DPM-Solver++ with three estimates; on the last legs before the clean image with fewer."""

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    lower_order_final: bool = True


class DPMpp2MSDESampler(Spec):
    """DPM-Solver++ 2M for the SDE: eta = 0 is `dpmpp_2m`, 1 has DDPM's noise, more is allowed."""

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    eta: float = Field(1.0, ge=0)


class DPMpp3MSDESampler(Spec):
    """DPM-Solver++ 3M for the SDE: eta = 0 is `dpmpp_3m`, 1 has DDPM's noise, more is allowed."""

    kind: Literal["dpmpp_3m_sde"] = "dpmpp_3m_sde"
    lower_order_final: bool = True
    eta: float = Field(1.0, ge=0)


class UniPCSampler(Spec):
    """UniPC (2302.04867): a predictor of `order` estimates; the corrector adds one to the order and no call."""

    kind: Literal["unipc"] = "unipc"
    order: int = Field(2, ge=1, le=3)
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_order_final: bool = True


class DEISSampler(Spec):
    """DEIS (2204.13902): the noise as a polynomial in `variable`, integrated exactly; t is the paper's tAB."""

    kind: Literal["deis"] = "deis"
    order: int = Field(3, ge=1, le=3)
    variable: Literal["t", "rho", "log_rho"] = "t"
    lower_order_final: bool = True


class LMSSampler(Spec):
    """k-diffusion's linear multistep method: the noise as a polynomial in sigma / alpha."""

    kind: Literal["lms"] = "lms"
    order: int = Field(4, ge=1, le=4)


class IPNDMSampler(Spec):
    """DDIM with Adams and Bashforth's fixed weights for even grids (2204.13902; PNDM without its warm-up)."""

    kind: Literal["ipndm"] = "ipndm"
    order: int = Field(4, ge=1, le=4)


class CFGPlusPlusSampler(Spec):
    """DDIM that renoises with the unguided noise; the scale of the guidance is from 0 to 1 (2406.08070)."""

    kind: Literal["cfg++"] = "cfg++"


class DiffusersSampler(Spec):
    """Any diffusers scheduler by its class name."""

    kind: Literal["diffusers"] = "diffusers"
    scheduler: str = "DDIMScheduler"
    options: dict[str, bool | int | float | str] = Field({}, description="of its constructor: use_karras_sigmas, ...")


SamplerConfig = Annotated[
    Annotated[
        ArcSampler
        | DDPMSampler
        | DDIMSampler
        | EulerSampler
        | EulerAncestralSampler
        | HeunSampler
        | DPMSolver1Sampler
        | DPMSolver2Sampler
        | DPMSolver3Sampler
        | RK45Sampler
        | RestartSampler
        | DPMpp2MSampler
        | DPMpp3MSampler
        | DPMpp2MSDESampler
        | DPMpp3MSDESampler
        | UniPCSampler
        | DEISSampler
        | LMSSampler
        | IPNDMSampler
        | CFGPlusPlusSampler
        | DiffusersSampler,
        Field(discriminator="kind"),
    ],
    ByName,
]


def sampler_config(value: Any) -> Any:
    """The sampler spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("sampler", TypeAdapter(SamplerConfig), value)
