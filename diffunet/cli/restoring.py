"""What `diffunet restore` does with each picture: what became of it, the way back, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import inverse
from diffunet.cli.files import read_picture
from diffunet.cli.runs import class_number, open_denoiser
from diffunet.config import parse_value
from diffunet.errors import ConfigError, DataError
from diffunet.inverse import Operator
from diffunet.metrics.likeness import psnr, ssim
from diffunet.pictures import beside, save_png, to_uint8
from diffunet.samplers import Noise
from diffunet.spec.inverse import operator_config
from diffunet.table import choose

UNIT = 127.5  # of 255 are one of [-1, 1]
ROUNDING = 12**-0.5  # deviation of an error spread evenly over one of 255 levels
SPOILING = 2**41  # seeds of simulated noise begin here, apart from those of the restoration's own
SHOWN = 512  # a comparison of smaller pictures is enlarged up to this side
SCORES = {"psnr_before": 2, "psnr": 2, "ssim_before": 4, "ssim": 4}  # and their decimals


def enlarged(A: Operator, y: Tensor) -> Tensor:
    """The bicubic enlargement, which any viewer makes."""
    return F.interpolate(y, size=A.shape[1:], mode="bicubic", align_corners=False)


class Task(NamedTuple):
    """Operators that a task may be about (the first if nobody says), its method, its noise of 255, a simple repair."""

    operators: tuple[str, ...]
    method: str
    sigma: float | None
    simple: Callable[[Operator, Tensor], Tensor]


TASKS = {
    "denoise": Task(("identity",), "mean", None, lambda A, y: y),
    "inpaint": Task(("mask",), "repaint", 0.0, lambda A, y: A.guess(y)),
    "super-resolution": Task(("bicubic", "average"), "ddnm", 0.0, enlarged),
    "deblur": Task(("gaussian_blur", "uniform_blur", "motion_blur"), "ddnm", ROUNDING, lambda A, y: y),
    "colorize": Task(("grey",), "ddnm", 0.0, lambda A, y: A.guess(y)),
}


@dataclass(frozen=True)
class Wish:
    """What was asked for. `sigma` is of 255; `operator` and `method` are tables with `kind`."""

    task: str
    operator: dict[str, Any]
    method: dict[str, Any]
    sigma: float | None
    steps: int | None
    seed: int
    kernel: Path | None
    simulate: bool
    max_pixels: int


@dataclass(frozen=True)
class Restored:
    """One picture: what was given, a simple repair, the result and the reference, (H, W, C) uint8; sigma of 255."""

    sigma: float
    given: np.ndarray
    simple: np.ndarray
    result: np.ndarray
    reference: np.ndarray | None

    def scores(self) -> dict[str, float | None]:
        """PSNR and SSIM of the simple repair and of the result; empty without a reference."""
        if self.reference is None:
            return {}
        return {
            "psnr_before": psnr(self.simple, self.reference),
            "psnr": psnr(self.result, self.reference),
            "ssim_before": ssim(self.simple, self.reference),
            "ssim": ssim(self.result, self.reference),
        }

    def strip(self) -> np.ndarray:
        """Given, restored, reference side by side, small ones enlarged."""
        shown = [self.given, self.result] + ([] if self.reference is None else [self.reference])
        height = max(len(picture) for picture in shown)
        factor = max(1, min(8, SHOWN // max(self.result.shape[:2])))
        times = [factor * max(1, round(height / len(picture))) for picture in shown]
        return beside([[p.repeat(k, axis=0).repeat(k, axis=1) for p, k in zip(shown, times, strict=True)]])


def picture(rows: Tensor) -> np.ndarray:
    """(H, W, C) uint8 of rows (B, C, H, W) in [-1, 1], which are one colour picture or one channel each."""
    return to_uint8(rows.flatten(0, 1)[None])[0]


def operator_table(task: str, name: str | None, options: dict[str, Any], scale: int | None) -> dict[str, Any]:
    """The operator of a task with its options.

    Raises:
        ConfigError: an operator that the task is not about, or --scale for another task.
    """
    kinds = TASKS[task].operators
    table = {"kind": kinds[0] if name is None else choose(f"operator of --task {task}", name, kinds), **options}
    if scale is not None and task != "super-resolution":
        raise ConfigError(f"--scale is for --task super-resolution, not {task}")
    return operator_config(table if scale is None else {**table, "scale": scale}).model_dump()


def key_values(items: list[str] | None, flag: str) -> dict[str, Any]:
    """`NAME=VALUE` options as a table.

    Raises:
        ConfigError: one without `=`.
    """
    table = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{flag} '{item}' should be NAME=VALUE, for example std=2")
        table[key] = parse_value(value)
    return table


class Restorer:
    """A model that restores pictures.

    Raises:
        ConfigError: a model that is not one of pictures, a class that it has not, or one that it needs.
    """

    def __init__(self, run: Path, weights: str, tile: int | None, batch_size: int, label: str | None) -> None:
        den = open_denoiser(run, weights)
        config: Any = den.network.config
        self.channels: int = den.data.shape[0] if den.data else config.in_channels
        if config.dims != 2 or self.channels not in (1, 3):
            raise ConfigError(f"{run} is a model of {config.dims} dimensions and {self.channels} channels, no pictures")
        self.label = den.null_label if label is None else class_number(den, label)
        if self.label is None and den.num_classes is not None:
            raise ConfigError(f"{run} was trained on classes and without a null class: say which with --class")
        self.device = next(den.parameters()).device
        self.den = inverse.Tiled(den, tile or inverse.default_tile(den), batch_size=batch_size)

    def restore(self, wish: Wish, i: int, path: Path, mask: Path | None, reference: Path | None) -> Restored:
        """Picture number i.

        Raises:
            ConfigError: a task, method or noise that the model cannot have.
            DataError: a picture that cannot be read, or of another size than it should be.
        """
        if wish.task == "colorize" and self.channels != 3:
            raise ConfigError("--task colorize needs a model of colour pictures; this one is of grey ones")
        grey = wish.task == "colorize" and not wish.simulate
        given = self._rows(path, 1 if grey else None, wish)
        clean = given if wish.simulate else None
        if reference is not None:
            clean = self._rows(reference, len(given) if self.channels == 1 else None, wish)
        A = self._operator(wish, given, clean, mask)
        if clean is not None and clean.shape[2:] != A.shape[1:]:
            raise DataError(f"{reference} is {_size(clean.shape)} pixels (height x width), not {_size(A.shape)}")
        y = (self._spoiled(A, given, wish, i) if wish.simulate else A(given) if mask else given).to(self.device)
        sigma = self._sigma(wish, y)
        cond: dict[str, Any] = (
            {} if self.label is None else {"class_labels": torch.full((len(y),), self.label, device=self.device)}
        )
        seeds = [wish.seed + i] * len(y)  # the same noise in each channel of a grey model: no specks of colour
        result = inverse.restore(self.den, A, y, sigma, wish.method, steps=wish.steps, seed=seeds, **cond)
        simple = TASKS[wish.task].simple(A, y)
        return Restored(
            sigma * UNIT, picture(y), picture(simple), picture(result), None if clean is None else picture(clean)
        )

    def _rows(self, path: Path, channels: int | None, wish: Wish) -> Tensor:
        """A picture as rows (B, C, H, W) in [-1, 1]: whole for a colour model, one a channel for a grey one."""
        if self.channels == 3:
            return read_picture(path, channels or 3, wish.max_pixels)[None]
        return read_picture(path, channels, wish.max_pixels)[:, None]

    def _operator(self, wish: Wish, given: Tensor, clean: Tensor | None, mask: Path | None) -> Operator:
        sides = list(given.shape[2:])
        if not wish.simulate and (scale := wish.operator.get("scale")):
            # where the reference says how much of the last block there was, that much
            fits = clean is not None and [-(-n // scale) for n in clean.shape[2:]] == sides
            sides = list(clean.shape[2:]) if fits and clean is not None else [n * scale for n in sides]
        shape = (self.channels, *sides)
        if wish.kernel is not None:
            kernel = (read_picture(wish.kernel, 1, wish.max_pixels)[0].double() + 1) / 2
            if not kernel.sum() > 0:
                raise DataError(f"{wish.kernel} is black; a kernel is a picture of the blur of one bright point")
            return inverse.Convolution(kernel / kernel.sum(), shape)
        if mask is None:
            return inverse.build_operator(wish.operator, shape)
        known = read_picture(mask, 1, wish.max_pixels)[0] < 0
        if list(known.shape) != sides:
            raise DataError(
                f"{mask} is {_size(known.shape)} pixels (height x width), but its picture is {_size(shape)}"
            )
        return inverse.build_operator(wish.operator, shape, known=known)

    def _spoiled(self, A: Operator, clean: Tensor, wish: Wish, i: int) -> Tensor:
        """A x + sigma n, neither rounded nor cut to 0..255, as noise is added in papers."""
        sigma = TASKS[wish.task].sigma if wish.sigma is None else wish.sigma
        if sigma is None:
            raise ConfigError("--simulate with --task denoise needs --sigma, the noise to add")
        y = A(clean)
        return y + sigma / UNIT * Noise([SPOILING + wish.seed + i])(y.shape)[0]

    def _sigma(self, wish: Wish, y: Tensor) -> float:
        """Noise where pictures are in [-1, 1]."""
        known = TASKS[wish.task].sigma if wish.sigma is None else wish.sigma
        if known is not None:
            return known / UNIT
        # a picture of 8 bits has the noise of rounding at least
        return max(float(inverse.estimate_noise(y).square().mean().sqrt()), ROUNDING / UNIT)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[-2:]))


def restore_all(
    restorer: Restorer, wish: Wish, paths: list[Path], masks: dict[Path, Path], right: dict[Path, Path], folder: Path
) -> tuple[dict[str, Any], str]:
    """Restore and write every picture: the result for programs, and for people."""
    files: list[str] = []
    rows: list[dict[str, Any]] = []
    for i, path in enumerate(paths):
        done = restorer.restore(wish, i, path, masks.get(path), right.get(path))
        for name, array in ((path.stem, done.result), (f"{path.stem}-compare", done.strip())):
            save_png(array, folder / f"{name}.png")
            files.append(str(folder / f"{name}.png"))
        rows.append({"image": str(path), "sigma": done.sigma, **done.scores()})
    means = {key: _mean([row[key] for row in rows]) for key in SCORES if key in rows[0]}
    wanted = {"task": wish.task, "method": wish.method["kind"], "operator": wish.operator["kind"]}
    text = "\n".join(f"wrote {path}" for path in files[:6])
    text += f"\nand {len(files) - 6} more files beside them" if len(files) > 6 else ""
    if means:
        text += "\n\n" + _table([*rows, {"image": "mean", **means}])
    elif TASKS[wish.task].sigma is None and wish.sigma is None:
        text += "".join(f"\nnoise found in {row['image']}: {row['sigma']:.2f}" for row in rows)
    return {**wanted, "files": files, "images": [_finite(row) for row in rows], "mean": _finite(means)}, text


def _mean(values: list[float | None]) -> float | None:
    """Of the pictures that have one."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: a PSNR of equal pictures is null."""
    return {key: None if value == float("inf") else value for key, value in row.items()}


def _table(rows: list[dict[str, Any]]) -> str:
    """One line a picture: its noise, and PSNR and SSIM of a simple repair and of the result."""
    width = max(len(row["image"]) for row in rows)
    lines = [f"{'image':{width}}  sigma   PSNR before  after   SSIM before  after"]
    for row in rows:
        sigma = f"{row['sigma']:5.2f}" if "sigma" in row else "     "
        before, after, s_before, s_after = (
            "-" if row[key] is None else f"{row[key]:.{places}f}" for key, places in SCORES.items()
        )
        lines.append(f"{row['image']:{width}}  {sigma}  {before:>12} {after:>6}  {s_before:>12} {s_after:>6}")
    return "\n".join(lines)
