"""What is known of each file of a folder without decoding it, kept between runs so that a second one reads no file.

A file whose size and times (of its content and of its entry) are unchanged keeps its digest and its header. As in git's
index, one that was modified within two seconds before it was read is not believed the next time: it could have been
written once more within the same tick of the clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from diffunet.data.base import shown
from diffunet.data.cache import Cache, sealed, unsealed
from diffunet.data.decode import Header, Unreadable, limits, read_header
from diffunet.data.scan import Found, digest_of
from diffunet.errors import StorageError
from diffunet.storage import write_file

WORTH = 1000  # files from which an index is kept where nobody asked for one
THREADS = 8  # what waits for a slow disk or a network waits together
_FORMAT = 1
_TICK = 2 * 10**9  # nanoseconds; the coarsest clock of a file system in use (FAT)


@dataclass(frozen=True)
class Fact:
    """One file: its digest, and its header or the reason why it has none; settled if it would be the same again."""

    digest: str
    header: Header | None
    reason: str = ""
    settled: bool = True


def examine(path: str, found: Found, max_pixels: int) -> Fact:
    """Read a file's ends and its header."""
    settled = time.time_ns() - found.modified > _TICK
    try:
        with open(path, "rb", buffering=0) as file:
            digest = digest_of(file)
            file.seek(0)
            try:
                return Fact(digest, read_header(file, max_pixels), settled=settled)
            except Unreadable as error:
                return Fact(digest, None, str(error), settled)
    except OSError as error:  # perhaps for now only: a permission, a network
        return Fact(f"unreadable:{error.errno}", None, shown(f"{type(error).__name__}: {error}"), settled=False)


def _read(root: str, found: Sequence[Found], max_pixels: int) -> Iterator[Fact]:
    """`examine` of each file, in order."""

    def part(files: Sequence[Found]) -> list[Fact]:
        return [examine(os.path.join(root, file.name), file, max_pixels) for file in files]

    parts = [found[i : i + 64] for i in range(0, len(found), 64)]
    with limits(max_pixels), ThreadPoolExecutor(THREADS) as pool:
        for facts in pool.map(part, parts):
            yield from facts


def _row(found: Found, fact: Fact) -> list[Any]:
    header = fact.header
    about = [fact.reason] if header is None else [header.format, header.mode, *header.size, header.frames]
    return [*found, fact.digest, *about]


def _known(row: list[Any]) -> tuple[Found, Fact]:
    found, digest, about = Found(*row[:4]), row[4], row[5:]
    if len(about) == 1:
        return found, Fact(digest, None, about[0])
    form, mode, width, height, frames = about
    return found, Fact(digest, Header(form, mode, (width, height), frames))


def _load(path: Path, about: dict[str, Any], notes: list[str]) -> dict[Found, Fact]:
    """The facts of an index file; none where there is no such file, or it is about something else or damaged."""
    try:
        record = unsealed(path.read_bytes())
        return dict(map(_known, record["files"])) if record["about"] == about else {}
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"the index {shown(path)} cannot be read ({error.strerror}); the folder is read without it")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        notes.append(f"the index {shown(path)} is damaged ({error}); it is made anew")
    return {}


def facts_of(root: str, found: Sequence[Found], max_pixels: int, cache: Cache | None) -> tuple[list[Fact], list[str]]:
    """What is known of each file of `survey`, and notes; from the index what is unchanged, and into it what is new.

    An index that cannot be read or written is noted; it stops no run.
    """
    if cache is None or not (cache.asked or len(found) >= WORTH):
        return list(_read(root, found, max_pixels)), []
    notes: list[str] = []
    path = cache.folder / "index.json"
    about = {"format": _FORMAT, "root": os.path.realpath(root), "max_pixels": max_pixels, "pillow": PIL.__version__}
    known = _load(path, about, notes)
    facts = {file: known[file] for file in found if file in known}
    new = [file for file in found if file not in facts]
    facts |= zip(new, _read(root, new, max_pixels), strict=True)
    rows = [_row(file, facts[file]) for file in found if facts[file].settled]
    if new or len(rows) < len(known):
        try:
            write_file(path, sealed({"about": about, "files": rows}))
        except StorageError as error:
            notes.append(f"no index of the folder is kept: {error}")
    return [facts[file] for file in found], notes
