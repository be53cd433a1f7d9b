"""`diffunet ema RUN --sigma-rel 0.05,0.1`: averages of the weights, of any length, long after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import ConfigError

if TYPE_CHECKING:
    from diffunet.training.snapshots import Reconstruction

POOR = 0.01  # an error of the profile that is worth a warning
NEXT = {"diffusion": "sample {run} --ema {name}", "segment": "segment {file} IMAGE..."}  # task -> what to do with one


def ema(
    run: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    sigma_rel: Annotated[
        str | None, typer.Option(help="lengths relative to the training, in (0, 0.288): 0.05,0.1", metavar="LENGTHS")
    ] = None,
    at_step: Annotated[
        int | None, typer.Option(help="the average as it was at this step [default: the last snapshot's]", min=1)
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="only say which weights the run has")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make averages of the weights of any length from the snapshots that a run stored (EDM2, post-hoc EMA).

    The run must have been trained with ema.sigma_rel, best [0.05, 0.1], and ema.snapshot_every. Each length becomes
    RUN/ema/sigma_rel-LENGTH.safetensors, weights like any other: `sample RUN --ema sigma_rel-0.070`, or from Python
    diffunet.load("RUN/ema/sigma_rel-0.070.safetensors"). The profile's error says how near the sum of snapshots
    comes to the average that was asked for: nothing for a stored length, above 1 % a reason to store snapshots more
    often or lengths on both sides of it.

    \b
    Examples:
      diffunet ema runs/digits --sigma-rel 0.03,0.07,0.15
      diffunet ema runs/digits --sigma-rel 0.05 --at-step 500
      diffunet ema runs/digits --list
      diffunet sample runs/digits --ema sigma_rel-0.070
    """
    if (sigma_rel is None) != show:
        raise ConfigError("give --sigma-rel LENGTHS, for example 0.05,0.1, or --list")
    if show and at_step is not None:
        raise ConfigError("--at-step is for --sigma-rel; --list shows all steps")
    from diffunet.training.runfolder import read_config

    config = read_config(run)
    if show:
        _list(run, as_json)
        return
    from diffunet import weights
    from diffunet.cli.averages import made_name
    from diffunet.training.snapshots import FOLDER, plan, reconstruct, stored

    lengths = parse_lengths(sigma_rel or "")
    snapshots = stored(run, at_step)
    recipes = [plan(snapshots, length) for length in lengths]
    made, lines = [], []
    for recipe in recipes:
        name = made_name(recipe.sigma_rel, at_step)
        path = run / FOLDER / f"{name}.safetensors"
        about = facts(recipe)
        weights.save(reconstruct(recipe), path, **about)
        made.append({"file": str(path), "name": name, "spread": recipe.spread, **about})
        lines.append(f"wrote {path}: step {recipe.newest.step}, {described(recipe)}")
    lines.append("next: diffunet " + NEXT[config.run.task].format(run=run, **made[-1]))
    report({"made": made}, "\n".join(lines), as_json)


def parse_lengths(text: str) -> list[float]:
    """`0.05,0.1` as numbers, whose range the plan checks.

    Raises:
        ConfigError: no such list, or two that have one name.
    """
    try:
        lengths = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sigma-rel '{text[:60]}' should be numbers with commas, for example 0.05,0.1") from None
    if len({f"{length:.3f}" for length in lengths}) < len(lengths):
        raise ConfigError(f"--sigma-rel {text}: lengths must differ within three decimals, by which files are named")
    return lengths


def facts(recipe: Reconstruction) -> dict[str, Any]:
    """What the weights file of a reconstruction says beside its description."""
    newest = recipe.newest
    own = {"step": newest.step, "updates": newest.description["updates"], "sigma_rel": recipe.sigma_rel}
    return own | {"weights": "post-hoc", "profile_error": recipe.error, "snapshots": len(recipe.snapshots)}


def described(recipe: Reconstruction) -> str:
    """How a reconstruction was made and how good it is, in words."""
    lengths = sorted({f"{one.sigma_rel:g}" for one in recipe.snapshots})
    text = f"{len(recipe.snapshots)} snapshots of {', '.join(lengths)}, error of the profile {100 * recipe.error:.2g} %"
    if recipe.error <= POOR:
        return text
    return f"{text}: not quite that average; more snapshots (ema.snapshot_every) or a stored length near it come closer"


def _list(run: Path, as_json: bool) -> None:
    """Say which weights a run has, by the names that --ema takes."""
    from diffunet.cli.averages import kept, made, names
    from diffunet.training.snapshots import listed

    snapshots = [{"step": one.step, "length": one.length, "file": str(one.path)} for one in listed(run)]
    result = {"kept": kept(run), "made": {name: str(path) for name, path in made(run).items()}, "snapshots": snapshots}
    lines = [f"diffunet sample {run} --ema NAME, where NAME is one of", *(f"  {name}" for name in names(run))]
    if not snapshots:
        lines.append("no snapshots: ema.sigma_rel and ema.snapshot_every store what other lengths can be made of")
    report(result, "\n".join(lines), as_json)
