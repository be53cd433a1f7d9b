"""Batches for the loop: the stream of counters through torch's DataLoader, on this rank's device."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from diffunet.data import Images, Split
from diffunet.errors import ConfigError, DataError, WorkerError
from diffunet.spec import DataInfo, RunConfig
from diffunet.training.indexstream import MicroBatches, Stream, collate


def data_info(split: Split) -> DataInfo:
    """What the weights remember of the data."""
    images = split.train
    counts = None
    if images.labels is not None and images.classes is not None:
        counts = tuple(np.bincount(images.labels, minlength=len(images.classes)).tolist())
    return DataInfo(shape=images.shape, classes=images.classes, class_counts=counts)


def check_data(config: RunConfig, split: Split) -> None:
    """Hold the data against the model.

    Raises:
        DataError: its channels, sides or classes are not those of the model.
    """
    images, model = split.train, config.model
    if images.shape[0] != model.in_channels:
        raise DataError(
            f"data '{config.data.name}' has {images.shape[0]} channels but model.in_channels = {model.in_channels}; "
            f"set model.in_channels and model.out_channels to {images.shape[0]}, or data.channels"
        )
    if len(images.shape) - 1 != model.dims:
        raise DataError(f"data '{config.data.name}' has {len(images.shape) - 1} sides but model.dims = {model.dims}")
    classes = len(images.classes) if images.classes else 0
    if model.num_classes and model.num_classes != classes:
        raise DataError(f"data '{config.data.name}' has {classes} classes but model.num_classes = {model.num_classes}")


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """Endless batches by position; any number of workers gives the same ones.

    Raises:
        ConfigError: the batch cannot be shared evenly by ranks and micro-steps.
    """

    def __init__(self, config: RunConfig, images: Images, accelerator: Accelerator, null_label: int | None) -> None:
        train, self.accelerator = config.train, accelerator
        shares = train.accumulation * accelerator.num_processes
        if train.batch_size % shares:
            raise ConfigError(
                f"train.batch_size = {train.batch_size} cannot be shared by {accelerator.num_processes} processes "
                f"x {train.accumulation} micro-steps; use a multiple of {shares}"
            )
        self.train = train
        self.stream = Stream(images, train.seed, config.data.flip, config.objective.class_dropout, null_label)

    def steps(self, first: int, last: int) -> Iterator[list[dict[str, Tensor]]]:
        """The micro-batches of each step from `first` (0-based) to `last`, on the device.

        Raises:
            WorkerError: a data worker died.
            DataError: an image could not be read.
        """
        a, train = self.accelerator, self.train
        positions = MicroBatches(first, last, train.batch_size, train.accumulation, a.process_index, a.num_processes)
        loader = DataLoader(
            self.stream,
            batch_sampler=positions,
            num_workers=train.workers,
            collate_fn=collate,
            pin_memory=a.device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
        )
        batches = iter(loader)
        for step in range(first, last):
            try:
                yield [self._move(next(batches)) for _ in range(train.accumulation)]
            except DataError as error:
                # a worker's error arrives with its whole traceback as text; the last line is the message
                raise DataError(
                    str(error).strip().splitlines()[-1].removeprefix("diffunet.errors.DataError: ")
                ) from None
            except (RuntimeError, ConnectionError) as error:
                if train.workers == 0:
                    raise
                at = step * train.batch_size
                raise WorkerError(f"a data worker died at step {step + 1} (samples from {at}): {error}") from None

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.accelerator.device
        # numbers of float64 and names stay here: some devices have no float64, and the schedule's maths wants it
        stay = ("index", "u")
        return {k: v if k in stay else v.to(device, non_blocking=True) for k, v in batch.items()}
