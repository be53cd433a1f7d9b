"""Opening a run or a weights file for the commands that use one."""

from __future__ import annotations

from pathlib import Path

import torch

from diffunet import weights
from diffunet.cli.averages import open_average
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError
from diffunet.segmenter import Segmenter
from diffunet.spec import SampleConfig
from diffunet.table import choose
from diffunet.training.indexstream import draw
from diffunet.training.runfolder import read_config


def device() -> torch.device:
    """The accelerator, where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def open_denoiser(run: Path, which: str = "ema") -> Denoiser:
    """The weights of this name (see cli/averages.py) of a run folder, or a weights file, on the accelerator.

    Raises:
        CheckpointError: missing or damaged; a name other than `ema` asked of a file.
        ConfigError: the run has no weights of that name.
    """
    _check_exists(run)
    if run.is_dir():
        return open_average(run, which).to(device()).eval()
    if which != "ema":
        raise CheckpointError(f"{run} is one set of weights; --ema {which} needs a run folder with checkpoints")
    return weights.load(run).to(device()).eval()


def open_segmenter(run: Path) -> Segmenter:
    """The averaged weights of a segmentation run, or a weights file, on the accelerator.

    Raises:
        CheckpointError: missing, damaged, or of another task.
    """
    _check_exists(run)
    return weights.load_segmenter(run).to(device()).eval()


def _check_exists(run: Path) -> None:
    if not run.exists():
        raise CheckpointError(f"{run} does not exist; name a run folder (see runs/) or a .safetensors file")


def sample_config(run: Path) -> SampleConfig:
    """The [sample] section of a run; the defaults for a bare weights file."""
    return read_config(run).sample if (run / "config.json").exists() else SampleConfig()


def class_number(den: Denoiser, wanted: str) -> int:
    """The label of a class by name or number.

    Raises:
        ConfigError: the model has no classes, or none of that name.
    """
    if den.num_classes is None:
        raise ConfigError(f"--class {wanted}: this model was trained without classes")
    names = (den.data.classes if den.data else None) or tuple(map(str, range(den.num_classes)))
    if wanted not in names and wanted.isdecimal() and len(wanted) < 12 and int(wanted) < den.num_classes:
        return int(wanted)
    return names.index(choose("class", wanted, names))


def random_label(den: Denoiser, seed: int) -> int:
    """A label drawn from (seed, training histogram)."""
    if den.num_classes is None:
        raise ConfigError("this model was trained without classes")
    counts = (den.data.class_counts if den.data else None) or (1,) * den.num_classes
    place = draw(seed, "label").random() * sum(counts)
    for label, count in enumerate(counts):
        place -= count
        if place < 0:
            return label
    return den.num_classes - 1
