"""`diffunet verify [RUN]`: does every sampler do what it claims, on a run's own schedule or on all of them?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import ConfigError, NumericError

if TYPE_CHECKING:
    from diffunet.analysis.verify import Verification
    from diffunet.schedules import Schedule


def verify(
    run: Annotated[
        Path | None, typer.Argument(help="a run folder or a weights file [default: every schedule]", metavar="[RUN]")
    ] = None,
    sampler: Annotated[list[str] | None, typer.Option(help="only this sampler; may be repeated")] = None,
    everything: Annotated[bool, typer.Option("--all", help="show each row, not one line a sampler")] = False,
    out: Annotated[
        Path | None, typer.Option(help="the picture, .png or .svg [default: RUN/verify.png or ./verify.png]")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hold every sampler against data whose right answers are known: a Gaussian and a mixture of two.

    On the schedule of RUN, or on every schedule: each sampler, from each prediction that the schedule allows, over each
    of its time grids. Measured are the error of the result, the order of convergence beside the one that is claimed,
    for samplers with noise the distribution that they make, and float32 beside float64. The network of RUN is not
    called: what can be wrong here is code, or an unlucky process.

    Takes about a minute for a run and several for all schedules. Exit code 6 where something is off.

    \b
    Examples:
      diffunet verify
      diffunet verify runs/digits
      diffunet verify runs/digits --sampler ddim --sampler unipc --all
      diffunet verify --json --out pictures/verify.png
    """
    from diffunet.analysis.verify import schedules
    from diffunet.analysis.verify_report import as_json as values
    from diffunet.analysis.verify_report import notes, text
    from diffunet.cli.runs import open_denoiser
    from diffunet.samplers import SAMPLERS
    from diffunet.table import choose

    picture = picture_path(run, out)
    names = [choose("sampler", name, SAMPLERS) for name in sampler] if sampler else None
    den = None if run is None else open_denoiser(run)
    said = notes(den) if den else []
    results = measured([den.schedule] if den else schedules(), den.prediction if den else None, names)
    written = write_picture(results, picture)
    paragraphs = ["\n".join(said), *(text(result, everything) for result in results), *map("wrote {}".format, written)]
    result = {"run": run and str(run), **values(results), "notes": said, "files": [str(path) for path in written]}
    report(result, "\n\n".join(filter(None, paragraphs)), as_json)
    if not result["passed"]:
        off = sum(bool(row.wrong) for each in results for row in each.rows)
        print(f"diffunet: error[{NumericError.code}]: {off} rows are off; see the table", file=sys.stderr)
        raise typer.Exit(NumericError.exit_code)


def picture_path(run: Path | None, out: Path | None) -> Path | None:
    """Where the picture goes; nowhere if nobody asked for one and it cannot be drawn.

    Raises:
        ConfigError: another suffix than .png or .svg.
        UserError: one is asked for, and matplotlib is missing.
    """
    if out is None:
        drawable = importlib.util.find_spec("matplotlib") is not None
        return (run if run and run.is_dir() else Path()) / "verify.png" if drawable else None
    from diffunet.analysis.figures import new_figure

    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out {out}: name a .png or an .svg")
    new_figure(1, 1)  # better now than after a minute
    return out


def measured(schedules: list[Schedule], prediction: str | None, names: list[str] | None) -> list[Verification]:
    """All schedules in turn, under a progress bar where someone looks."""
    from tqdm import tqdm

    from diffunet.analysis.verify import own_samplers, verify

    count = len(names or own_samplers())
    with tqdm(total=count * len(schedules), unit="sampler", disable=not sys.stderr.isatty(), leave=False) as bar:

        def watch(name: str) -> None:
            bar.set_description(name)
            bar.update()

        return [verify(schedule, prediction, names, watch=watch) for schedule in schedules]


def write_picture(results: list[Verification], path: Path | None) -> list[Path]:
    """The curves of all results as one picture; gives its path, or none."""
    if path is None:
        return []
    from diffunet.analysis.figures import write_figure
    from diffunet.analysis.verify_report import draw

    return [write_figure(draw(results), path)]
