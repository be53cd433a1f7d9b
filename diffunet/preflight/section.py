"""What a part of the preflight found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDE = 30  # characters of the longest bar


@dataclass
class Section:
    """One part of the report.

    Attributes:
        title: a word.
        lines: what was found, for people.
        values: the same for programs, JSON values.
        warnings: what looks wrong, and what to do.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The section for people."""
        found = [f"  {line}" for line in self.lines] + [f"  WARNING: {line}" for line in self.warnings]
        return "\n".join([f"{self.title}:", *found])


def bars(names: Sequence[str], counts: Sequence[float], shown: Sequence[str]) -> list[str]:
    """A line for each count: its name, a bar as long as it is large, and how it is shown in figures."""
    most, wide = max([*counts, 1e-12]), max(map(len, names), default=0)
    return [
        f"{name:>{wide}} {'#' * round(WIDE * count / most):{WIDE}} {figure}"
        for name, count, figure in zip(names, counts, shown, strict=True)
    ]


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
