"""Signals become a flag that the loop polls, so that a run stops between two steps with its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# signal -> exit code; SIGUSR1 is how SLURM announces the end of the time it gave
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}


class StopSignals:
    """Context in which SIGINT, SIGTERM and SIGUSR1 set `code`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.code = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in EXITS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.code == EXITS[signal.SIGINT]:
            raise KeyboardInterrupt
        self.code = EXITS[signal.Signals(number)]
