"""How sampling is guided towards classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from diffunet.spec.base import Floats, Ints, Pair, Spec, contradictions, named, validated


class GuidanceOptions(Spec):
    """What every kind of guidance may have."""

    interval: Pair = Field((0.0, 1.0), description="times (low, high); guidance acts for low < t <= high")
    sigmas: Pair | None = Field(None, description="the same in sigma / alpha, EDM's sigma")
    rescale: float = Field(0.0, ge=0, le=1, description="share phi of the estimate with the conditional one's contrast")

    @model_validator(mode="after")
    def _check(self) -> GuidanceOptions:
        bad = [f"interval = {list(self.interval)} must lie in [0, 1]"] if not _within(self.interval) else []
        if self.sigmas and not 0 <= self.sigmas[0] <= self.sigmas[1]:
            bad.append(f"sigmas = {list(self.sigmas)} must be [low, high] from 0 up")
        contradictions(bad)
        return self

    def unlabelled(self) -> list[str]:
        """Why one class for each image would not be enough; empty where it is."""
        return []


def _within(interval: tuple[float, float]) -> bool:
    return 0 <= interval[0] <= interval[1] <= 1


class ClassifierFreeGuidance(GuidanceOptions):
    """From the null class towards a class (2207.12598)."""

    kind: Literal["classifier_free"] = "classifier_free"
    scale: float = Field(2.0, description="1 is the conditional model")


class CompositionGuidance(GuidanceOptions):
    """Towards several classes at once, or away from some (2206.01714)."""

    kind: Literal["composition"] = "composition"
    scales: Annotated[Floats, Field(min_length=1)] = Field(
        (2.0,), description="one for each class; away where negative"
    )
    classes: Ints = Field((), description="numbers of the last classes, the same for all images")

    def unlabelled(self) -> list[str]:
        if len(self.classes) == len(self.scales) - 1:
            return []
        return [
            f"guidance.scales = {list(self.scales)} needs {len(self.scales) - 1} numbers in guidance.classes (the "
            f"image's own class comes first), not {list(self.classes)}"
        ]


def numbered(value: Any) -> Any:
    """A number is the scale of classifier-free guidance; a name is a kind; a table's keys say which it is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "classifier_free", "scale": value}
    if isinstance(value, dict):
        return {"kind": "composition" if value.keys() & {"scales", "classes"} else "classifier_free"} | value
    return named(value)


GuidanceConfig = Annotated[
    Annotated[ClassifierFreeGuidance | CompositionGuidance, Field(discriminator="kind")],
    BeforeValidator(numbered),
]


def guidance_config(value: Any) -> Any:
    """The guidance spec of a number, a dict with `kind`, or a spec.

    Raises:
        ConfigError: unknown kind or option.
    """
    return validated("guidance", TypeAdapter(GuidanceConfig), value)
