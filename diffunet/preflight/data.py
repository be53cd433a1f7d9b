"""The data as training will see it: how many, how large, of what values, in which classes, and what looks wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffunet.data import Images, Pairs, Split
from diffunet.data.base import Range
from diffunet.preflight.section import Section, bars
from diffunet.spec import RunConfig

LOOKED_AT = 256  # images that are read
NARROW = 0.25  # share of the range that sound data fill
ONE_END = 0.98  # share of all values at one end above which images are almost black, or almost white
UNEVEN = 10  # times more images in one class than in another
ROWS, NAMED = 20, 5  # classes in the histogram, bad files and images by name


@dataclass(frozen=True)
class Sample:
    """Some images, as training gets them.

    Args:
        images: float32 (C, *S) in [-1, 1]; sides may differ.
        names: of each, for messages.
        value_range: the stored values that became -1 and 1.
    """

    images: Sequence[np.ndarray]
    names: Sequence[str]
    value_range: Range

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(float(x.min()) for x in self.images), max(float(x.max()) for x in self.images)

    def stored(self, value: float) -> float:
        """The stored value that became this one."""
        low, high = self.value_range
        return low + (value + 1) / 2 * (high - low)

    def moments(self) -> tuple[float, float]:
        """Mean and deviation over all values."""
        count = sum(x.size for x in self.images)
        mean = sum(float(x.sum(dtype=np.float64)) for x in self.images) / count
        square = sum(float((x.astype(np.float64) ** 2).sum()) for x in self.images) / count
        return mean, max(0.0, square - mean**2) ** 0.5

    def share(self, holds: Callable[[np.ndarray], np.ndarray]) -> float:
        """The share of all values for which something holds."""
        return sum(int(holds(x).sum()) for x in self.images) / sum(x.size for x in self.images)


# --- what may be wrong: a line, or nothing ----------------------------------------------------------------------------


def constant(sample: Sample) -> str | None:
    """Images of one value."""
    names = [n for x, n in zip(sample.images, sample.names, strict=True) if float(x.max() - x.min()) < 1e-6]
    if not names:
        return None
    shown = ", ".join(names[:NAMED])
    return f"{len(names)} of {len(sample.images)} images looked at hold a single value: {shown}; take them out"


def byte_scale(sample: Sample) -> str | None:
    """0 and 1 where 0 and 255 are meant."""
    (low, high), (first, last) = (sample.stored(v) for v in sample.ends), sample.value_range
    if (first, last) == (0.0, 255.0) and low >= 0 and 0 < high <= 1.001:
        return "stored values are 0 to 1 in data whose range is 0 to 255: set data.value_range = [0, 1]"
    return None


def narrow(sample: Sample) -> str | None:
    """Values in a small part of the range."""
    low, high = sample.ends
    if byte_scale(sample) or not 1e-6 <= high - low < 2 * NARROW:
        return None
    low, high, (first, last) = sample.stored(low), sample.stored(high), sample.value_range
    share = (high - low) / (last - first)
    return (
        f"values fill {100 * share:.0f} % of the range {first:g} to {last:g}, so that images are nearly flat to the "
        f"network; set data.value_range = [{low:.4g}, {high:.4g}]"
    )


def dark(sample: Sample) -> str | None:
    """Images that are almost black, or almost white."""
    for word, at_end in (("black", lambda x: x < -ONE_END), ("white", lambda x: x > ONE_END)):
        share = sample.share(at_end)
        if ONE_END < share < 1:
            return (
                f"{100 * share:.1f} % of all values are {word}: is data.value_range = {list(sample.value_range)} right?"
            )
    return None


def two_levels(sample: Sample) -> str | None:
    """Every value at an end of the range."""
    low, high = sample.ends
    if (low, high) != (-1.0, 1.0) or sample.share(lambda x: np.abs(x) < 1) > 0:
        return None
    first, last = sample.value_range
    return (
        f"every value lies at an end of the range {first:g} to {last:g}: two-level images, or a data.value_range so "
        "narrow that all between was cut off"
    )


def same_channels(sample: Sample) -> str | None:
    """Colour images without colour."""
    if sample.images[0].shape[0] == 1 or any(np.ptp(x, axis=0).max() > 0 for x in sample.images):
        return None
    channels = sample.images[0].shape[0]
    return f"all {channels} channels are the same in every image looked at: data.channels = 1 would train faster"


def copies(sample: Sample) -> str | None:
    """The same image again."""
    digests = [hashlib.sha256(np.ascontiguousarray(x).data).digest() for x in sample.images]
    count = len(digests) - len(set(digests))
    if not count or constant(sample):
        return None
    return f"{count} of {len(digests)} images looked at are copies of another one: a model repeats what it sees often"


WARNINGS: tuple[Callable[[Sample], str | None], ...] = (
    constant,
    byte_scale,
    narrow,
    dark,
    two_levels,
    same_channels,
    copies,
)


def places(count: int) -> list[int]:
    """Positions of the images to look at: all, or as many spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist()


def of_images(images: Images) -> Sample:
    """Whole images."""
    chosen = places(len(images))
    return Sample([images[i] for i in chosen], [images.name_of(i) for i in chosen], images.value_range)


def of_pairs(pairs: Pairs) -> Sample:
    """Whole images of pairs."""
    chosen = places(len(pairs))
    return Sample([pairs.image(i) for i in chosen], [pairs.names[i] for i in chosen], pairs.value_range)


def class_counts(images: Images) -> tuple[tuple[str, ...], list[int], str]:
    """Names, images of each, and what was counted."""
    if images.labels is None or images.classes is None:
        return (), [], "images"
    return images.classes, np.bincount(images.labels, minlength=len(images.classes)).tolist(), "images"


def pixel_counts(pairs: Pairs) -> tuple[tuple[str, ...], list[int], str]:
    """Names of the classes of pixels, and how many there are of each."""
    return pairs.classes, pairs.counts().tolist(), "pixels"


def histogram(names: Sequence[str], counts: Sequence[int], what: str) -> tuple[list[str], list[str]]:
    """Lines and warnings on how much there is of each class."""
    if not names:
        return ["no classes"], []
    total = sum(counts)
    order = sorted(range(len(names)), key=lambda i: (-counts[i], i))
    kept = range(len(names)) if len(names) <= ROWS else [*order[: ROWS // 2], *order[-ROWS // 2 :]]
    shown = [f"{counts[i]:,} ({100 * counts[i] / total:.1f} %)" for i in kept]
    lines = bars([names[i][:24] for i in kept], [counts[i] for i in kept], shown)
    if len(kept) < len(names):
        lines.append(f"({len(names)} classes; the {ROWS // 2} largest and the {ROWS // 2} smallest are shown)")
    empty = [names[i] for i in order if not counts[i]]
    if empty:
        return lines, [f"classes without any {what} to learn from: {', '.join(empty[:NAMED])}"]
    largest, smallest = counts[order[0]], counts[order[-1]]
    if largest <= UNEVEN * smallest:
        return lines, []
    uneven = f"class {names[order[0]]} has {largest / smallest:.0f} times the {what} of class {names[order[-1]]}"
    return lines, [f"{uneven}, which will be learnt worse"]


def values_of(sample: Sample) -> tuple[list[str], dict[str, Any]]:
    """What the values are, stored and scaled."""
    (low, high), (mean, deviation) = sample.ends, sample.moments()
    first, last = sample.value_range
    lines = [
        f"values: stored {sample.stored(low):g} to {sample.stored(high):g}; {first:g} becomes -1, {last:g} becomes 1",
        f"as the network gets them: min {low:.3f}, max {high:.3f}, mean {mean:.3f}, deviation {deviation:.3f} "
        f"({len(sample.images)} images looked at)",
    ]
    scaled = {"min": low, "max": high, "mean": mean, "std": deviation}
    return lines, {"value_range": [first, last], "scaled": scaled, "looked_at": len(sample.images)}


def section(
    config: RunConfig, split: Split[Any], sample: Sample, classes: tuple[Sequence[str], Sequence[int], str]
) -> Section:
    """All that is to be said of the data.

    Args:
        config: the resolved run.
        split: the data, read.
        sample: some of its training images.
        classes: names, counts, and what was counted.
    """
    seen = config.train.steps * config.train.batch_size / len(split.train)
    lines, values = values_of(sample)
    bar_lines, uneven = histogram(*classes)
    found = Section("data", [f"each image is seen {seen:.1f} times in {config.train.steps:,} steps", *lines])
    found.lines += bar_lines
    found.lines += [f"left out {bad.path}: {bad.reason}" for bad in split.skipped[:NAMED]]
    if len(split.skipped) > NAMED:
        found.lines.append(f"and {len(split.skipped) - NAMED} files more")
    found.lines += [f"note: {note}" for note in split.notes]
    found.warnings += [line for check in WARNINGS if (line := check(sample))] + uneven
    if split.skipped:
        found.warnings.append(f"{len(split.skipped)} files cannot be read and are left out; mend or remove them")
    if len(split.train) < config.train.batch_size:
        found.warnings.append(
            f"{len(split.train)} training images for train.batch_size = {config.train.batch_size}: "
            "every step sees some of them more than once"
        )
    found.values = values | {
        "times_seen": seen,
        "classes": dict(zip(classes[0], classes[1], strict=True)),
        "bad_files": [{"path": bad.path, "reason": bad.reason} for bad in split.skipped],
        "notes": list(split.notes),
    }
    return found
