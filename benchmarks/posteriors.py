"""Methods of restoring against the exact posterior of a Gaussian prior: writes benchmarks/posteriors.md.

    python -m benchmarks.posteriors [--json]

Five pixels, alike where they are near, are measured by y = A x + n; each method draws 2,000 times from the exact
denoiser, and mean and covariance of the draws stand beside those of the posterior.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffunet.inverse import METHODS, Operator, Problem, build_method, build_operator
from diffunet.schedules import Schedule


class Correlated:
    """x_0 ~ N(mean, C) of images (1, d), one dimension; called as den(x_t, t) with x_t (B, 1, d) in float64."""

    def __init__(self, schedule: Schedule, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean, self.covariance = schedule, mean, covariance
        self.shape = (1, len(mean))

    def __call__(self, x_t: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x_0 | x_t] = m + a C (a^2 C + s^2 I)^-1 (x_t - a m)."""
        a, s = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        total = a**2 * self.covariance + s**2 * torch.eye(len(self.mean), dtype=torch.float64)
        gain = a * torch.linalg.solve(total, self.covariance)
        return self.mean + (x_t - a * self.mean) @ gain

    def posterior(self, operator: Operator, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of x_0 given y (1, *measured)."""
        A = matrix(operator)
        rows = A @ self.covariance @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64)
        gain = torch.linalg.lstsq(rows, A @ self.covariance, driver="gelsd").solution.T
        mean = self.mean + gain @ (y.flatten() - A @ self.mean)
        return mean, self.covariance - gain @ A @ self.covariance


class OneStream:
    """Noise of a whole batch from one generator: as many images as statistics need, quickly."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def like(self, x: Tensor) -> Tensor:
        """Unit noise shaped as x."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def matrix(operator: Operator) -> Tensor:
    """A as a matrix (M, N) in float64, column by column."""
    n = 1
    for side in operator.shape:
        n *= side
    columns = torch.eye(n, dtype=torch.float64).view(n, *operator.shape)
    return operator(columns).flatten(1).T


def smooth(d: int, length: float = 1.5, std: float = 0.5) -> Tensor:
    """Covariance (d, d) of neighbours that are alike: std^2 exp(-|i - j| / length)."""
    place = torch.arange(d, dtype=torch.float64)
    return std**2 * torch.exp(-(place[:, None] - place[None]).abs() / length)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of samples (B, 1, d)."""
    flat = x.flatten(1)
    return flat.mean(dim=0), torch.cov(flat.T)


SIZE, DRAWS, STEPS = 5, 2000, 100
MEAN, COVARIANCE = torch.linspace(-0.4, 0.4, SIZE, dtype=torch.float64), smooth(SIZE)
OPERATORS = {
    "mask": {"kind": "mask", "known": 0.5},
    "average": {"kind": "average", "scale": 2},
    "blur": {"kind": "gaussian_blur", "std": 0.8},
}


class Off(NamedTuple):
    """How far the draws are from the posterior.

    mean: the largest error of the mean. trace: the covariance's trace over the right one. covariance: the Frobenius
    norm of its error over that of the right one.
    """

    mean: float
    trace: float
    covariance: float


def measured(A: Operator, sigma: float) -> Tensor:
    """One y (1, *M) of an image drawn from the prior."""
    generator = torch.Generator().manual_seed(5)
    root = torch.linalg.cholesky(COVARIANCE)
    y = A(MEAN + torch.randn(1, 1, SIZE, dtype=torch.float64, generator=generator) @ root.T)
    return y + sigma * torch.randn(y.shape, dtype=torch.float64, generator=generator)


def drawn(
    method: dict[str, Any], operator: str, sigma: float, schedule: Schedule, steps: int, draws: int = DRAWS
) -> tuple[Tensor, Correlated, Operator, Tensor]:
    """Samples (draws, 1, SIZE), and what they are samples of."""
    den, A = Correlated(schedule, MEAN, COVARIANCE), build_operator(OPERATORS[operator], (1, SIZE))
    y = measured(A, sigma)
    walker = build_method(method, Problem(A, y.expand(draws, *y.shape[1:]), sigma), den)
    noise = OneStream(1)
    with torch.no_grad():
        x = walker.begin(A.guess(y).expand(draws, 1, SIZE), 1.0, noise)
        for state in walker.walk(den, schedule, x, walker.times(schedule, steps), noise):
            x = state.x
    return x, den, A, y


def off(method: dict[str, Any], operator: str, sigma: float, schedule: Schedule, steps: int) -> Off:
    """Error of mean and covariance."""
    x, den, A, y = drawn(method, operator, sigma, schedule, steps)
    (mean, covariance), (right, spread) = moments(x), den.posterior(A, y, sigma)
    error = (covariance - spread).norm() / spread.norm()
    return Off(float((mean - right).abs().max()), float(covariance.trace() / spread.trace()), float(error))


PLAIN = ("mean", "sample")  # for pictures with noise and no other loss


def table() -> list[dict[str, Any]]:
    """A row for each method, operator and noise that go together."""
    rows = []
    for kind in (name for name in METHODS if name not in PLAIN):
        for operator in ("mask",) if kind == "repaint" else OPERATORS:
            for sigma in (0.2,) if operator == "blur" else (0.0, 0.2):  # a blur without noise leaves one image
                found = off({"kind": kind}, operator, sigma, Schedule.linear(), STEPS)
                rows.append({"method": kind, "operator": operator, "sigma": sigma, **found._asdict()})
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """benchmarks/posteriors.md."""
    lines = [
        "# Methods of restoring beside the exact posterior",
        "",
        f"Made by `python -m benchmarks.posteriors`: {SIZE} pixels with a Gaussian prior (deviation 0.5, neighbours "
        f"alike), its exact denoiser on the linear schedule, {STEPS} steps of each method in its defaults, {DRAWS:,} "
        "draws of one measurement. Chance alone leaves 0.03 of the mean and 0.05 of the covariance.",
        "",
        "| method | operator | noise | largest error of the mean | trace of the covariance, of the right one | "
        "error of the covariance |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['method']} | {r['operator']} | {r['sigma']:g} | {r['mean']:.3f} | {r['trace']:.2f} | "
        f"{r['covariance']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = table()
    Path(__file__).with_suffix(".md").write_text(page(rows))
    print(json.dumps(rows) if asked.json else page(rows))


if __name__ == "__main__":
    main()
