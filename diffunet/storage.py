"""Writing files so that a crash, a full disk or a power cut leaves the old or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from diffunet.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_TROUBLE = frozenset({*_FULL, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO})
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}  # a network drive may recover
_PAUSES = (0.1, 0.5, 2.0)  # seconds before each new attempt


def storage_error(error: OSError, path: Path, need: int) -> StorageError:
    """Say what a failed write means, with the bytes needed and free."""
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent if path.parent.exists() else Path.cwd()).free
        return StorageError(
            f"cannot write {path}: need {need:,} bytes, free {free:,} bytes ({error.strerror}); "
            "what was written before is untouched; free some space and run the same command again"
        )
    return StorageError(f"cannot write {path}: {error.strerror or error}; check the folder and its permissions")


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def patiently(write: Callable[[], None]) -> None:
    """Call `write`, and again up to three times after an error that may pass; for writes that may be repeated.

    Raises:
        OSError: the last one, or one that will not pass.
    """
    for pause in _PAUSES:
        try:
            return write()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause)
    write()


def write_durable(path: Path, data: bytes) -> None:
    """Write and fsync one file in place; for files inside a folder, or under a name, that is not visible yet.

    Raises:
        OSError: as it comes, since only the caller knows how many bytes are needed in all.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Replace one file: temporary name, fsync, rename, fsync of the folder.

    Raises:
        StorageError: full disk (with bytes needed and free), no permission, I/O error; the old file is untouched.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        patiently(partial(write_durable, temporary, data))
        os.rename(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        raise storage_error(error, path, len(data)) from None
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written there is nothing to remove
            temporary.unlink()
