"""A schedule and what is guessed on it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from diffunet.spec.base import Pair, Spec, contradictions
from diffunet.spec.schedules import LinearSchedule, ScheduleConfig

PredictionName = Literal["eps", "x0", "v", "flow", "edm"]
OWN = {"karras": "edm", "flow": "flow"}  # the prediction made for a schedule


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
