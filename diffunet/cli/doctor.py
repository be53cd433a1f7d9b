"""`diffunet doctor`: what this machine can do, and on request a proof that a killed run loses nothing on it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet import config as configs
from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import ConfigError, NumericError, StorageError, UserError

if TYPE_CHECKING:
    from diffunet.doctor.resume import Check
    from diffunet.spec import RunConfig

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def doctor(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="where runs go: its file system is tried")] = Path("runs"),
    resume_test: Annotated[
        Path | None, typer.Option("--resume-test", help="prove exact resuming with this config", metavar="CONFIG.toml")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at this machine: libraries, extras, devices, memory, disk, limits; each line is ok, warn or bad.

    With --resume-test a shortened copy of CONFIG is trained in a folder below --folder, and removed again: twice
    without a break, and once killed between two steps, killed inside a save, and stopped by SIGTERM and gone on with by
    another number of data workers. All must be equal bit for bit: the loss of every step, weights, averages, moments.
    It takes one or two minutes. Keys of the config are flags, as for `diffunet train`.

    Exit code 5 where runs cannot be kept, 2 where a library is missing or broken, 6 where two runs differ.

    \b
    Examples:
      diffunet doctor
      diffunet doctor --folder /mnt/runs --json
      diffunet doctor --resume-test configs/digits.toml
      diffunet doctor --resume-test configs/folder.toml --data.path ~/pictures --train.batch_size 16
    """
    if resume_test is not None:
        _resume_test(configs.load(resume_test, context.args), folder, as_json)
        return
    if context.args:
        raise ConfigError(f"unknown argument '{context.args[0]}'; keys of a config are for --resume-test CONFIG")
    from diffunet.doctor import machine, software
    from diffunet.doctor.report import as_json as values
    from diffunet.doctor.report import text, worst

    tools, place = list(software.findings()), list(machine.findings(folder))
    found = [*tools, *place]
    bad, warned = (sum(finding.state == state for finding in found) for state in ("bad", "warn"))
    end = f"{len(found)} looked at: {bad} bad, {warned} with a warning"
    report({"state": worst(found), "findings": values(found)}, f"{text(found)}\n\n{end}", as_json)
    failure: type[UserError] = ConfigError if worst(tools) == "bad" else StorageError
    if bad:
        print(f"diffunet: error[{failure.code}]: {bad} of {len(found)} are bad; see above", file=sys.stderr)
        raise typer.Exit(failure.exit_code)


def _resume_test(run: RunConfig, folder: Path, as_json: bool) -> None:
    """Try it, say each result as soon as it is there, and leave nothing behind."""
    from diffunet.doctor.resume import ResumeTest, shortened
    from diffunet.preflight.bench import step_seconds
    from diffunet.storage import storage_error

    short = shortened(run, step_seconds(run))
    changed = f"{short.train.steps} steps of batch {short.train.batch_size}"
    if not as_json:
        print(f"{run.run.name}, {changed} (the config: {run.train.steps} of {run.train.batch_size})", flush=True)
    checks: list[Check] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=folder, prefix="resume-test-")
    except OSError as error:
        raise storage_error(error, folder, 0) from None
    with place as name:
        for check in ResumeTest(short, Path(name)).checks():
            checks.append(check)
            if not as_json:
                print(f"{check.seconds:6.1f} s  {check.name}: {check.result}", flush=True)
    result: dict[str, Any] = {"passed": all(check.ok for check in checks), "steps": short.train.steps}
    rows = [{"name": c.name, "result": c.result, "seconds": c.seconds, **c.facts} for c in checks]
    end = "all equal, bit for bit: losses, weights, averages, moments" if result["passed"] else "not the same run"
    report(result | {"batch_size": short.train.batch_size, "checks": rows}, end, as_json)
    if not result["passed"]:
        print(f"diffunet: error[{NumericError.code}]: {checks[-1].name}: {checks[-1].result}", file=sys.stderr)
        raise typer.Exit(NumericError.exit_code)
