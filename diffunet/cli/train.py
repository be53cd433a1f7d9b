"""`diffunet train CONFIG.toml`: the same command again goes on with the run."""

from __future__ import annotations

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check config, data and model; train nothing")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model, or go on with a run: the same command again continues where it stopped, bit for bit.

    Every key of the config is also a flag: --train.steps 200 --model.channel_multipliers 1,2,2 --data.flip.
    `diffunet train CONFIG.toml --dry-run` prints them all with their values.

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
    metrics = folder / "metrics.jsonl"
    text = f"weights: {weights}\nnext: diffunet {TASKS[run.run.task].next_command.format(run=folder)}"
    report(
        {"run": str(folder), "weights": str(weights), "metrics": str(metrics), "steps": run.train.steps}, text, as_json
    )


def _quiet(line: str) -> None:
    pass


def _dry_run(run: RunConfig, folder: Path, as_json: bool) -> None:
    """Resolve all that training needs, without a step: the data is read and the model counted."""
    import torch

    from diffunet import data
    from diffunet.nn import NETWORKS
    from diffunet.training.tasks import TASKS
    from diffunet.training.trainer import resolve_precision

    split = data.load(run.data)
    TASKS[run.run.task](run, split)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in NETWORKS.build(run.model).parameters())
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    precision = resolve_precision(run.train.precision, device or torch.device("cpu"))
    held_out = len(split.held_out) if split.held_out else 0
    result = {
        "run": str(folder),
        "parameters": parameters,
        "train_images": len(split.train),
        "held_out_images": held_out,
        "shape": list(split.train.shape),
        "precision": precision,
        "config": configs.flatten(run),
    }
    lines = [f"{key} = {value!r}" for key, value in configs.flatten(run).items()]
    lines += [
        f"run folder: {folder}",
        f"data: {len(split.train)} training and {held_out} held-out images of {split.train.about}",
        f"model: {parameters:,} parameters; precision {precision}",
        "dry run: nothing was trained",
    ]
    report(result, "\n".join(lines), as_json)
