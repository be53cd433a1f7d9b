"""Curves of a run: columns of its metrics, thinned for a drawing, and smoothed by a running median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffunet.report.reading import Record, number, table


@dataclass(frozen=True, eq=False)
class Series:
    """Finite values at rising steps, both (N,) float64, N >= 0."""

    step: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    @property
    def last(self) -> float | None:
        """The newest value."""
        return float(self.value[-1]) if len(self) else None

    def at(self, step: np.ndarray) -> np.ndarray:
        """The value at each of these steps, between two known ones on a straight line; NaN where nothing is known."""
        return np.interp(step, self.step, self.value) if len(self) else np.full(len(step), np.nan)


def series(step: Sequence[float] | np.ndarray, value: Sequence[float] | np.ndarray) -> Series:
    """The finite ones of some values."""
    steps, values = np.asarray(step, dtype=np.float64), np.asarray(value, dtype=np.float64)
    kept = np.isfinite(values)
    return Series(steps[kept], values[kept])


def column(records: Sequence[Record], *keys: str | int) -> Series:
    """One number of each record that has it: `column(records, "held_out", "bins", 3)`."""
    steps, values = [], []
    first, *rest = keys
    for record in records:
        value = record.get(str(first))
        if value is None:
            continue
        for key in rest:
            if isinstance(key, int):
                value = value[key] if isinstance(value, list) and key < len(value) else None
            else:
                value = table(value).get(key)
        steps.append(record["step"])
        values.append(number(value))
    return series(steps, values)


def _buckets(length: int, most: int) -> np.ndarray:
    """Where each of at most `most` even parts of `length` items begins."""
    return np.unique(np.linspace(0, length, min(most, length) + 1).astype(int)[:-1])


def thinned(curve: Series, most: int = 800) -> Series:
    """At most `most` points: the least and the greatest of each part, so that no spike is lost."""
    if len(curve) <= most:
        return curve
    starts = _buckets(len(curve), most // 2)
    ends = np.append(starts[1:], len(curve))
    places = sorted(
        {int(a + function(curve.value[a:b])) for a, b in zip(starts, ends, strict=True) for function in EXTREMES}
    )
    return Series(curve.step[places], curve.value[places])


EXTREMES = (np.argmin, np.argmax)


def running_median(curve: Series, most: int = 200) -> Series:
    """The median of each of at most `most` even parts of at least five points, at the part's middle step."""
    if len(curve) < 10:
        return curve
    starts = _buckets(len(curve), min(most, len(curve) // 5))
    ends = np.append(starts[1:], len(curve))
    parts = list(zip(starts, ends, strict=True))
    medians = [float(np.median(curve.value[a:b])) for a, b in parts]
    return Series(np.array([curve.step[a:b].mean() for a, b in parts]), np.array(medians))


def recent(curve: Series, count: int = 100) -> float | None:
    """The median of the newest values."""
    return float(np.median(curve.value[-count:])) if len(curve) else None


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its two neighbours, (N,) -> (N,)."""
    total = np.convolve(values, np.ones(3), mode="same")
    return total / np.convolve(np.ones(len(values)), np.ones(3), mode="same")
