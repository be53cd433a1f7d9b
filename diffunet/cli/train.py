"""`diffunet train CONFIG.toml`: the same command again goes on with the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diffunet import config as configs
from diffunet.cli.options import AsJson, Debug, report
from diffunet.spec import RunConfig

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="a .toml file, or a run's config.json", metavar="CONFIG.toml")],
    out: Annotated[Path | None, typer.Option(help="run folder [default: runs/NAME]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="try config, data, model and machine; train nothing")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model, or go on with a run: the same command again continues where it stopped, bit for bit.

    Every key of the config is also a flag: --train.steps 200 --model.channel_multipliers 1,2,2 --data.flip.
    `diffunet train CONFIG.toml --dry-run` prints them all with their values, and looks for what would waste a run:
    values and classes of the data, memory, disk and time, noise levels (a picture: RUN/dry-run.png), whether the
    network can learn one batch by heart.

    \b
    Examples:
      diffunet train configs/digits.toml
      diffunet train configs/folder.toml --data.path ~/pictures --data.size 64 --out runs/mine
      torchrun --nproc_per_node 2 -m diffunet train configs/digits.toml
    """
    run = configs.load(config, context.args)
    folder = out or Path("runs") / run.run.name
    if dry_run:
        _dry_run(run, folder, as_json)
        return
    from diffunet.training import train as start
    from diffunet.training.tasks import TASKS

    weights = start(run, folder, say=_quiet if as_json else print)
    if os.environ.get("RANK", "0") != "0":  # one of several processes; the main one speaks
        return
    metrics = folder / "metrics.jsonl"
    text = f"weights: {weights}\nnext: diffunet {TASKS[run.run.task].next_command.format(run=folder)}"
    report(
        {"run": str(folder), "weights": str(weights), "metrics": str(metrics), "steps": run.train.steps}, text, as_json
    )


def _quiet(line: str) -> None:
    pass


def _dry_run(run: RunConfig, folder: Path, as_json: bool) -> None:
    """Resolve and try all that training needs, on the main process; nothing is trained."""
    if os.environ.get("RANK", "0") != "0":
        return
    from diffunet.preflight.report import preflight

    say = _quiet if as_json else print
    for key, value in configs.flatten(run).items():
        say(f"{key} = {value!r}")
    found = preflight(run, folder, say)
    if as_json:
        report(found.as_json(), "", as_json)
