"""Names of the weights of a run, as `--ema` and `--guide` take them, and how each is opened.

ema              the average with a warm-up, which is in RUN/weights.safetensors
raw              no average: what the newest checkpoint trains on
0.050            the power-function average of this length at the newest step (also ema-0.050); where none was
                 stored, the one that `diffunet ema` made
sigma_rel-0.070  what `diffunet ema RUN --sigma-rel 0.07` made
0.050@500        either of them at step 500
early            the shortest stored average a quarter into the training: a weaker model, for --guide
"""

from __future__ import annotations

import re
from pathlib import Path

from diffunet import weights
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError
from diffunet.training import checkpoint as checkpoints
from diffunet.training.averages import WARM_UP, power_name
from diffunet.training.runfolder import read_config
from diffunet.training.snapshots import FOLDER, Listed, listed
from diffunet.training.state import tensors_of

EARLY = 4  # "early" is at this part of the steps
PATTERN = re.compile(r"(ema-|sigma_rel-)?([01]?\.\d+)(?:@(\d{1,12}))?")
MADE = re.compile(r"(sigma_rel-0\.\d{3}(?:@\d+)?)\.safetensors")
PLAIN = ("ema", "raw", "early")


def is_name(text: str) -> bool:
    """Does a text have the form of such a name?"""
    return text in PLAIN or PATTERN.fullmatch(text) is not None


def made_name(sigma_rel: float, at_step: int | None = None) -> str:
    """The name of a reconstructed average, and of its file: "sigma_rel-0.070", or "sigma_rel-0.070@500"."""
    return f"sigma_rel-{sigma_rel:.3f}" + ("" if at_step is None else f"@{at_step}")


def made(run: Path) -> dict[str, Path]:
    """The averages that `diffunet ema` made in a run folder: name -> file."""
    folder = run / FOLDER
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {match[1]: path for path in paths if (match := MADE.fullmatch(path.name))}


def kept(run: Path) -> list[str]:
    """The lengths that a run follows, with three decimals."""
    return [f"{length:.3f}" for length in read_config(run).ema.sigma_rel]


def early(snapshots: list[Listed]) -> Listed | None:
    """The snapshot of the shortest length that is nearest to a quarter of the steps; None where there is but one step.

    Of two that are as near, the earlier one.
    """
    length = min((one.length for one in snapshots), default="")
    same = [one for one in snapshots if one.length == length]
    if len(same) < 2:
        return None
    return min(same, key=lambda one: abs(one.step - same[-1].step / EARLY))


def open_average(run: Path, name: str) -> Denoiser:
    """The denoiser of a run folder with the weights of this name.

    Raises:
        ConfigError: the run has none of that name; the message lists those that it has.
        CheckpointError: missing or damaged.
    """
    if name == "ema":
        return weights.load(run)
    if name == "raw":
        return _from_checkpoint(run, "network")
    snapshots, match = listed(run), PATTERN.fullmatch(name)
    if name == "early" and (found := early(snapshots)):
        return weights.load(found.path)
    if match is None:
        raise unknown(run, name)
    length, step = f"{float(match[2]):.3f}", int(match[3]) if match[3] else None
    same = [one for one in snapshots if one.length == length and step in (None, one.step)]
    if match[1] != "sigma_rel-" and (same or (step is None and length in kept(run))):
        return _stored(run, length, same, step)
    if match[1] != "ema-" and (path := made(run).get(made_name(float(length), step))):
        return weights.load(path)
    raise unknown(run, name)


def _stored(run: Path, length: str, snapshots: list[Listed], step: int | None) -> Denoiser:
    """The snapshot of a step, or the newest; a checkpoint may be newer than all of them."""
    last = max(checkpoints.steps(run / "checkpoints"), default=0)
    if snapshots and (step is not None or snapshots[-1].step >= last):
        return weights.load(snapshots[-1].path)
    return _from_checkpoint(run, power_name(float(length)))


def _from_checkpoint(run: Path, part: str) -> Denoiser:
    """The denoiser of a run with tensors of its newest checkpoint: `network`, or an average."""
    found, reasons = checkpoints.newest(run / "checkpoints")
    if found is None:
        which = "raw weights" if part == "network" else f"average {part.removeprefix(f'{WARM_UP}-')}"
        raise CheckpointError(f"{run} holds no checkpoint to take the {which} from {'; '.join(reasons)}")
    den = weights.load(run)
    # an average is of parameters alone
    weights.load_exactly(den.network, tensors_of(found, "network") | tensors_of(found, part), found.path)
    return den


def names(run: Path) -> list[str]:
    """Every name that a run's weights have, the snapshots of a length as one."""
    snapshots = listed(run)
    found = ["ema", "raw", *kept(run), *made(run), *(["early"] if early(snapshots) else [])]
    for length in sorted({one.length for one in snapshots}):
        steps = [str(one.step) for one in snapshots if one.length == length]
        shown = steps if len(steps) <= 6 else [*steps[:2], "...", *steps[-2:]]
        found.append(f"{length}@STEP (STEP {', '.join(shown)})")
    return found


def unknown(run: Path, name: str) -> ConfigError:
    """The error for weights that a run does not have."""
    return ConfigError(
        f"{run} has no weights '{name[:60]}'; there are: {', '.join(names(run))}; where snapshots were stored, "
        f"`diffunet ema {run} --sigma-rel 0.07` makes an average of that length"
    )
