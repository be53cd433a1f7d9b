"""A finding, and how findings become a table: ok, warn or bad, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["ok", "warn", "bad"]
ORDER: tuple[State, ...] = ("ok", "warn", "bad")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: of the thing.
        state: ok; warn: works, but worse than it could; bad: something will fail.
        found: what there is.
        advice: what to do, empty where nothing needs to be.
        values: the same for programs.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def worst(findings: Sequence[Finding]) -> State:
    """The worst state of all; ok where there are none."""
    return max((finding.state for finding in findings), key=ORDER.index, default="ok")


def text(findings: Sequence[Finding]) -> str:
    """One line a finding, its advice below it."""
    wide = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:4}  {finding.name:{wide}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':{wide + 8}}-> {finding.advice}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON values."""
    return [asdict(finding) for finding in findings]
