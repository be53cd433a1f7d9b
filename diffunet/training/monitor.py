"""What a run looks at while it trains: the loss on images it never saw, by time, and a grid of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from diffunet.data import Images
from diffunet.denoiser import Denoiser
from diffunet.generation import Progress, generate
from diffunet.objectives import Objective
from diffunet.pictures import MODES, grid, save_png
from diffunet.spec import RunConfig, UNetConfig
from diffunet.training.indexstream import draw

BINS = 10


class HeldOutLoss:
    """Loss of the averaged network on held-out images, in ten bins of the training times' distribution.

    Images, noises and times are the same at every call, so that two numbers differ only by the network.
    """

    def __init__(self, images: Images, config: RunConfig, objective: Objective, device: torch.device) -> None:
        n = min(len(images), config.train.held_out_images)
        random = draw(config.train.seed, "held_out")
        chosen = np.sort(random.choice(len(images), n, replace=False))
        self.x0 = torch.from_numpy(np.stack([images[int(i)] for i in chosen]))
        self.eps = torch.from_numpy(random.standard_normal(self.x0.shape, dtype=np.float32))
        self.u = torch.from_numpy((np.arange(n) % BINS + random.random(n)) / BINS)
        labels = images.labels if cast(UNetConfig, config.model).num_classes else None
        self.labels = None if labels is None else torch.from_numpy(labels[chosen])
        self.objective, self.device, self.batch_size = objective, device, config.sample.batch_size

    @torch.no_grad()
    def __call__(self, den: Denoiser) -> dict[str, float | list[float | None]]:
        """Mean loss, and the mean of each bin from the first tenth of u to the last (None where a bin is empty)."""
        losses = []
        for rows in torch.arange(len(self.x0)).split(self.batch_size):
            x0, eps = self.x0[rows].to(self.device), self.eps[rows].to(self.device)
            t = self.objective.held_out_times(den, self.u[rows])
            cond = {} if self.labels is None else {"class_labels": self.labels[rows].to(self.device)}
            losses.append(self.objective(den, x0, eps, t, **cond).cpu())
        loss, place = torch.cat(losses), (self.u * BINS).long()
        bins = [round(float(loss[place == b].mean()), 6) if (place == b).any() else None for b in range(BINS)]
        return {"loss": float(loss.mean()), "bins": bins}


class StopPreviewError(Exception):
    """A signal came while a preview was being drawn."""


def preview(den: Denoiser, config: RunConfig, path: Path, stopped: Callable[[], bool]) -> bool:
    """Write a grid of samples from fixed seeds; False where nothing was: a signal came, or these are no pictures."""
    n, sample, shape = config.sample.preview_images, config.sample, den.data.shape if den.data else ()
    if len(shape) != 3 or shape[0] not in MODES:
        return False
    cond: dict[str, Any] = {}
    if classes := cast(UNetConfig, config.model).num_classes:
        cond["class_labels"] = torch.arange(n) % classes

    def watch(progress: Progress) -> None:
        if stopped():
            raise StopPreviewError

    try:
        images = generate(
            den,
            n,
            sample.sampler,
            sample.steps,
            sample.spacing,
            seed=config.train.seed,
            guidance=sample.guidance,
            on_step=watch,
            batch_size=sample.batch_size,
            **cond,
        )
    except StopPreviewError:
        return False
    save_png(grid(images), path)
    return True
