"""What training minimises: weight x error over times, and what may be done to the noise and the network's inputs.

Legend: S = alpha^2 / sigma^2, the signal to noise ratio; r = sigma / alpha, EDM's sigma.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from diffunet.spec.base import ByName, Spec, by_name, contradictions, validated
from diffunet.spec.network import UNetConfig
from diffunet.spec.process import ProcessConfig

# Weights, stated on the error of x_0


class SimpleWeight(Spec):
    """Every error of the guess weighs the same (DDPM's L_simple, 2006.11239, eq. 14)."""

    kind: Literal["simple"] = "simple"


class MinSNRWeight(Spec):
    """min(S, gamma) on x_0 (2303.09556)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)


class SoftMinSNRWeight(Spec):
    """S gamma / (S + gamma) on x_0: min-SNR without its kink (2401.11605)."""

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = Field(4.0, gt=0)


class P2Weight(Spec):
    """1 / (k + S)^gamma on eps (2204.00227)."""

    kind: Literal["p2"] = "p2"
    k: float = Field(1.0, gt=0)
    gamma: float = Field(1.0, ge=0)


class EDMWeight(Spec):
    """(r^2 + sigma_data^2) / (r sigma_data)^2 on x_0: 1 on EDM's own guess (2206.00364, table 1)."""

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)


class SigmoidWeight(Spec):
    """sigmoid(bias - log S) on eps; the paper's w where times are uniform in logSNR (VDM++, 2303.00848)."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 2.0


class TruncatedSNRWeight(Spec):
    """max(S, 1) on x_0: the larger of the errors of x_0 and of eps (2202.00512, section 4)."""

    kind: Literal["truncated_snr"] = "truncated_snr"


WeightConfig = Annotated[
    Annotated[
        SimpleWeight | MinSNRWeight | SoftMinSNRWeight | P2Weight | EDMWeight | SigmoidWeight | TruncatedSNRWeight,
        Field(discriminator="kind"),
    ],
    ByName,
]

# Times


class Drawn(Spec):
    """Times that are a function of one uniform draw a sample."""

    stratified: bool = Field(
        False, description="one draw in each of batch_size equal parts, moved together (VDM, 2107.00630)"
    )


class ScheduleTimes(Drawn):
    """As the schedule's paper trained: uniform, or ln r ~ N(-1.2, 1.2^2) on karras."""

    kind: Literal["schedule"] = "schedule"


class UniformTimes(Drawn):
    """Uniform in t, or over the indices of a discrete schedule."""

    kind: Literal["uniform"] = "uniform"


class LogNormalTimes(Drawn):
    """ln r ~ N(mean, std^2), cut to the schedule's range (2206.00364, table 1)."""

    kind: Literal["log_normal"] = "log_normal"
    mean: float = Field(-1.2, ge=-20, le=20)
    std: float = Field(1.2, gt=0, le=20)


class LogitNormalTimes(Drawn):
    """logit t ~ N(mean, std^2): most training in the middle of a straight path (2403.03206, eq. 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, ge=-20, le=20)
    std: float = Field(1.0, gt=0, le=20)


class _Between(Drawn):
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> _Between:
        if self.low >= self.high:
            contradictions([f"low = {self.low} must be below high = {self.high}"])
        return self


class UniformSigmaTimes(_Between):
    """r uniform between two bounds, as far as the schedule goes: for denoisers of images that carry that much noise."""

    kind: Literal["uniform_sigma"] = "uniform_sigma"
    low: float = Field(0.0, ge=0)
    high: float = Field(1.0, gt=0)


class UniformLogSNRTimes(_Between):
    """log S uniform between two bounds, as far as the schedule goes (2303.00848)."""

    kind: Literal["uniform_logsnr"] = "uniform_logsnr"
    low: float = Field(-10.0, ge=-30, le=30)
    high: float = Field(10.0, ge=-30, le=30)


class ImportanceTimes(Drawn):
    """Index k with chance ~ sqrt(E[L_k^2]) of its last losses, which the loss is divided by (2102.09672, eq. 18).

    Uniform until every index has `history` losses, which takes some T x history samples: for schedules of few steps or
    long runs.
    """

    kind: Literal["importance"] = "importance"
    history: Annotated[int, Field(ge=1, le=1000)] = 10
    uniform: float = Field(0.001, gt=0, le=1, description="share of uniform draws, so that no index is forgotten")


TimesConfig = Annotated[
    Annotated[
        ScheduleTimes
        | UniformTimes
        | LogNormalTimes
        | LogitNormalTimes
        | UniformSigmaTimes
        | UniformLogSNRTimes
        | ImportanceTimes,
        Field(discriminator="kind"),
    ],
    by_name("schedule"),
]

# Errors


class SquaredError(Spec):
    """The mean of (guess - target)^2."""

    kind: Literal["squared"] = "squared"


class HuberError(Spec):
    """The mean of 2 c (sqrt(d^2 + c^2) - c): d^2 where d is small, 2 c |d| where it is large (2403.16728)."""

    kind: Literal["huber"] = "huber"
    c: float = Field(0.1, gt=0)


class MultiScaleError(Spec):
    """The mean of squared errors at `scales` sizes, each the last averaged over 2 x 2 (2301.11093, section 3.2)."""

    kind: Literal["multi_scale"] = "multi_scale"
    scales: Annotated[int, Field(ge=2, le=16)] = 3


ErrorConfig = Annotated[
    Annotated[SquaredError | HuberError | MultiScaleError, Field(discriminator="kind")],
    by_name("squared"),
]

# Variance and pairing


class FixedVariance(Spec):
    """The network guesses no variance."""

    kind: Literal["fixed"] = "fixed"


class HybridVariance(Spec):
    """L_simple + weight L_vlb, whose mean is held fixed: a learned variance (2102.09672, eq. 15-16)."""

    kind: Literal["hybrid"] = "hybrid"
    weight: float = Field(0.001, gt=0)


VarianceConfig = Annotated[
    Annotated[FixedVariance | HybridVariance, Field(discriminator="kind")],
    by_name("fixed"),
]


INDEXED = ("schedule", "uniform", "importance")  # times of a discrete schedule that are its indices
PairingName = Literal["random", "optimal"]


class ObjectiveConfig(Spec):
    """What training minimises."""

    weight: WeightConfig = SimpleWeight()
    times: TimesConfig = ScheduleTimes()
    error: ErrorConfig = SquaredError()
    variance: VarianceConfig = FixedVariance()
    uncertainty: bool = Field(False, description="loss / exp(u) + u with the network's own log variance u (2312.02696)")
    class_dropout: float = Field(0.0, ge=0, le=1, description="chance that a sample's class becomes the null class")
    self_conditioning: float = Field(
        0.5, ge=0, le=1, description="chance that a self-conditioning network sees its first estimate (2208.04202)"
    )
    offset_noise: float = Field(0.0, ge=0, le=10, description="deviation of one normal per channel, added to eps")
    input_perturbation: float = Field(
        0.0, ge=0, le=10, description="deviation of noise that the input has and the target has not (2301.11706)"
    )
    pairing: PairingName = Field(
        "random", description="optimal: noises go to near images of their rank's micro-batch (2302.00482, 2406.12303)"
    )


def clashes(objective: ObjectiveConfig, model: UNetConfig, process: ProcessConfig, batch_size: int) -> list[str]:
    """What an objective asks of a network, a process and a micro-batch that they do not have."""
    discrete = hasattr(process.schedule, "T")
    hybrid, where = objective.variance.kind == "hybrid", f"not '{process.schedule.kind}'"
    bad = []
    if hybrid and not model.learned_variance:
        bad.append("objective.variance = 'hybrid' needs model.learned_variance = true")
    if model.learned_variance and not hybrid:
        bad.append("model.learned_variance needs objective.variance = 'hybrid', which trains it")
    if hybrid and not discrete:
        bad.append(f"objective.variance = 'hybrid' needs a process.schedule of T steps, {where}")
    if hybrid and objective.times.kind not in INDEXED:
        bad.append(f"objective.variance = 'hybrid' needs objective.times of indices: {', '.join(INDEXED)}")
    if objective.times.kind == "importance" and not discrete:
        bad.append(f"objective.times = 'importance' needs a process.schedule of T steps, {where}")
    if objective.uncertainty and not model.uncertainty_channels:
        bad.append("objective.uncertainty needs model.uncertainty_channels > 0")
    if model.uncertainty_channels and not objective.uncertainty:
        bad.append("model.uncertainty_channels needs objective.uncertainty = true, which trains it")
    recalls = ObjectiveConfig.model_fields["self_conditioning"].default
    if objective.self_conditioning != recalls and not model.self_conditioning:
        bad.append("objective.self_conditioning needs model.self_conditioning = true")
    if objective.pairing == "optimal" and batch_size < 2:
        bad.append("objective.pairing = 'optimal' needs micro-batches of 2 images or more (train.batch_size)")
    return bad


def weight_config(value: Any) -> Any:
    """The spec of a weight over times: of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("weight", TypeAdapter(WeightConfig), value)


def objective_config(**sections: Any) -> ObjectiveConfig:
    """The spec of an objective from its keys: names, dicts with `kind`, or specs.

    Raises:
        ConfigError: unknown key, name or option.
    """
    config: ObjectiveConfig = validated("objective", TypeAdapter(ObjectiveConfig), sections)
    return config
