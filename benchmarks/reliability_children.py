"""A trainer in a fork of this process, where it may be killed, starved or lied to; and its pictures."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.reliability_systems import quiet

PATIENCE = 600.0  # seconds for one child, on a machine however busy


@dataclass
class Place:
    """One trainer, its folders, and how often things shall happen."""

    system: Any
    root: Path
    images: Path
    kills: int
    flips: int
    megabytes: int

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        (self.root / name).mkdir(parents=True)
        return self.root / name


def begin(act: Callable[[], Any], log: Path) -> int:
    """`act` in a fork: its process id; 0 is the exit code of one that came to its end, and `log` holds the error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            quiet()
            torch.set_num_threads(1)
            act()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException as error:
            log.write_text(f"{type(error).__name__}: {error}")
        os._exit(code)
    return pid


def end(pid: int) -> int:
    """The exit code of a fork; one that outlives its time is killed."""
    last = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > last:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def losses(folder: Path) -> dict[int, str]:
    """Step -> loss, exactly; the last one where a step was repeated."""
    lines = (folder / "losses").read_text().split("\n")[:-1]
    return {int(step): loss for step, loss in (line.split() for line in lines)}


def trained(place: Place, name: str, steps: int, **options: Any) -> Path:
    """A folder in which a trainer came to its end."""
    folder = place.fresh(name)
    log = place.root / "log"
    code = end(begin(lambda: place.system.train(folder, place.images, steps, **options), log))
    if code:
        raise RuntimeError(f"{place.system.name} ended with {code}: {log.read_text() if log.exists() else ''}")
    return folder


def toy_images(folder: Path) -> Path:
    """128 pictures of 8 x 8 pixels."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for i in range(128):
        Image.frombytes("RGB", (8, 8), chance.randbytes(192)).save(folder / f"{i:04d}.png")
    return folder
