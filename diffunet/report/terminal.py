"""A running job in a terminal: a summary as lines of plain text."""

from __future__ import annotations

import numpy as np

from diffunet.report.curves import column, running_median
from diffunet.report.reading import Record, Run
from diffunet.report.summary import suspicious
from diffunet.report.words import duration, percent, plain, short, size

BLOCKS, ASCII = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.-=+*%#"
WIDEST = 100


def sparkline(values: np.ndarray, width: int, unicode: bool) -> str:
    """(N,) values as at most `width` characters from low to high; the median of each part."""
    if not len(values):
        return ""
    marks = BLOCKS if unicode else ASCII
    parts = [np.median(part) for part in np.array_split(values, min(width, len(values)))]
    low, high = min(parts), max(parts)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round(float(part - low) * scale)] for part in parts)


def bar(part: float, width: int) -> str:
    """[####......] of so many characters, for a part in [0, 1]."""
    full = round(min(1.0, max(0.0, part)) * (width - 2))
    return f"[{'#' * full}{'.' * (width - 2 - full)}]"


def _health(s: Record) -> list[str]:
    """What is wrong, and what to run next."""
    lines = []
    if s["state"] == "died":
        lines.append(f"its process {s['pid']} is gone (killed, or out of memory): the steps after the last checkpoint "
                     "repeat")  # fmt: skip
    if s["message"]:
        lines.append(str(s["message"]))
    if s["silent"]:
        unseen = f"; whether process {s['pid']} lives cannot be seen from here" if s["alive"] is None else ""
        lines.append(f"no sign of life for {duration(s['silent_seconds'])}{unseen}")
    if s["overfit"]["since"] is not None:
        lines.append(s["overfit"]["text"])
    if near := suspicious(s["copies"] or {}):
        lines.append(f"samples lie nearer to training images than new images do, in {' and '.join(near)}")
    lines += [f"{count} x {kind.replace('_', ' ')}" for kind, count in s["warnings"].items()]
    return [plain(line) for line in (*lines, *s["remarks"])]


def _numbers(s: Record) -> dict[str, str]:
    """The lines of numbers: name -> text; those that the files do not tell are left out."""
    saved, rate = s["checkpoint"], s["images_per_second"]
    gap = f", gap {short(s['gap'])}" if s["gap"] is not None else ""
    seen = f", seen {short(s['seen'])}" if s["seen"] is not None else ""
    speed = f"{short(rate)} images/s, {short(s['seconds_per_step'], 3)} s a step" if rate is not None else ""
    waited = f", {percent(s['loader_share'])} of it waiting for data" if s["loader_share"] is not None else ""
    found = {
        "held-out": f"{short(s['held_out'])}{seen}{gap}" if s["held_out"] is not None else "",
        "lr": f"{short(s['lr'])}, gradient norm {short(s['grad_norm'])}" if s["lr"] is not None else "",
        "speed": f"{speed}{waited}",
        "memory": size(s["memory"]) if s["memory"] is not None else "",
        "noise": f"gradient noise scale {short(s['noise_scale'])}" if s["noise_scale"] is not None else "",
        "saved": f"step {saved['step']:,}, {duration(saved['seconds_ago'])} ago" if saved else "no checkpoint yet",
    }
    return {name: words for name, words in found.items() if words}


def view(run: Run, s: Record, width: int = 80, unicode: bool = True) -> str:
    """The whole view, lines of at most `width` characters.

    Args:
        run: as read.
        s: what `summarize` made of it.
        width: of the terminal.
        unicode: whether it can show block characters.
    """
    width = max(40, min(width, WIDEST))
    where = f"process {s['pid']} on {s['host']}" if s["pid"] is not None else "no status.json"
    lines = [f"{s['name'] or run.path.name}: {str(s['state']).upper()}, {where}", str(run.path), ""]
    of = f"/{s['steps']:,}" if s["steps"] is not None else ""
    left = f", {duration(s['seconds_left'])} left" if s["seconds_left"] is not None else ""
    counted = f"step {s['step']:,}{of}"
    lines.append(f"{counted}{left}")
    if s["steps"]:
        part = s["step"] / s["steps"]
        lines.append(f"{bar(part, width - 6)} {percent(min(1.0, part))}")
    curve = running_median(column(run.records, "loss"))
    lines.append(f"{'loss':<9}{short(s['loss'])} {sparkline(curve.value, width - 22, unicode)}")
    lines += [f"{name:<9}{words}" for name, words in _numbers(s).items()]
    health = _health(s)
    if health:
        lines += ["", *(f"! {line}" for line in health)]
    if s["events"]:
        lines += ["", *(_event(event) for event in s["events"])]
    if s["next"]:
        lines += ["", f"next: {s['next']}"]
    return "\n".join(_cut(line, width) for line in lines)


def _event(event: Record) -> str:
    moment, step = (event["time"] or "")[11:19], "" if event["step"] is None else f" {event['step']:,}"
    return f"{moment} {event['kind'] or '?'}{step}: {event['message'] or ''}"


def _cut(line: str, width: int) -> str:
    """One line of a terminal; what to run next is never cut."""
    return plain(line, 2000) if line.startswith(("next:", "!")) else plain(line, width)
