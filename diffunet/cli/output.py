"""Where samples go: a grid, one PNG a seed, an npz of arrays, and the pictures of a denoising.

Signals are drawn as curves and volumes as slices, which are no more than a look: their folder gets the arrays as well.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet.denoiser import Denoiser
from diffunet.drawing import is_picture, tiles, to_uint8
from diffunet.errors import ConfigError
from diffunet.generation import Progress
from diffunet.pictures import grid, save_gif, save_png
from diffunet.storage import write_file

FRAMES = 25  # pictures of a denoising at most
SHOWN = 8  # images of a denoising at most
STRIP = 4000  # pixels across that the strip of a denoising may have


class Output:
    """Writes samples to a .png grid, to an .npz, or to a folder (the grid, and one PNG a seed or the arrays).

    Raises:
        ConfigError: another suffix.
    """

    def __init__(self, path: Path, seeds: list[int], den: Denoiser, trajectory: bool) -> None:
        self.path, self.seeds, self.trajectory = path, seeds, trajectory
        self.frames: list[Tensor] = []
        if path.suffix.lower() not in ("", ".png", ".npz") and not path.is_dir():
            raise ConfigError(f"--out {path}: name a .png (grid), an .npz (arrays) or a folder")

    def watch(self, progress: Progress) -> None:
        """Keep some clean estimates of the first batch for the pictures of the denoising."""
        every = max(1, -(-progress.steps // FRAMES))
        if self.trajectory and progress.first == 0 and (progress.step % every == 0 or progress.step == progress.steps):
            self.frames.append(torch.cat([progress.x[:SHOWN].cpu(), progress.x0[:SHOWN].cpu()]))

    def write(self, images: Tensor) -> list[Path]:
        """Write everything; gives the paths, the one to look at first."""
        suffix = self.path.suffix.lower()
        if suffix == ".npz":
            written = [self._npz(images, self.path)]
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
        if not is_picture(tuple(images.shape[1:])):
            return [*written, self._npz(images, self.path / "samples.npz")]
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
        across = tiles(self.frames[0][:1]).shape[2]
        every = -(-len(self.frames) * across // STRIP)
        kept = self.frames[::-1][::every][::-1]  # the last one always
        strip = torch.stack([frame[shown:] for frame in kept], dim=1).flatten(0, 1)
        save_png(grid(strip, columns=len(kept)), name(".png"))
        return [name(".gif"), name(".png")]
