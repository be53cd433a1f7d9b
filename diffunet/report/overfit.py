"""Since when does a run over-fit? Told from its losses on held-out and on as many training images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffunet.report.curves import Series, smoothed

# With these, noise around a level curve is taken for an over-fit in fewer than 1 of 50 runs (simulated, 8 to 200
# measurements), and a rise of a third of the minimum is found within a quarter of the run.
FEWEST = 8  # measurements before anything is said
LASTING = 3  # measurements that must all lie above the minimum, up to the last
SIGMAS, LEAST = 4.0, 0.005  # how far above it: so many deviations, and at least this share of it
RULE = (
    f"the first measurement from which on the held-out loss (mean of three) stayed above its minimum by more than "
    f"{SIGMAS:g} deviations of its noise and {LEAST:.1%} of it, {LASTING} times at least and up to now, while the loss "
    "on seen images fell"
)


@dataclass(frozen=True)
class Verdict:
    """What the curves say.

    Attributes:
        since: the step from which on the model over-fits, by `RULE`; None: not yet.
        best: the step of the least held-out loss (mean of three); None before there are `FEWEST` measurements.
        gap: the newest held-out less the newest seen loss.
        noise: deviation of one measurement of the held-out loss.
        rise: the newest held-out loss (mean of three) over its minimum, less 1.
        measurements: of the held-out loss.
    """

    since: int | None = None
    best: int | None = None
    gap: float | None = None
    noise: float | None = None
    rise: float | None = None
    measurements: int = 0

    @property
    def text(self) -> str:
        """One sentence for people."""
        if self.measurements == 0:
            return "no loss on held-out images"
        if self.best is None:
            return f"too early to tell: {self.measurements} of {FEWEST} measurements of the held-out loss"
        if self.since is None:
            return "not over-fitting yet"
        return f"over-fits since step {self.since:,}; the held-out loss was least at step {self.best:,}"

    def to_json(self) -> dict[str, Any]:
        """The same as a dict that JSON can hold."""
        return asdict(self) | {"text": self.text}


def _noise(values: np.ndarray) -> float:
    """Deviation of one value of (N,), N >= 3, around a straight line through its neighbours.

    The residual v_k - (v_(k-1) + v_(k+1)) / 2 has 1.5 times the variance of a value; its median is not led astray by a
    few steep places.
    """
    residuals = values[1:-1] - (values[:-2] + values[2:]) / 2
    return float(1.4826 * np.median(np.abs(residuals)) / np.sqrt(1.5))


def judge(held_out: Series, seen: Series) -> Verdict:
    """Hold the two curves against each other.

    Args:
        held_out: loss on held-out images.
        seen: loss on training images; where a run did not measure that, its training loss, smoothed.
    """
    latest = [curve.last for curve in (held_out, seen)]
    gap = None if None in latest else latest[0] - latest[1]  # type: ignore[operator]
    if len(held_out) < FEWEST:
        return Verdict(gap=gap, measurements=len(held_out))
    curve, noise = smoothed(held_out.value), _noise(held_out.value)
    best = int(np.argmin(curve))
    above = curve > curve[best] + max(SIGMAS * noise, LEAST * abs(float(curve[best])))
    below = np.flatnonzero(~above)
    first = int(below[-1]) + 1  # the minimum itself is never above, so there is one
    lasts = len(curve) - first >= LASTING
    known = seen.at(held_out.step)
    fell = bool(np.isfinite(known).all() and smoothed(known)[-1] < smoothed(known)[best])
    return Verdict(
        since=int(held_out.step[first]) if lasts and fell else None,
        best=int(held_out.step[best]),
        gap=gap,
        noise=noise,
        rise=float(curve[-1] / curve[best] - 1) if curve[best] else None,
        measurements=len(held_out),
    )
