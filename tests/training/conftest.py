"""The zygote, and a finished tiny run to compare with."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import write_config


@dataclass
class Child:
    """One run of the program in a forked process."""

    zygote: Zygote
    pid: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it is still there to get one; its exit code says whether it was."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.pid in self.zygote.codes

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, negative for a signal; one that outlives the time is killed and is an error."""
        end = time.monotonic() + seconds
        while not self.ended:
            self.zygote.listen(end - time.monotonic())
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the child was still there after {seconds} s")
        return self.zygote.codes[self.pid]


class Zygote:
    """See zygote.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("COV_CORE_SOURCE", None)
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.codes: dict[int, int] = {}
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.heard = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            with self.heard:
                if "code" in answer:
                    self.codes[answer["pid"]] = answer["code"]
                else:
                    self.codes.pop(answer["pid"], None)  # numbers of processes are used again
                    self.begun.put(answer["pid"])
                self.heard.notify_all()

    def listen(self, seconds: float) -> None:
        """Wait until it says something, or for so long."""
        with self.heard:
            self.heard.wait(max(0.0, min(seconds, 0.05)))

    def start(
        self,
        args: Sequence[object],
        log: Path,
        event: int | None = None,
        *,
        faults: Sequence[dict[str, Any]] = (),
        call: str | None = None,
        environment: dict[str, str] | None = None,
        terminal: str | None = None,
    ) -> Child:
        """Begin `diffunet ARGS` in a fork, with faults (see tests/faults/injections.py).

        `event` is short for SIGKILL at that file-system event of the saves.
        """
        faults = [*faults, {"kind": "event", "at": event, "act": "kill"}] if event else list(faults)
        order = {"args": [str(a) for a in args], "log": str(log), "faults": faults, "call": call}
        order |= {"environment": environment or {}, "terminal": terminal}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Child(self, self.begun.get(timeout=500))

    def run(self, args: Sequence[object], log: Path, **options: Any) -> int:
        """`diffunet ARGS` to its end; its exit code."""
        return self.start(args, log, **options).wait()

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self.process.kill()
        self.process.wait()
        self.reader.join(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process to fork runs from."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def golden(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted tiny run."""
    folder = tmp_path_factory.mktemp("golden")
    config = write_config(folder)
    assert zygote.run(["train", config, "--out", folder / "run"], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def wait_for(condition, seconds: float = 30) -> None:
    """Poll until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
