"""A schedule and what is guessed on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from diffunet.spec.base import Pair, Spec, by_name, contradictions, validated
from diffunet.spec.schedules import LinearSchedule, ScheduleConfig, ScheduleSpec, schedule_config

PredictionName = Literal["eps", "x0", "v", "flow", "edm"]
# what the formula of a prediction asks of a schedule; x0 asks nothing
NEEDS: dict[str, tuple[Callable[[ScheduleSpec], bool], str]] = {
    "eps": (lambda schedule: not schedule.ends_in_noise, "signal at t = 1, alpha(1) > 0"),
    "v": (lambda schedule: schedule.preserves, "alpha^2 + sigma^2 = 1"),
    "flow": (lambda schedule: schedule.straight, "schedule 'flow', alpha + sigma = 1"),
    "edm": (lambda schedule: schedule.explodes, "schedule 'karras' or 've', alpha = 1"),
}


def mismatch(schedule: Any, prediction: str) -> list[str]:
    """Why the formula of a prediction cannot hold on a schedule (a spec or its name); empty where it can.

    eps divides by alpha, which is 0 at t = 1 on straight paths and with zero_terminal_snr (2305.08891, section 3.2);
    v turns by an angle (2202.00512, appendix D); flow's x_0 = x - t u and EDM's preconditioning each belong to one way
    of adding noise.

    Raises:
        ConfigError: unknown schedule.
    """
    config = schedule_config(schedule)
    if prediction not in NEEDS or NEEDS[prediction][0](config):
        return []
    need = NEEDS[prediction][1]
    return [f"prediction '{prediction}' needs {need}, which schedule '{config.kind}' has not; use '{config.own}'"]


class DynamicClip(Spec):
    """Each estimate is cut at a percentile of its own |x_0|, never below 1, and divided by it (2205.11487)."""

    kind: Literal["dynamic"] = "dynamic"
    percentile: float = Field(0.995, gt=0, le=1)
    limit: float | None = Field(None, ge=1, description="the largest cut; none if unset")


def _clip_kind(value: Any) -> str:
    return "dynamic" if isinstance(value, (str, dict, DynamicClip)) else "static"


ClipConfig = Annotated[
    Annotated[Pair, Tag("static")] | Annotated[DynamicClip, by_name("dynamic"), Tag("dynamic")],
    Discriminator(_clip_kind),
]


class ProcessConfig(Spec):
    """How noise is added and what the network guesses."""

    schedule: ScheduleConfig = LinearSchedule()
    prediction: PredictionName = "eps"
    clip: ClipConfig | None = Field(
        (-1.0, 1.0), description="threshold of the clean estimate: [low, high], a dynamic one, or false for none"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_clip(cls, data: Any) -> Any:
        # TOML has no null: `clip = false` says "no threshold".
        return data | {"clip": None} if isinstance(data, dict) and data.get("clip") is False else data

    @model_validator(mode="after")
    def _check(self) -> ProcessConfig:
        bad = []
        if isinstance(self.clip, tuple) and self.clip[0] >= self.clip[1]:
            bad.append(f"clip = {list(self.clip)} must be [low, high]")
        bad += mismatch(self.schedule, self.prediction)
        if self.prediction in ("eps", "x0") and self.schedule.explodes:
            fed, kind = f"prediction '{self.prediction}' feeds the network unscaled noise", self.schedule.kind
            bad.append(f"{fed}; use 'edm' with '{kind}'")
        contradictions(bad)
        return self


def clip_config(value: Any) -> Any:
    """A threshold: None, a pair (low, high), or the spec of a dynamic one from its name, a dict or the spec.

    Raises:
        ConfigError: neither, or an unknown option.
    """
    return validated("clip", TypeAdapter(ClipConfig | None), value)
