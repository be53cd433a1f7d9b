"""Files of a known data set: found below data.path, or fetched by torchvision where data.download allows it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from diffunet.data.base import shown
from diffunet.errors import DataError
from diffunet.spec import DataConfig


def find(config: DataConfig, title: str, folders: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Path of each of `files`, which lie together in data.path or in one of `folders` below it, plain or as .gz.

    Args:
        title: torchvision's name of the data set.

    Raises:
        DataError: a file is missing (and data.download is not set), or the download failed.
    """
    root = str(config.path)
    places = [os.path.join(root, folder) for folder in ("", *folders)]
    best = _best(places, files)
    if len(best) < len(files) and config.download:
        _fetch(title, root)
        best = _best(places, files)
    if len(best) < len(files):
        missing = ", ".join(name for name in files if name not in best)
        raise DataError(
            f"data '{config.name}' is not complete in {shown(root)}: {missing} not found (plain or .gz; looked in it "
            f"and in {', '.join(folders)}); give another data.path, or set data.download = true"
        )
    return best


def _best(places: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """The files of the place that has most of them."""
    tables = []
    for place in places:
        candidates = {name: [os.path.join(place, name + end) for end in ("", ".gz")] for name in files}
        found = {name: next(filter(os.path.isfile, paths), "") for name, paths in candidates.items()}
        tables.append({name: path for name, path in found.items() if path})
    return max(tables, key=len)


def _fetch(title: str, root: str) -> None:
    from diffunet.compat import torchvision  # torch is seconds of import, and only a download needs it

    try:
        # torchvision reports on stdout, which belongs to the results of a program.
        with contextlib.redirect_stdout(sys.stderr):
            for train in (True, False):
                getattr(torchvision("datasets"), title)(root=root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"torchvision could not download {title} to {shown(root)}: {error}") from error
