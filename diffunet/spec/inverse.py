"""What may have happened to a picture, and how it is undone: the operators and the methods of `diffunet.inverse`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from diffunet.spec.base import ByName, Count, Spec, Whole, validated
from diffunet.spec.samplers import DDIMSampler, DDPMSampler, SamplerConfig

Border = Literal["replicate", "reflect", "circular"]
Scale = Annotated[int, Field(ge=1, le=64)]


class IdentityOperator(Spec):
    """Nothing but noise."""

    kind: Literal["identity"] = "identity"


class MaskOperator(Spec):
    """Some pixels are missing: those of a mask, or a share drawn at random."""

    kind: Literal["mask"] = "mask"
    known: float = Field(0.5, ge=0, le=1, description="chance of a pixel to be known, where no mask is given")
    seed: Whole = 0


class AverageOperator(Spec):
    """Each block of scale x scale pixels became its mean."""

    kind: Literal["average"] = "average"
    scale: Scale = 2


class BicubicOperator(Spec):
    """Made smaller by the bicubic kernel, antialiased."""

    kind: Literal["bicubic"] = "bicubic"
    scale: Scale = 2


class GaussianBlurOperator(Spec):
    """Blurred by a Gaussian, cut at four standard deviations."""

    kind: Literal["gaussian_blur"] = "gaussian_blur"
    std: float = Field(1.6, gt=0, le=1000, description="pixels")
    border: Border = "replicate"


class UniformBlurOperator(Spec):
    """Every pixel became the mean of size x size around it."""

    kind: Literal["uniform_blur"] = "uniform_blur"
    size: Annotated[int, Field(ge=1, le=10_000)] = 9
    border: Border = "replicate"


class MotionBlurOperator(Spec):
    """Moved in a straight line while it was taken; the picture goes on at the other side."""

    kind: Literal["motion_blur"] = "motion_blur"
    length: float = Field(9.0, gt=0, le=1000, description="pixels")
    angle: float = Field(30.0, ge=-360, le=360, description="degrees, anticlockwise from the horizontal")


class GreyOperator(Spec):
    """Colour was lost: luma of ITU-R BT.601, as every picture library turns RGB to grey."""

    kind: Literal["grey"] = "grey"


class SensingOperator(Spec):
    """A random share of the coefficients of a cosine transform of the image with random signs (compressed sensing)."""

    kind: Literal["sensing"] = "sensing"
    share: float = Field(0.25, gt=0, le=1)
    seed: Whole = 0


OperatorConfig = Annotated[
    Annotated[
        IdentityOperator
        | MaskOperator
        | AverageOperator
        | BicubicOperator
        | GaussianBlurOperator
        | UniformBlurOperator
        | MotionBlurOperator
        | GreyOperator
        | SensingOperator,
        Field(discriminator="kind"),
    ],
    ByName,
]


class MeanMethod(Spec):
    """E[x_0 | y] in one call, for noise alone: the best guess in mean squared error."""

    kind: Literal["mean"] = "mean"
    steps: Count = 1
    sampler: SamplerConfig = DDIMSampler()


class SampleMethod(Spec):
    """One draw from p(x_0 | y), for noise alone: sampling begins at the picture's own noise."""

    kind: Literal["sample"] = "sample"
    steps: Count = 20
    sampler: SamplerConfig = DDIMSampler(eta=1.0)


class Travel(Spec):
    """Going back: after each `length` steps the noise of so many is added again, so that each stretch is walked
    `repeats` times and both parts of the picture can agree (2201.09865, algorithm 1)."""

    length: Count = 10
    repeats: Count = 1


class DDNMMethod(Spec):
    """Null space of the operator from the network, range from the picture, noise in it accounted for (2212.00490)."""

    kind: Literal["ddnm"] = "ddnm"
    steps: Count = 100
    eta: float = Field(0.85, ge=0, le=1, description="root of the share of the noise that is drawn anew")
    travel: Travel = Travel()


class RePaintMethod(Spec):
    """Known pixels replaced at each step, with going back and forth (2201.09865); inpainting only."""

    kind: Literal["repaint"] = "repaint"
    steps: Count = 100
    sampler: SamplerConfig = DDPMSampler()
    travel: Travel = Travel(length=10, repeats=5)


class DPSMethod(Spec):
    """Each step is followed by one down the gradient of |y - A x_0(x_t)| (2209.14687, algorithm 1)."""

    kind: Literal["dps"] = "dps"
    steps: Count = 200
    sampler: SamplerConfig = DDPMSampler()
    scale: float = Field(1.0, gt=0, description="length of the step; zeta' of the paper")


class PiGDMMethod(Spec):
    """x_0 given x_t taken as a Gaussian around the estimate, pulled through the network's Jacobian (ICLR 2023)."""

    kind: Literal["pigdm"] = "pigdm"
    steps: Count = 50
    sampler: SamplerConfig = DDIMSampler(eta=1.0)
    data_std: float = Field(0.5, gt=0, description="standard deviation of a pixel of clean images in [-1, 1]")


class MMPSMethod(Spec):
    """As pigdm, but with the covariance that the network's Jacobian says, by conjugate gradients (2405.13712)."""

    kind: Literal["mmps"] = "mmps"
    steps: Count = 50
    sampler: SamplerConfig = DDIMSampler(eta=1.0)
    iterations: Count = 3
    data_std: float = Field(0.5, gt=0, description="standard deviation of a pixel of clean images in [-1, 1]")


class DiffPIRMethod(Spec):
    """Half-quadratic splitting: the estimate, then the picture that weighs it against y (2305.08995)."""

    kind: Literal["diffpir"] = "diffpir"
    steps: Count = 100
    weight: float = Field(7.0, gt=0, description="of the prior; lambda of the paper")
    fresh: float = Field(0.3, ge=0, le=1, description="share of the noise that is drawn anew; zeta of the paper")


MethodConfig = Annotated[
    Annotated[
        MeanMethod | SampleMethod | DDNMMethod | RePaintMethod | DPSMethod | PiGDMMethod | MMPSMethod | DiffPIRMethod,
        Field(discriminator="kind"),
    ],
    ByName,
]


def operator_config(value: Any) -> Any:
    """The operator spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("operator", TypeAdapter(OperatorConfig), value)


def method_config(value: Any) -> Any:
    """The method spec of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("method", TypeAdapter(MethodConfig), value)
