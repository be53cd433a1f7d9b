"""`diffunet watch RUN`: how a running job does, from its files alone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffunet import report
from diffunet.cli.options import AsJson, Debug
from diffunet.errors import CheckpointError, ConfigError
from diffunet.report.reading import Follow
from diffunet.report.summary import ALIVE
from diffunet.report.terminal import view

CLEAR, HOME, BELOW = "\x1b[2J", "\x1b[H", "\x1b[J"


def watch(
    run: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    once: Annotated[bool, typer.Option("--once", help="print it once, and do not wait")] = False,
    every: Annotated[float, typer.Option(help="seconds between two looks", min=0.1, max=3600)] = 2.0,
    page: Annotated[bool, typer.Option("--report", help="write RUN/report.html anew and say where it is")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show how a run does: its state, progress, losses, speed, last checkpoint and last events.

    Everything comes from the files of the run folder, so it works for a run of another machine on a network drive. On a
    terminal the view is renewed until the run ends; Ctrl-C leaves it, and the run goes on. With --json, --report, or
    where the output is no terminal, it looks once.

    \b
    Examples:
      diffunet watch runs/digits
      diffunet watch runs/digits --once
      diffunet watch runs/digits --json
      diffunet watch runs/digits --report
    """
    if not any((run / name).is_file() for name in ("config.json", "status.json", "metrics.jsonl")):
        raise CheckpointError(f"{run} is not a run folder: it holds no config.json; name one, such as runs/digits")
    if page and once:
        raise ConfigError("--report writes a page and --once prints a view; give one of them")
    if page:
        path = report.write(run)
        print(json.dumps({"report": str(path)}) if as_json else f"report: {path}")
        return
    follow = Follow(run / "metrics.jsonl")
    if as_json:
        print(json.dumps(_look(run, follow)[1]))
    elif once or not sys.stdout.isatty():
        print(_text(*_look(run, follow)))
    else:
        _renew(run, follow, every)


def _look(run: Path, follow: Follow) -> tuple[report.Run, dict[str, Any]]:
    """The run as its files are now, and the summary of it."""
    found = report.read_run(run, follow())
    return found, report.summarize(found, time.time())


def _text(found: report.Run, summary: dict[str, Any]) -> str:
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    width = shutil.get_terminal_size().columns
    text = view(found, summary, width, unicode=encoding.startswith("utf"))
    return text.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding or "ascii")


def _renew(run: Path, follow: Follow, every: float) -> None:
    """Show the view again and again, until the run ends or Ctrl-C."""
    print(CLEAR, end="")
    try:
        while True:
            found, summary = _look(run, follow)
            print(f"{HOME}{BELOW}{_text(found, summary)}", flush=True)
            if summary["state"] not in ALIVE:
                return
            time.sleep(every)
    except KeyboardInterrupt:  # that is how one leaves; it is the run's own business that goes on
        return
