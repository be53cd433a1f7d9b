"""Diffusion as a task of the trainer: noise, a time and a class for each image; an objective; a grid of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffunet.data import Images, Split
from diffunet.denoiser import Denoiser
from diffunet.errors import DataError
from diffunet.objectives import Objective, first_estimate
from diffunet.schedules import SCHEDULES
from diffunet.spec import DataInfo, RunConfig, UNetConfig
from diffunet.training.indexstream import Noises, Stream
from diffunet.training.monitor import Preview, Watch
from diffunet.training.pairing import PAIRINGS
from diffunet.training.ranks import Alone
from diffunet.training.task import Gather, Task


def data_info(split: Split[Images]) -> DataInfo:
    """What the weights remember of the data."""
    images = split.train
    counts = None
    if images.labels is not None and images.classes is not None:
        counts = tuple(np.bincount(images.labels, minlength=len(images.classes)).tolist())
    return DataInfo(shape=images.shape, classes=images.classes, class_counts=counts)


class Diffusion(Task[Denoiser]):
    """Learn to take noise away."""

    next_command: ClassVar[str] = "sample {run} --n 64"

    def __init__(self, config: RunConfig, split: Split[Images]) -> None:
        self.network_config = cast(UNetConfig, config.model)  # the spec allows no other
        super().__init__(config, split)
        self.objective = Objective.of(config.objective)
        self.pairing = PAIRINGS[config.objective.pairing]
        self._preview = Preview(config, split)
        self.seen: list[Tensor] = []  # times and losses of the micro-steps of this step, where they are remembered

    def check(self) -> None:
        """Hold channels, sides and classes against the model's.

        Raises:
            DataError: they differ.
        """
        config, images, model = self.config, self.split.train, self.network_config
        if images.shape[0] != model.in_channels:
            raise DataError(
                f"data '{config.data.name}' has {images.shape[0]} channels but model.in_channels = "
                f"{model.in_channels}; set model.in_channels and model.out_channels to {images.shape[0]}, or "
                "data.channels"
            )
        if len(images.shape) - 1 != model.dims:
            raise DataError(
                f"data '{config.data.name}' has {len(images.shape) - 1} sides but model.dims = {model.dims}"
            )
        classes = len(images.classes) if images.classes else 0
        if model.num_classes and model.num_classes != classes:
            raise DataError(
                f"data '{config.data.name}' has {classes} classes but model.num_classes = {model.num_classes}"
            )

    def stream(self, network: nn.Module) -> Dataset[dict[str, Any]]:
        """Image, noise, uniform time draw and label at each position."""
        config, null_label = self.config, cast(Any, network).null_label
        dropout, data, seed = config.objective.class_dropout, config.data, config.train.seed
        noises = Noises(seed, config.objective, config.train.batch_size, self.network_config.self_conditioning)
        return Stream(self.split.train, seed, data.flip, dropout, null_label, data.rotate, noises)

    def model(self, network: nn.Module) -> Denoiser:
        """The denoiser around a network."""
        process = self.config.process
        schedule, info = SCHEDULES.build(process.schedule), data_info(self.split)
        return Denoiser(network, schedule, process.prediction, process.clip, info)

    def loss(self, model: Denoiser, batch: dict[str, Tensor]) -> Tensor:
        """The objective's mean over the batch."""
        objective, t = self.objective, self.objective.times(model, batch["u"])
        cond: dict[str, Any] = {"class_labels": batch["label"]} if self.network_config.num_classes else {}
        x0, order = batch["x0"], self.pairing(batch["x0"], batch["eps"])
        eps, shown = (batch[key][order] if key in batch else None for key in ("eps", "shown"))
        assert eps is not None, "every sample has its noise"
        if "recall" in batch:
            _, alpha, sigma = model.levels(t, x0)
            x_t = alpha * x0 + sigma * (eps if shown is None else shown)
            cond["previous"] = first_estimate(model, x_t, t, batch["recall"], **cond)
        losses = objective(model, x0, eps, t, shown=shown, **cond)
        if objective.distribution.remembers:
            self.seen.append(torch.stack([t.to(losses), losses.detach()], dim=1))
        return (losses * objective.correction(model, t).to(losses)).mean()

    def after_step(self, model: Denoiser, kept: bool, gather: Gather) -> None:
        """Let importance sampling learn from the losses of all ranks, in the order of the samples."""
        seen, self.seen = self.seen, []
        if seen and kept:
            shares = gather(torch.stack(seen)[None])
            t, losses = rearrange(shares, "world micro batch value -> value (micro world batch)")
            self.objective.distribution.observe(model.schedule, t, losses)

    def state(self) -> dict[str, Tensor]:
        """What importance sampling remembers."""
        return dict(self.objective.distribution.state())

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Remember it again."""
        self.objective.distribution.restore(tensors)

    def held_out(self, device: torch.device, ranks: Alone) -> Callable[[Denoiser], dict[str, Any]]:
        """The losses on held-out and on as many training images, by time."""
        return Watch(self.split, self.config, self.objective, device, ranks)

    def preview(self, model: Denoiser, path: Path, stopped: Callable[[], bool], ranks: Alone) -> dict[str, Any]:
        """A grid of samples from fixed seeds, and the training images nearest to them."""
        return self._preview(model, path, stopped, ranks)
