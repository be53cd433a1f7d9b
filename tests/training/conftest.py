"""The zygote, and a finished tiny run to compare with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.training.runs import write_config


@dataclass
class Child:
    """One run of the program in a forked process."""

    zygote: Zygote
    pid: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it is still there to get one; its exit code says whether it was."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; negative for a signal."""
        return self.zygote.answer()["code"]


class Zygote:
    """See zygote.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("COV_CORE_SOURCE", None)
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> dict:
        """The next line it writes."""
        return json.loads(self.process.stdout.readline())

    def start(self, args: list[str], log: Path, event: int | None = None) -> Child:
        """Begin `diffunet ARGS` in a fork."""
        self.process.stdin.write(json.dumps({"args": [str(a) for a in args], "log": str(log), "event": event}) + "\n")
        self.process.stdin.flush()
        return Child(self, self.answer()["pid"])

    def run(self, args: list[str], log: Path) -> int:
        """`diffunet ARGS` to its end; its exit code."""
        return self.start(args, log).wait()

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
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
