"""What training minimises."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from diffunet.spec.base import ByName, Spec, validated


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


def weight_config(value: Any) -> Any:
    """The spec of a weight over times: of a name, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown name or option.
    """
    return validated("weight", TypeAdapter(WeightConfig), value)
