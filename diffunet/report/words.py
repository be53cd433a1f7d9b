"""Numbers, times and foreign text in words that fit a table or a terminal."""

from __future__ import annotations

import math
from typing import Any

from diffunet.report.reading import number


def plain(value: Any, most: int = 300) -> str:
    """Text from a file in one printable line: control characters are escaped, and a long one is cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def short(value: Any, digits: int = 4) -> str:
    """A number with so many digits; `-` where it is none."""
    known = number(value)
    if math.isnan(known):
        return "-"
    return f"{known:,.0f}" if abs(known) >= 10**digits and abs(known) < 1e15 else f"{known:.{digits}g}"


def percent(value: Any) -> str:
    """A share as percent; `-` where it is none."""
    known = number(value)
    return "-" if math.isnan(known) else f"{known:.3g} %" if (known := 100 * known) < 10 else f"{known:.0f} %"


def duration(seconds: Any) -> str:
    """3 s, 4 min, 2 h 5 min, 3 d 4 h; `-` where it is no number."""
    known = number(seconds)
    if math.isnan(known):
        return "-"
    minutes, hours = round(known / 60), round(known / 3600)
    if known < 99.5:
        return f"{known:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: Any) -> str:
    """Bytes as KiB, MiB or GiB; `-` where it is no number."""
    known = number(count)
    if math.isnan(known):
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(known) < 1024:
            return f"{known:.3g} {unit}" if known < 1000 else f"{known:.0f} {unit}"
        known /= 1024
    return f"{known:.3g} GiB" if known < 1000 else f"{known:,.0f} GiB"
