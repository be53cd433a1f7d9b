"""Batches for the loop: the stream of counters through torch's DataLoader, on this rank's device."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffunet.errors import ConfigError, DataError, WorkerError
from diffunet.spec import TrainConfig
from diffunet.training.indexstream import MicroBatches, collate


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """Endless batches of a stream (position -> item); any number of workers gives the same ones.

    Raises:
        ConfigError: the batch cannot be shared evenly by ranks and micro-steps.
    """

    def __init__(self, train: TrainConfig, stream: Dataset[dict[str, Any]], accelerator: Accelerator) -> None:
        self.train, self.stream, self.accelerator = train, stream, accelerator
        shares = train.accumulation * accelerator.num_processes
        if train.batch_size % shares:
            raise ConfigError(
                f"train.batch_size = {train.batch_size} cannot be shared by {accelerator.num_processes} processes "
                f"x {train.accumulation} micro-steps; use a multiple of {shares}"
            )

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
