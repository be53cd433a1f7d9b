"""Where samples go: a grid, one PNG a seed, an npz of arrays, and the pictures of a denoising."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet.denoiser import Denoiser
from diffunet.errors import ConfigError
from diffunet.generation import Progress
from diffunet.pictures import MODES, grid, save_gif, save_png, to_uint8
from diffunet.storage import write_file

FRAMES = 25  # pictures of a denoising at most
SHOWN = 8  # images of a denoising at most


class Output:
    """Writes samples to a .png grid, to an .npz, or to a folder (the grid and one PNG a seed).

    Raises:
        ConfigError: another suffix, or samples that are no pictures where a picture is wanted.
    """

    def __init__(self, path: Path, seeds: list[int], den: Denoiser, trajectory: bool) -> None:
        self.path, self.seeds, self.trajectory = path, seeds, trajectory
        self.frames: list[Tensor] = []
        if path.suffix.lower() not in ("", ".png", ".npz") and not path.is_dir():
            raise ConfigError(f"--out {path}: name a .png (grid), an .npz (arrays) or a folder")
        shape = den.data.shape if den.data else ()
        pictures = len(shape) == 3 and shape[0] in MODES
        self.arrays_only = not pictures
        if not pictures and (path.suffix.lower() == ".png" or trajectory):
            raise ConfigError(f"samples of shape {tuple(shape)} are no pictures; use --out x.npz")

    def watch(self, progress: Progress) -> None:
        """Keep some clean estimates of the first batch for the pictures of the denoising."""
        every = max(1, -(-progress.steps // FRAMES))
        if self.trajectory and progress.first == 0 and (progress.step % every == 0 or progress.step == progress.steps):
            self.frames.append(torch.cat([progress.x[:SHOWN].cpu(), progress.x0[:SHOWN].cpu()]))

    def write(self, images: Tensor) -> list[Path]:
        """Write everything; gives the paths, the one to look at first."""
        suffix = self.path.suffix.lower()
        if suffix == ".npz" or self.arrays_only:
            written = [self._npz(images, self.path if suffix == ".npz" else self.path / "samples.npz")]
        elif suffix == ".png":
            save_png(grid(images), self.path)
            written = [self.path]
        else:
            written = self._folder(images)
        return written + self._pictures_of_denoising()

    def _npz(self, images: Tensor, path: Path) -> Path:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, arr_0=to_uint8(images))
        write_file(path, buffer.getvalue())
        return path

    def _folder(self, images: Tensor) -> list[Path]:
        written = [self.path / "grid.png"]
        save_png(grid(images), written[0])
        for seed, image in zip(self.seeds, to_uint8(images), strict=True):
            written.append(self.path / f"seed-{seed:06d}.png")
            save_png(image, written[-1])
        return written

    def _pictures_of_denoising(self) -> list[Path]:
        if not self.frames:
            return []
        base = self.path.with_suffix("") if self.path.suffix else self.path
        name: Any = (
            (lambda end: base / f"trajectory{end}")
            if base == self.path
            else (lambda end: Path(f"{base}-trajectory{end}"))
        )
        shown = len(self.frames[0]) // 2
        save_gif([grid(frame, columns=shown) for frame in self.frames], name(".gif"))
        # strip: one row an image, time from left to right, the clean estimates
        strip = torch.stack([frame[shown:] for frame in self.frames], dim=1).flatten(0, 1)
        save_png(grid(strip, columns=len(self.frames)), name(".png"))
        return [name(".gif"), name(".png")]
