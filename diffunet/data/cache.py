"""Where what was learnt of a data set is kept between runs (`data.cache`), and how it is written and believed.

Each data set has a folder of its own, named after its resolved path. All in it can be made anew from the data: it may
be removed at any time, and whatever is wrong with it costs time, a note to the user, and no run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffunet.data.base import shown
from diffunet.spec import DataConfig

FREE = 0.1  # share of the disk that is left free


@dataclass(frozen=True)
class Cache:
    """The cache folder of one data set.

    Attributes:
        folder: it need not exist yet.
        asked: the user named a place, and so wants everything kept; otherwise only what takes long to make.
    """

    folder: Path
    asked: bool

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; the lock of a process that died is free.

        Raises:
            OSError: nothing can be written or locked there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield

    def lack(self, need: int) -> str | None:
        """Why `need` more bytes do not fit, or None: a tenth of the disk stays free."""
        disk = shutil.disk_usage(next(path for path in (self.folder, *self.folder.parents) if path.exists()))
        if disk.free - need >= FREE * disk.total:
            return None
        return (
            f"decoded images need {need:,} bytes in {shown(self.folder)}, where {disk.free:,} are free and a tenth of "
            f"{disk.total:,} has to stay so"
        )


def home() -> Path:
    """The user's cache folder for data sets: in $XDG_CACHE_HOME where that is an absolute path, else in ~/.cache."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "diffunet" / "data"


def cache_of(config: DataConfig) -> Cache | None:
    """The cache of the data set at data.path; None with data.cache = "off"."""
    if config.cache == "off":
        return None
    asked = config.cache != "auto"
    resolved = os.path.realpath(str(config.path))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(resolved))[:40].lstrip(".")
    key = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return Cache((Path(config.cache) if asked else home()) / f"{name}-{key}", asked)


def sealed(record: dict[str, Any]) -> bytes:
    """A record as JSON that ends with `self`, the SHA-256 of what stands before it."""
    body = json.dumps(record)[:-1]
    return f'{body}, "self": "{hashlib.sha256(body.encode()).hexdigest()}"}}'.encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record of `sealed`.

    Raises:
        ValueError: it is none, or was changed.
    """
    body, mark, tail = data.rpartition(b', "self": "')
    if not mark or tail != f'{hashlib.sha256(body).hexdigest()}"}}'.encode():
        raise ValueError("it does not match its own SHA-256")
    record: dict[str, Any] = json.loads(body + b"}")
    return record
