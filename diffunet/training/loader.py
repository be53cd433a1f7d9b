"""Batches for the loop: the stream of counters through torch's DataLoader, on this rank's device."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffunet.errors import ConfigError, DataError, WorkerError
from diffunet.spec import TrainConfig
from diffunet.training.indexstream import MicroBatches, collate

Batches = list[dict[str, Tensor]]


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_workers(batches: object) -> None:
    """Kill what is left of the workers of a loader: one that hangs heeds nothing else; and let torch forget them."""
    for worker in getattr(batches, "_workers", ()):
        worker.kill()
        worker.join()
    getattr(batches, "_shutdown_workers", tuple)()


class _News:
    """Holds back what torch says of dead workers until a batch is waited for.

    Its SIGCHLD handler raises in the main thread, wherever that is: in the middle of an update, or of a save.
    """

    def __init__(self) -> None:
        self.waiting, self.held_back = False, False
        self.theirs = signal.getsignal(signal.SIGCHLD)  # torch set it when the first workers were started
        self._put(self._tell)

    def _put(self, handler: Any) -> None:
        if callable(self.theirs) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)

    def close(self) -> None:
        """Let torch's own handler speak again."""
        self._put(self.theirs)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if self.waiting and callable(self.theirs):
            self.theirs(number, frame)
        else:
            self.held_back = True

    def __enter__(self) -> None:
        self.waiting = True
        if self.held_back:
            self.held_back = False
            self._tell(signal.SIGCHLD, None)

    def __exit__(self, *error: object) -> None:
        self.waiting = False


def _ahead(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same batches, each made in a thread while the one before it is used.

    Items are functions of their position alone, so that they are the same wherever they are made; numpy's generators
    and reads let go of the interpreter. What a batch raises is raised where it would have been given.
    """
    with ThreadPoolExecutor(1, "batch") as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


class Loader:
    """Endless batches of a stream (position -> item); any number of workers gives the same ones.

    Args:
        train: batch, micro-steps, workers.
        stream: the items.
        accelerator: whose device and rank.
        note: told of a restart, (kind, message, **facts).

    Raises:
        ConfigError: the batch cannot be shared evenly by ranks and micro-steps.
    """

    def __init__(
        self,
        train: TrainConfig,
        stream: Dataset[dict[str, Any]],
        accelerator: Accelerator,
        note: Callable[..., None],
    ) -> None:
        self.train, self.stream, self.accelerator, self.note = train, stream, accelerator, note
        # workers prepare two micro-batches each, so that one may die over what only a later step needs
        self.ahead = 1 + -(-2 * train.workers // train.accumulation)
        shares = train.accumulation * accelerator.num_processes
        if train.batch_size % shares:
            raise ConfigError(
                f"train.batch_size = {train.batch_size} cannot be shared by {accelerator.num_processes} processes "
                f"x {train.accumulation} micro-steps; use a multiple of {shares}"
            )

    def steps(self, first: int, last: int) -> Iterator[tuple[Batches, float]]:
        """The micro-batches of each step from `first` (0-based) to `last`, on the device, and the seconds waited.

        Workers that die or hang are started again from the same step, but not twice over the same samples.

        Raises:
            WorkerError: a data worker died or hung twice over the same samples.
            DataError: an image could not be read.
        """
        failed = -self.ahead
        while first < last:
            made = iter(self._loader(first, last))
            batches = made if self.train.workers else _ahead(made)
            news = _News()
            try:
                for step in range(first, last):
                    begun = time.perf_counter()
                    with news:
                        found = [self._move(next(batches)) for _ in range(self.train.accumulation)]
                    waited = time.perf_counter() - begun
                    first = step + 1
                    yield found, waited
            except DataError as error:
                # a worker's error arrives with its whole traceback as text; the last line is the message
                reason = str(error).strip().splitlines()[-1].removeprefix("diffunet.errors.DataError: ")
                raise DataError(reason) from None
            except (RuntimeError, ConnectionError) as error:
                if self.train.workers == 0:
                    raise
                _end_workers(made)
                self._restart(first, first < failed + self.ahead, error)
                failed = first
            finally:
                news.close()

    def _loader(self, first: int, last: int) -> DataLoader[dict[str, Tensor]]:
        a, train = self.accelerator, self.train
        positions = MicroBatches(first, last, train.batch_size, train.accumulation, a.process_index, a.num_processes)
        return DataLoader(
            self.stream,
            batch_sampler=positions,
            num_workers=train.workers,
            collate_fn=collate,
            pin_memory=a.device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            timeout=train.worker_timeout if train.workers else 0,
        )

    def _restart(self, step: int, again: bool, error: Exception) -> None:
        samples = range(step * self.train.batch_size, (step + self.ahead) * self.train.batch_size)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = (
            f"a data worker died or hung before step {step + 1}, over samples {samples[0]} to {samples[-1]}: {reason}"
        )
        if again:
            raise WorkerError(
                f"{what}; it was started again, and failed again; the checkpoints are whole; look at the machine's "
                "memory and /dev/shm, or use train.workers = 0"
            ) from None
        self.note("worker_restarted", what)

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.accelerator.device
        # numbers of float64 and names stay here: some devices have no float64, and the schedule's maths wants it
        stay = ("index", "u")
        return {k: v if k in stay else v.to(device, non_blocking=True) for k, v in batch.items()}
