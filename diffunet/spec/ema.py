"""Which averages of the weights a run keeps."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, Strict, model_validator

from diffunet.spec.base import Count, Spec, contradictions


def _listed(value: object) -> object:
    """One length stands for a list of it: `--ema.sigma_rel 0.05`."""
    return (value,) if isinstance(value, float) else value


Lengths = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=0.2886)], ...],
    Strict(False),
    BeforeValidator(_listed),
    Field(max_length=8),
]


class EMAConfig(Spec):
    """Averages of the weights: the one with a warm-up, and any number of power-function profiles (EDM2, 2312.02696).

    The first, "ema", is the one that is sampled by default: step n uses min(decay, (1 + n) / (10 + n)), so that early
    averages are not noise. The others are kept so that an average of any length can be made after training.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    sigma_rel: Lengths = Field(
        (), description="lengths of power-function averages relative to the training, in (0, 0.288): [0.05, 0.1]"
    )
    snapshot_every: Count | None = Field(
        None, description="steps between snapshots of these averages in RUN/ema; only at the end if unset"
    )

    @model_validator(mode="after")
    def _check(self) -> EMAConfig:
        names = [f"{length:.3f}" for length in self.sigma_rel]
        bad = []
        if len(set(names)) < len(names) or "0.000" in names:
            bad.append(f"sigma_rel = {list(self.sigma_rel)} must be distinct and above 0 at three decimals")
        if self.snapshot_every is not None and not self.sigma_rel:
            bad.append(
                f"snapshot_every = {self.snapshot_every} needs sigma_rel: there is no average to keep snapshots of; "
                "set sigma_rel = [0.05, 0.1]"
            )
        contradictions(bad)
        return self
