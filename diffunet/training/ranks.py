"""The processes of one run, and what they tell each other. A run of one process is the simple case of it.

A process that is killed closes its connections, and the others fail in their next exchange; one that is stuck leaves
them waiting until `train.rank_timeout`. Who it was, nobody tells: so the others sign a list that the launcher keeps
(torch's store), and whoever has not signed is named.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from diffunet.errors import UserError, WorkerError

T = TypeVar("T")
_SIGNING = 3.0  # seconds that the living have to sign
_BROKEN = ("closed by peer", "reset by peer", "broken pipe", "timed out", "time out", "socket", "gloo", "nccl", "store")


def on_cpu() -> bool:
    """Whether there is no accelerator; its ranks join into one gloo group only where that is told."""
    return not torch.accelerator.is_available()


class Alone:
    """One process that has nobody to ask."""

    main, index, count = True, 0, 1
    step = 0  # the step that is being made
    orphaned = False  # is the main process gone, so that this one must say how the run ended?

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order."""
        return [value]

    def agree(self, do: Callable[[], T]) -> list[T]:
        """What `do()` gives on each process; where it fails on any, that one's error is raised on all.

        Raises:
            UserError: of the first process that failed.
        """
        return [do()]

    def tell(self, value: T) -> T:
        """The main process's value, on all."""
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return value

    def any(self, flag: int) -> int:
        """The largest of all the flags."""
        return flag

    def part(self, n: int) -> Tensor:
        """Which of n things this process does: as many on each, so that the last ones may be beyond n."""
        size = -(-n // self.count)
        return torch.arange(self.index * size, (self.index + 1) * size)

    def joined(self, mine: Tensor, n: int) -> Tensor:
        """What all processes found for their parts of n things, in order, (n, ...)."""
        return torch.cat(self.gather(mine))[:n]

    def wait(self) -> None:
        """Until all are here."""

    def loss_of(self, error: Exception, timeout: float) -> WorkerError | None:
        """What a failed exchange means: which processes are gone or stuck; None where it was no exchange."""
        return None


class Together(Alone):
    """Several processes, under torchrun or accelerate launch. Every method must be called by all of them."""

    def __init__(self, processes: PartialState) -> None:
        self.main, self.index, self.count = (
            processes.is_main_process,
            processes.process_index,
            processes.num_processes,
        )
        self.device = processes.device

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def agree(self, do: Callable[[], T]) -> list[T]:
        value, failed = None, None
        try:
            value = do()
        except UserError as error:
            failed = error
        outcomes = self.gather((value, failed))
        if errors := [error for _, error in outcomes if error is not None]:
            raise errors[0]
        return [cast(T, value) for value, _ in outcomes]

    def tell(self, value: T) -> T:
        return self.gather(value)[0]

    def mean(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def any(self, flag: int) -> int:
        found = torch.tensor(flag, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        dist.barrier()

    def loss_of(self, error: Exception, timeout: float) -> WorkerError | None:
        text = str(error).lower()
        if not isinstance(error, dist.DistError) and not any(sign in text for sign in _BROKEN):
            return None
        missing = self._unsigned()
        self.orphaned = self.index == min(set(range(self.count)) - set(missing), default=0)
        who = ", ".join(f"rank {rank}" for rank in missing) or "a rank"
        how = f"was silent for {timeout:g} s" if "timed out" in text or "timeout" in text else "is gone"
        return WorkerError(
            f"{who} of {self.count} {how} at step {self.step}; the checkpoints are whole; "
            "the same command again goes on from the last one"
        )

    def _unsigned(self) -> list[int]:
        """The ranks that do not sign in time; nobody's fault where the store itself is gone."""
        signature = f"diffunet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/signed/%d"
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=_SIGNING))
            store.set(signature % self.index, "here")
            end, missing = time.monotonic() + _SIGNING, list(range(self.count))
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not store.check([signature % rank])]
                time.sleep(0.05)
        except RuntimeError:  # rank 0 held the store, and has taken it along
            return [0]
        return missing


def join(timeout: float) -> Alone:
    """This process among those that were started with it.

    Args:
        timeout: seconds of silence after which another one counts as dead.
    """
    processes = PartialState(cpu=on_cpu(), timeout=timedelta(seconds=timeout))
    return Together(processes) if processes.num_processes > 1 else Alone()
