"""What a sampler is: a plan of legs t -> s, each a linear map written down before the first network call.

Almost every sampler of the literature takes a linear combination of x, fresh clean estimates, earlier estimates and
unit noise (a general linear method: Butcher, 2006). A rule writes its formula once, on linear forms named "x", "z",
"D0" (this leg's first estimate), "H1" (the previous leg's), and so on; the numbers in front of the tensors are then
known for the whole grid, and a step costs a handful of tensor operations.

Legend: a Point is (t, alpha, sigma) of x_t = alpha x_0 + sigma eps; D estimates x_0; lambda = log(alpha / sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Spacing = str | Sequence[float] | None


class Form:
    """A linear form: a number for each named tensor. `2 * Form.of("x") - D / 3` is again one."""

    def __init__(self, terms: Mapping[str, float]) -> None:
        self.terms = {name: float(value) for name, value in terms.items()}

    @classmethod
    def of(cls, name: str) -> Form:
        """The tensor of this name itself."""
        return cls({name: 1.0})

    def __add__(self, other: Form) -> Form:
        names = self.terms | other.terms
        return Form({name: self.terms.get(name, 0.0) + other.terms.get(name, 0.0) for name in names})

    def __mul__(self, factor: float) -> Form:
        return Form({name: value * factor for name, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Form:
        return self * -1.0

    def __sub__(self, other: Form) -> Form:
        return self + -other

    def __truediv__(self, divisor: float) -> Form:
        return self * (1.0 / divisor)

    def row(self) -> Row:
        """The form without its zeros, as fast to apply as it gets."""
        return tuple((name, value) for name, value in self.terms.items() if value != 0.0)


Row = tuple[tuple[str, float], ...]


def apply(row: Row, values: Mapping[str, Tensor]) -> Tensor:
    """The combination of tensors that a row stands for."""
    if not row:
        return torch.zeros_like(values["x"])
    if row[0][1] == 1.0 and len(row) == 1:
        return values[row[0][0]]
    (first, factor), *rest = row
    result = values[first] * factor
    for name, value in rest:
        result.add_(values[name], alpha=value)
    return result


X, Z, D0 = Form.of("x"), Form.of("z"), Form.of("D0")
X_ROW = X.row()


class Point(NamedTuple):
    """A place on the grid: time, size of the signal, size of the noise."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """lambda = log(alpha / sigma), half the logSNR; infinite where there is no noise or no signal."""
        if self.sigma == 0.0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0.0 else -math.inf


class Leg(NamedTuple):
    """One step from t to s.

    stages: where the denoiser is asked and at which x; estimate k is named "Dk". No stage: a leg of noise alone.
    end: x at s. keep: what the next legs know by which name.
    """

    t: float
    s: float
    stages: tuple[tuple[float, Row], ...]
    end: Row
    keep: tuple[tuple[str, Row], ...] = ()
    noisy: bool = False

    @classmethod
    def of(
        cls, t: Point, s: Point, end: Form, keep: Mapping[str, Form] | None = None, stages: Any = ((None, X),)
    ) -> Leg:
        """A leg from forms; the usual one stage asks at t about x itself, and `stages` are (Point, Form) otherwise."""
        rows = tuple(((t if point is None else point).t, form.row()) for point, form in stages)
        kept = tuple((name, form.row()) for name, form in (keep or {}).items())
        used = [row for _, row in rows] + [end.row()] + [row for _, row in kept]
        return cls(t.t, s.t, rows, end.row(), kept, any(name == "z" for row in used for name, _ in row))


class Step(NamedTuple):
    """Result of one step: the next x, the clean estimate on the way (None without one), what later steps remember."""

    x: Tensor
    x0: Tensor | None
    history: Any = None


class State(NamedTuple):
    """Where a walk stands: steps done, steps in all, the time reached, x there, and the last clean estimate."""

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor


class Noise:
    """Unit noise with one generator per image, on the CPU, so that an image never depends on its batch or device.

    Image i of seed s starts as `torch.randn(shape, generator=torch.Generator().manual_seed(s))`.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Fresh noise (N, *shape) in float32."""
        rows = [torch.randn(tuple(shape), generator=generator) for generator in self.generators]
        return torch.stack(rows).to(device)

    def like(self, x: Tensor) -> Tensor:
        """Fresh noise shaped as x (N, C, *S), on its device and in its dtype."""
        return self(x.shape[1:], x.device).to(x.dtype)


def points(schedule: Any, times: Sequence[float]) -> list[Point]:
    """alpha and sigma at each time, as numbers."""
    return [Point(t, float(schedule.alpha(t)), float(schedule.sigma(t))) for t in times]


class Sampler:
    """A rule that plans legs. One part for each entry of SAMPLERS.

    order: order of convergence that the rule claims on a smooth denoiser; stochastic rules claim none.
    spacing: the time grid that it would have where nobody asks for one; None leaves that to the schedule.
    calls: network calls of a step; the last step of a rule with several may need fewer.
    """

    order: int | None = None
    spacing: ClassVar[str | None] = None
    calls: ClassVar[int] = 1

    def times(self, schedule: Any, steps: int, spacing: Spacing = None) -> list[float]:
        """The times that it visits, from noise to clean, `steps` + 1 of them.

        A denoiser whose schedule brings no grid of its own is cut evenly.
        """
        own = getattr(schedule, "grid", None)
        if own is None:
            return [1 - i / steps for i in range(steps + 1)]
        return list(own(steps, spacing or self.spacing).tolist())

    def legs(self, schedule: Any, times: Sequence[float]) -> list[Leg]:
        """The plan: one leg for each pair of neighbouring times. Times may rise, as in inversion."""
        raise AssertionError(f"{type(self).__name__} must say its legs")

    def scale(self, schedule: Any) -> float:
        """Size of the first noise: x_1 = scale eps."""
        return float(schedule.sigma(1.0))

    def step(self, denoise: Denoise, x: Tensor, leg: Leg, noise: Noise, history: Any = None) -> Step:
        """Go from x (B, C, *S) at leg.t to leg.s; `denoise(x_t, t)` gives the clean estimate."""
        values: dict[str, Tensor] = {"x": x, **(history or {})}
        if leg.noisy:
            values["z"] = noise.like(x)
        for k, (t, row) in enumerate(leg.stages):
            values[f"D{k}"] = denoise(x if row == X_ROW else apply(row, values), t)
        kept = {name: apply(row, values) for name, row in leg.keep}
        return Step(apply(leg.end, values), values.get("D0"), kept)

    def run(
        self, denoise: Denoise, schedule: Any, eps: Tensor, steps: int, spacing: Spacing, noise: Noise
    ) -> Iterator[State]:
        """All steps from unit noise eps (B, C, *S): whoever iterates may stop in between."""
        times = self.times(schedule, steps, spacing)
        return self.walk(denoise, schedule, self.scale(schedule) * eps, times, noise)

    def walk(self, denoise: Denoise, schedule: Any, x: Tensor, times: Sequence[float], noise: Noise) -> Iterator[State]:
        """All steps over `times` from x (B, C, *S) at the first of them; they need not begin at 1 nor end at 0."""
        legs, history, x0 = self.legs(schedule, times), None, x
        for i, leg in enumerate(legs):
            x, estimate, history = self.step(denoise, x, leg, noise, history)
            x0 = x0 if estimate is None else estimate
            yield State(i + 1, len(legs), leg.s, x, x0)
