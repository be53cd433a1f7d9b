"""What else the network of benchmarks.denoising is asked: pictures that lost pixels, with a classical answer beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.interpolate import griddata
from torch import Tensor
from torch.nn import functional as F

from diffunet.inverse import Operator, build_operator, restore

OURS = "here, one network for all"


@dataclass(frozen=True)
class Puzzle:
    """One way to lose pixels, its classical answer, and how the network is asked."""

    title: str
    baseline: str
    operator: Callable[[tuple[int, ...]], Operator]
    simple: Callable[[Operator, Tensor], Tensor]
    method: dict[str, Any]
    steps: int
    start: float  # sigma at which the walk begins, of 255
    sigma: float = 0.0  # noise that the method is told of, of 255
    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def enlarged(operator: Operator, y: Tensor) -> Tensor:
    """Bicubic interpolation to the size before."""
    return F.interpolate(y, size=operator.shape[1:], mode="bicubic").clamp(-1, 1)


def filled(operator: Operator, y: Tensor) -> Tensor:
    """Cubic interpolation over the triangles of the known pixels; the nearest one outside of them."""
    known = operator(torch.ones(1, *operator.shape))[0, 0].bool().numpy()
    values, places, missing = y[0, 0].numpy().copy(), np.argwhere(known), np.argwhere(~known)
    cubic = griddata(places, values[known], missing, method="cubic")
    nearest = griddata(places, values[known], missing, method="nearest")
    values[~known] = np.where(np.isnan(cubic), nearest, cubic)
    return torch.from_numpy(values)[None, None].clamp(-1, 1)


def smaller(shape: tuple[int, ...]) -> Operator:
    """Half as high and wide, by the antialiased bicubic kernel."""
    return build_operator({"kind": "bicubic", "scale": 2}, shape)


def masked(shape: tuple[int, ...], known: float) -> Operator:
    """A random share of the pixels."""
    return build_operator({"kind": "mask", "known": known}, shape)


FRESH = {"kind": "diffpir", "fresh": 1.0}
CUBIC = "cubic interpolation"
PUZZLES = (
    Puzzle("super-resolution x2", "bicubic", smaller, enlarged, FRESH, 40, 30.0),
    Puzzle("inpainting, half of the pixels known", CUBIC, partial(masked, known=0.5), filled, FRESH, 40, 30.0),
    Puzzle("inpainting, a fifth of the pixels known", CUBIC, partial(masked, known=0.2), filled, FRESH, 40, 30.0),
)


def solved(den: Any, puzzle: Puzzle, x0: Tensor, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The classical answer and the network's, which begins with the other."""
    operator = puzzle.operator(tuple(x0.shape[1:]))
    y = operator(x0)
    simple = puzzle.simple(operator, y)
    yield puzzle.baseline, simple
    start = den.schedule.t_of_sigma(puzzle.start / 127.5)
    yield (
        OURS,
        restore(
            den,
            operator,
            y,
            puzzle.sigma / 127.5,
            puzzle.method,
            steps=puzzle.steps,
            start=start,
            guess=simple,
            seed=seed,
        ),
    )
