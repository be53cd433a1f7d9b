"""What the network is told beside the image: the specs of time and class."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from diffunet.spec.base import Spec, by_name

Balance = Annotated[float, Field(gt=0, lt=1)]


Times = Annotated[int, Field(ge=1, le=64)]


class TimeMLP(Spec):
    """Features of the time, then a two-layer MLP with SiLU."""

    mlp: ClassVar[bool] = True
    width: Times = Field(4, description="embedding channels = width x base channels")
    features: Times = Field(1, description="features of the time = features x base channels")


class SinusoidalTime(TimeMLP):
    """Sinusoids of the time.

    `order` and `shift` decide which project's weights fit: sin_cos with shift 1 is DDPM's
    (10000^(-i/(half-1))), cos_sin with shift 0 is ADM's (10000^(-i/half)).
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    shift: Literal[0, 1] = 1
    scale: float = Field(1.0, gt=0, le=1e6, description="of t; 1000 / T for improved-diffusion's rescale_timesteps")


class FourierTime(TimeMLP):
    """Sinusoids of the time, or of its logarithm, at random frequencies drawn from N(0, scale^2)."""

    kind: Literal["fourier"] = "fourier"
    order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    scale: float = Field(16.0, gt=0, le=1e6)
    log: bool = Field(False, description="of log t: for networks that are told sigma itself")
    trained: bool = Field(False, description="the frequencies are weights too")


class LearnedTime(TimeMLP):
    """A trained vector for each of `steps` indices; in between, the line between neighbours."""

    kind: Literal["learned"] = "learned"
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


class MagnitudeTime(Spec):
    """Random cosines of unit magnitude, then one magnitude-preserving linear map (EDM2, 2312.02696)."""

    mlp: ClassVar[bool] = False
    kind: Literal["magnitude_preserving"] = "magnitude_preserving"
    width: Times | None = Field(None, description="as elsewhere; as many channels as the widest level if unset")
    features: Times = 1


class NoTime(Spec):
    """The network is not told the time."""

    mlp: ClassVar[bool] = False
    kind: Literal["none"] = "none"
    width: Times = Field(4, description="class embedding channels = width x base channels")


class ClassTable(Spec):
    """One row of a table for each class, added behind the time's MLP (ADM, 2105.05233)."""

    before_mlp: ClassVar[bool] = False
    kind: Literal["table"] = "table"


class ClassLinear(Spec):
    """The one-hot class x sqrt(classes) through a linear map with bias, added before the time's MLP (EDM)."""

    before_mlp: ClassVar[bool] = True
    kind: Literal["linear"] = "linear"


class ClassBalanced(Spec):
    """The class's magnitude-preserving map, in a balanced sum with the time's (EDM2, 2312.02696)."""

    before_mlp: ClassVar[bool] = False
    kind: Literal["balanced"] = "balanced"
    balance: Balance = 0.5


TimeConfig = Annotated[
    Annotated[SinusoidalTime | FourierTime | LearnedTime | MagnitudeTime | NoTime, Field(discriminator="kind")],
    by_name("sinusoidal"),
]
ClassConfig = Annotated[
    Annotated[ClassTable | ClassLinear | ClassBalanced, Field(discriminator="kind")], by_name("table")
]
