"""What a run looks at while it trains: the loss on images it never saw and on images it has, by time, and samples."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from diffunet.data import Images, Split
from diffunet.denoiser import Denoiser
from diffunet.errors import DataError
from diffunet.generation import Progress, generate
from diffunet.objectives import Objective
from diffunet.pictures import grid, save_png
from diffunet.spec import RunConfig, UNetConfig
from diffunet.training.indexstream import draw
from diffunet.training.neighbours import Copies, StoppedError
from diffunet.training.ranks import Alone

BINS = 10


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, each of its modules afterwards in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def peak_memory(device: torch.device) -> int:
    """Bytes that this process had at most: of the GPU's memory where it computes on one, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Draws:
    """The noises and times that losses are measured with: the same at every call, and for every set of images.

    So two numbers differ only by the network and the images.

    Args:
        random: where they are drawn from.
        n: how many.
        shape: (C, *S) of an image.
    """

    def __init__(self, random: np.random.Generator, n: int, shape: tuple[int, ...]) -> None:
        self.eps = torch.from_numpy(random.standard_normal((n, *shape), dtype=np.float32))
        self.u = torch.from_numpy((np.arange(n) % BINS + random.random(n)) / BINS)


class Loss:
    """Loss of a network on some images, in ten bins of the training times' distribution.

    Args:
        images: those that it is measured on, at most as many as there are draws.
        chosen: their numbers in `images`.
        draws: noises and times.
        config: the resolved run.
        objective: what is measured.
        device: where the network is.
    """

    def __init__(
        self,
        images: Images,
        chosen: np.ndarray,
        draws: Draws,
        config: RunConfig,
        objective: Objective,
        device: torch.device,
    ) -> None:
        n = len(chosen)
        self.x0 = torch.from_numpy(np.stack([images[int(i)] for i in chosen]))
        self.eps, self.u = draws.eps[:n], draws.u[:n]
        labels = images.labels if cast(UNetConfig, config.model).num_classes else None
        self.labels = None if labels is None else torch.from_numpy(labels[chosen])
        self.objective, self.device, self.batch_size = objective, device, config.sample.batch_size

    @torch.no_grad()
    def __call__(self, den: Denoiser, ranks: Alone) -> dict[str, float | list[float | None]]:
        """Mean loss, and the mean of each bin from the first tenth of u to the last (None where a bin is empty).

        Each process measures its part; all must call.
        """
        losses, n = [], len(self.x0)
        for rows in ranks.part(n).clamp(max=n - 1).split(self.batch_size):
            x0, eps = self.x0[rows].to(self.device), self.eps[rows].to(self.device)
            t = self.objective.held_out_times(den, self.u[rows])
            cond = {} if self.labels is None else {"class_labels": self.labels[rows].to(self.device)}
            losses.append(self.objective(den, x0, eps, t, **cond).cpu())
        loss, place = ranks.joined(torch.cat(losses), n), (self.u * BINS).long()
        bins = [round(float(loss[place == b].mean()), 6) if (place == b).any() else None for b in range(BINS)]
        return {"loss": float(loss.mean()), "bins": bins}


class Watch:
    """The losses on held-out and on as many training images, and the memory: what is measured from time to time.

    Args:
        split: the run's images; without held-out ones only the training images are measured.
        config: the resolved run.
        objective: what is measured.
        device: where the network is.
        ranks: the processes that measure together.
    """

    def __init__(
        self, split: Split[Images], config: RunConfig, objective: Objective, device: torch.device, ranks: Alone
    ) -> None:
        parts = {"held_out": split.held_out, "seen": split.train}
        known = {name: images for name, images in parts.items() if images is not None}
        n = min(config.train.held_out_images, len(next(iter(known.values()))))
        random = draw(config.train.seed, "held_out")
        # the first ones are drawn as ever, before the noises, so that a resumed run goes on with the same
        chosen = {}
        for i, (name, images) in enumerate(known.items()):
            source = draw(config.train.seed, "held_out", i) if i else random
            chosen[name] = np.sort(source.choice(len(images), min(n, len(images)), replace=False))
        draws = Draws(random, n, split.train.shape)
        self.device, self.ranks = device, ranks
        self.losses = {
            name: Loss(images, chosen[name], draws, config, objective, device) for name, images in known.items()
        }

    def __call__(self, den: Denoiser) -> dict[str, Any]:
        """`held_out` and `seen` ({"loss", "bins"} each), `memory` (bytes) and `watch_seconds`, for a step's record."""
        begun = time.perf_counter()
        with at_rest(den):
            found: dict[str, Any] = {name: loss(den, self.ranks) for name, loss in self.losses.items()}
        return found | {"memory": peak_memory(self.device), "watch_seconds": round(time.perf_counter() - begun, 4)}


class Preview:
    """Draws samples from fixed seeds, and looks for the training images nearest to them.

    Args:
        config: the resolved run.
        split: its images.
    """

    def __init__(self, config: RunConfig, split: Split[Images]) -> None:
        self.config = config
        self.copies = Copies(config, split) if config.sample.preview_neighbours else None

    def __call__(self, den: Denoiser, path: Path, stopped: Callable[[], bool], ranks: Alone) -> dict[str, Any]:
        """Write a grid of samples; gives `copies` and what it cost, {} where a signal came.

        Each process draws its part of the seeds; all must call. The main one writes and compares.

        Raises:
            NumericError: samples are not finite.
            StorageError: a picture cannot be written.
        """
        begun = time.perf_counter()

        def watch(progress: Progress | None = None) -> None:
            if ranks.any(int(stopped())):
                raise StoppedError

        try:
            images = self._images(den, watch, ranks)
        except StoppedError:
            return {}
        drawn = time.perf_counter()
        found = ranks.agree(lambda: self._shown(images, path, stopped) if ranks.main else {})[0]
        if found is None:
            return {}
        seconds = {"preview_seconds": drawn - begun, "copies_seconds": time.perf_counter() - drawn}
        return found | {name: round(value, 4) for name, value in seconds.items()}

    def _shown(self, images: torch.Tensor, path: Path, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        save_png(grid(images), path)
        try:
            return {} if self.copies is None else {"copies": self.copies(images, path, stopped)}
        except StoppedError:
            return None
        except DataError as error:  # an image that training has not come to yet; a look must not end the run
            return {"copies": {"error": str(error)}}

    def _images(self, den: Denoiser, watch: Callable[[Progress], None], ranks: Alone) -> torch.Tensor:
        """(N, C, *S) of the seeds from `train.seed` on, of every class in turn."""
        n, parts = self.config.sample.preview_images, []
        for numbers in ranks.part(n).split(self.config.sample.batch_size):
            # what is not finite on one process ends the drawing on all
            parts.append(ranks.agree(partial(self._batch, den, numbers, watch)))
        return torch.cat([images for part in zip(*parts, strict=True) for images in part])[:n]

    def _batch(self, den: Denoiser, numbers: torch.Tensor, watch: Callable[[Progress], None]) -> torch.Tensor:
        """The images of some numbers, on the CPU."""
        sample, config = self.config.sample, self.config
        cond: dict[str, Any] = {}
        if classes := cast(UNetConfig, config.model).num_classes:
            cond["class_labels"] = numbers % classes
        return generate(
            den,
            len(numbers),
            sample.sampler,
            sample.steps,
            sample.spacing,
            seed=config.train.seed + int(numbers[0]),
            guidance=sample.guidance,
            on_step=watch,
            batch_size=sample.batch_size,
            **cond,
        ).cpu()
