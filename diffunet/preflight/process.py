"""The process as the network meets it: which noise levels it is trained at, and how large what it should say is.

Legend: r = alpha / sigma at t = 1, the signal that is left in pure noise; logSNR = log(alpha^2 / sigma^2).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffunet.denoiser import Denoiser
from diffunet.objectives import Objective
from diffunet.preflight.section import Section, bars

LEVELS = 8  # noise levels that are shown
TENTHS, DRAWS = 10, 10_000
LEFT = 0.05  # signal beside unit noise at t = 1 that sampling, which begins without any, will miss
WIDEST = 20.0  # logSNR beyond which levels look alike
TARGETS = (0.3, 3.0)  # sound sizes of what a network should say


@dataclass(frozen=True)
class Level:
    """One noise level, on a batch of images.

    Args:
        t, alpha, sigma, logsnr: where it is.
        input: root mean square of what the network is fed.
        target: root mean square of what it should say.
    """

    t: float
    alpha: float
    sigma: float
    logsnr: float
    input: float
    target: float


def times(den: Denoiser, objective: Objective) -> Tensor:
    """Noise levels (LEVELS,) that part the training times into equal shares, from clean to noise, float64."""
    u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    return objective.held_out_times(den, u).double().cpu().sort().values


def rms(x: Tensor) -> float:
    """Root mean square of all values."""
    return float(x.double().square().mean().sqrt())


def level_at(den: Denoiser, t: Tensor, x0: Tensor, eps: Tensor) -> Level:
    """What the network meets at time t () of images x0 and noise eps (B, C, *S)."""
    _, alpha, sigma = den.levels(t, x0)
    x_t = alpha * x0 + sigma * eps
    a, s = (float(value) for value in den.schedule.alpha_sigma(t))
    logsnr = math.inf if s == 0 else -math.inf if a == 0 else 2 * (math.log(a) - math.log(s))
    fed, wanted = den.rule.input(x_t, alpha, sigma), den.rule.target(x0, eps, alpha, sigma)
    return Level(float(t), a, s, logsnr, rms(fed), rms(wanted))


def shares(den: Denoiser, objective: Objective) -> tuple[list[float], list[float]]:
    """The edges of ten equal parts of the schedule's logSNR, falling noise, and the share of training times in each."""
    ends = [float(den.schedule.logsnr(torch.tensor(t, dtype=torch.float64))) for t in (1.0, den.schedule.t_min)]
    low, high = max(-WIDEST, ends[0]), min(WIDEST, ends[1])
    u = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    found = den.schedule.logsnr(objective.held_out_times(den, u).double().cpu()).clamp(low, high)
    place = ((found - low) / (high - low) * TENTHS).long().clamp(max=TENTHS - 1)
    counts = torch.bincount(place, minlength=TENTHS)
    return torch.linspace(low, high, TENTHS + 1).tolist(), (counts / DRAWS).tolist()


def signal_left(den: Denoiser) -> tuple[float, str, str | None]:
    """r, what that means, and a warning where it is too much."""
    alpha, sigma = (float(value) for value in den.schedule.alpha_sigma(torch.tensor(1.0, dtype=torch.float64)))
    left = alpha / sigma
    if left == 0:
        return left, "no signal is left at t = 1", None
    line = f"signal left at t = 1: alpha / sigma = {left:.4g}"
    if left <= LEFT:
        return left, line, None
    return (
        left,
        line,
        f"{100 * left:.0f} % of the signal is left at t = 1, but sampling begins with none: the mean brightness of "
        "samples will be off; use a schedule with more noise at its end, such as 'cosine' or zero_terminal_snr",
    )


def level_warnings(found: list[Level], prediction: str) -> list[str]:
    """What is out of scale."""
    low, high = TARGETS
    off = [level for level in found if not low <= level.target <= high]
    if not off:
        return []
    worst = max(off, key=lambda level: abs(math.log(max(level.target, 1e-12))))
    return [
        f"what the network should say has root mean square {worst.target:.3g} at logSNR {worst.logsnr:.1f} "
        f"(sound: {low} to {high}): look at data.value_range, or another process.prediction than '{prediction}'"
    ]


def section(den: Denoiser, objective: Objective, x0: Tensor, eps: Tensor) -> Section:
    """All that is to be said of the process.

    Args:
        den: the denoiser that is to be trained.
        objective: says at which times.
        x0, eps: a batch as training draws it, (B, C, *S).
    """
    found = [level_at(den, t, x0, eps) for t in times(den, objective)]
    edges, parts = shares(den, objective)
    left, line, warning = signal_left(den)
    names = [f"logSNR {a:6.1f} to {b:6.1f}" for a, b in pairwise(edges)]
    lines = [line, "training times in each tenth of logSNR, from noise to clean:"]
    lines += bars(names, parts, [f"{100 * share:.1f} %" for share in parts])
    lines.append("root mean square of the network's input and target at the levels of the picture:")
    lines += [f"t {v.t:.3f}  logSNR {v.logsnr:6.1f}  input {v.input:6.3f}  target {v.target:6.3f}" for v in found]
    values: dict[str, Any] = {
        "signal_left": left,
        "levels": [asdict(level) | {"logsnr": _finite(level.logsnr)} for level in found],
        "logsnr_edges": edges,
        "time_shares": parts,
    }
    warnings = ([warning] if warning else []) + level_warnings(found, den.prediction)
    return Section("process", lines, values, warnings)


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
