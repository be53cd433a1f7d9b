"""Real `diffunet train` processes, to be killed at a moment of our choice.

To hit a moment, the process is first halted (SIGSTOP), so that one can see whether the moment was hit before it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diffunet.errors import UserError, WorkerError
from diffunet.training.checkpoint import TEMPORARY
from diffunet.training.runfolder import RunFolder

POLL = 5e-4  # seconds
PATIENCE = 1800.0  # seconds after which a process that does nothing is given up


class ChildError(UserError):
    """A training process ended by an error of its own; the exit code is that one."""

    code = "E-CHILD"

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def lines(run: Path) -> int:
    """Steps that stand in metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Child:
    """`diffunet train CONFIG --out RUN FLAGS` as a process of its own.

    Args:
        config: the config file.
        run: the run folder.
        log: where its output goes, after what is there.
        flags: more arguments.
    """

    def __init__(self, config: Path, run: Path, log: Path, flags: Sequence[str] = ()) -> None:
        self.run, self.log = run, log
        command = [sys.executable, "-m", "diffunet", "train", str(config), "--out", str(run), *flags]
        with open(log, "ab") as output:
            # a group of its own, so that its data workers can be ended with it
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> int:
        """Its exit code; negative for a signal."""
        return self.process.wait(PATIENCE)

    def until(self, moment: Callable[[], bool]) -> bool:
        """Wait for a moment; False where the process ended before it.

        Raises:
            WorkerError: neither came.
        """
        end = time.monotonic() + PATIENCE
        while not moment():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise WorkerError(f"a training process did nothing for {PATIENCE:.0f} s; see {self.log}")
            time.sleep(POLL)
        return True

    def until_step(self, step: int) -> bool:
        """Wait until metrics.jsonl holds this step; False where the process ended before it."""
        return self.until(lambda: lines(self.run) >= step)

    def send(self, number: int) -> None:
        """Send the process a signal, if it is still there to get one."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def running(self) -> bool:
        """Has it taken up the run, so that what stands in its folder is its own?"""
        status = RunFolder(self.run).read_status()
        return status.get("state") == "running" and status.get("pid") == self.process.pid

    def halt(self) -> None:
        """Let it stand still from now on."""
        self.send(signal.SIGSTOP)
        if Path("/proc").is_dir():  # elsewhere a stop is near enough to immediate
            stat = Path(f"/proc/{self.process.pid}/stat")
            self.until(lambda: stat.read_text().rpartition(")")[2].split()[0] in ("T", "Z", "X"))

    def kill(self) -> int:
        """SIGKILL; its exit code, which says whether that was what ended it."""
        self.send(signal.SIGKILL)
        return self.wait()

    def saving(self, after: int) -> int | None:
        """The step of the checkpoint that it is writing now, if later than `after`."""
        folder, own = self.run / "checkpoints", f"-{self.process.pid}"
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                if name.startswith(".tmp-") and name.endswith(own) and TEMPORARY.fullmatch(name):
                    step = int(name.split("-")[1])
                    return step if step > after else None
        return None

    def halt_in_save(self, after: int) -> int | None:
        """Halt it inside the write of a checkpoint later than step `after`; that step, or None where it ended first."""
        while self.until(lambda: self.saving(after) is not None):
            self.halt()
            if (step := self.saving(after)) is not None:
                return step
            self.send(signal.SIGCONT)
        return None

    def failure(self, code: int) -> str:
        """What it said last, in one line."""
        said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        return f"exit {code}: {said[-1].removeprefix('diffunet: ')}"
