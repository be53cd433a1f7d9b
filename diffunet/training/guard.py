"""Whether a step may reach the weights: its loss and gradient must be finite, and its loss not suddenly large.

Every process judges the same numbers (the loss over all of them, the norm of the whole gradient), so all of them keep
or leave out the same steps.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any, Literal

from diffunet.spec import SpikeConfig

Verdict = Literal["kept", "nonfinite", "spike"]


class Guard:
    """Remembers the last losses and judges the next one; remembers which checkpoint was good before a spike.

    A spike is a loss that lies above their median m by more than (factor - 1) max(|m|, their median deviation from m):
    above factor times m where losses are positive. Until half of the window is seen there is none.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.losses: list[float] = []
        self.pinned: int | None = None
        self.quiet = 0  # steps since the last spike

    @property
    def typical(self) -> float | None:
        """The median of the last losses; None before there are enough."""
        return median(self.losses) if 2 * len(self.losses) >= self.config.window else None

    def judge(self, loss: float, norm: float) -> Verdict:
        """What a step's loss and gradient norm say of it."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "nonfinite"
        middle, before = self.typical, self.losses
        self.losses = [*before[1 - self.config.window :], loss]
        if middle is None or self.config.policy == "off":
            return "kept"
        spread = median(abs(value - middle) for value in before)
        limit = middle + (self.config.factor - 1) * max(abs(middle), spread)
        self.quiet = 0 if loss > limit else self.quiet + 1
        if self.quiet >= self.config.window:
            self.pinned = None
        return "kept" if self.quiet else "spike"

    def pin(self, step: int | None) -> None:
        """Hold the last checkpoint from before a spike, until no other one comes for a whole window."""
        if self.pinned is None:
            self.pinned = step

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"losses": self.losses, "pinned": self.pinned, "quiet": self.quiet}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.losses = [float(value) for value in state.get("losses", [])]
        self.pinned, self.quiet = state.get("pinned"), int(state.get("quiet", 0))
