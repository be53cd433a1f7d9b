"""The gradient noise scale: about how many images a step can use before more of them hardly help (1812.06162).

With G the true gradient and S the trace of the covariance of one image's, a gradient over b images has
E |G_b|^2 = |G|^2 + S / b (eq. A.1). The norms of a micro-step's gradient and of the whole step's give both unknowns
(eq. A.2), whose running means give B_simple = S / |G|^2 (eq. 2.9).
"""

from __future__ import annotations

from typing import Any

_KEEP = 0.98  # of the running means a step


class NoiseScale:
    """Running means of |G|^2 and S.

    Args:
        small: images of a micro-step on one process.
        large: images of a step.
    """

    def __init__(self, small: int, large: int) -> None:
        self.small, self.large = small, large
        self.square, self.trace = 0.0, 0.0
        self.seen = 0

    def observe(self, small_square: float, large_square: float) -> float | None:
        """B_simple after one step more, in images; None while the estimate of |G|^2 is not positive.

        Args:
            small_square: squared norm of the mean gradient over `small` images, the mean over the processes.
            large_square: the same over `large` images.
        """
        b, B = self.small, self.large
        square = (B * large_square - b * small_square) / (B - b)
        trace = (small_square - large_square) / (1 / b - 1 / B)
        self.seen += 1
        keep = min(_KEEP, 1 - 1 / self.seen)
        self.square = keep * self.square + (1 - keep) * square
        self.trace = keep * self.trace + (1 - keep) * trace
        return self.trace / self.square if self.square > 0 else None

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"square": self.square, "trace": self.trace, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; a new start where it is empty."""
        self.square, self.trace = float(state.get("square", 0.0)), float(state.get("trace", 0.0))
        self.seen = int(state.get("seen", 0))
