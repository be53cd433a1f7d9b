"""Which images a folder holds, and a fingerprint of them; no pixel is decoded here.

Rules: files are known by their ending (any case) and ordered by relative path. Names that begin with a dot are left
out; links to files are followed, links to folders are not (they may be loops); other endings, linked folders and
entries that are no regular files (pipes, broken links) are left out with a note.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from typing import BinaryIO, NamedTuple

from diffunet.data.base import Listing, shown
from diffunet.data.decode import ENDINGS
from diffunet.errors import DataError

_ENDS = 64 * 2**10  # bytes of a file's head and of its tail that go into the fingerprint


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, without names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"cannot list {shown(folder.rstrip('/'))}: {error.strerror}; it is part of data.path"
        ) from error


def _left_out(others: Counter[str], odd: list[str], links: list[str]) -> list[str]:
    notes = []
    if others:
        kinds = ", ".join(f"{count} {shown(ending)}" for ending, count in others.most_common(5))
        notes.append(f"left out {others.total()} files with other endings: {kinds}")
    if odd:
        notes.append(f"left out {len(odd)} entries that are no regular files; first: {shown(min(odd))}")
    if links:
        notes.append(f"left out {len(links)} links to folders; first: {shown(min(links))}")
    return notes


class Found(NamedTuple):
    """An image file: its path below the root (with /), and what its folder says of it; times in nanoseconds."""

    name: str
    size: int
    modified: int
    changed: int


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What a name leads to, links followed; None where it leads nowhere, or round in a loop."""
    try:
        return entry.stat()
    except OSError:
        return None


def survey(root: str) -> tuple[list[Found], list[str]]:
    """The images below `root`, sorted by name, and notes on what was left out.

    Raises:
        DataError: no folder, no image in it, or a part of it cannot be listed.
    """
    if not os.path.isdir(root):
        is_what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"data.path = {shown(root)} {is_what}; data 'folder' needs a folder of images")
    found: list[Found] = []
    links: list[str] = []
    odd: list[str] = []
    others: Counter[str] = Counter()
    folders = [""]
    while folders:
        below = folders.pop()
        for entry in _entries(os.path.join(root, below)):
            name = f"{below}{entry.name}"
            status = _status(entry) if entry.is_symlink() else None
            if stat.S_ISDIR(status.st_mode) if status else entry.is_dir(follow_symlinks=False):
                links.append(entry.path) if entry.is_symlink() else folders.append(f"{name}/")
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if ending not in ENDINGS:
                others[ending or "without ending"] += 1
            elif (status := status or _status(entry)) and stat.S_ISREG(status.st_mode):
                found.append(Found(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            else:
                odd.append(entry.path)
    notes = _left_out(others, odd, links)
    if not found:
        raise DataError("; ".join([f"found 0 images in {shown(root)} (looked for {' '.join(ENDINGS)})", *notes]))
    return sorted(found), notes


def scan(root: str) -> tuple[list[str], list[str]]:
    """`survey`, the names alone."""
    found, notes = survey(root)
    return [file.name for file in found], notes


def digest_of(file: BinaryIO) -> str:
    """Size and SHA-256 of the first and last 64 KiB: whole for most images, and cheap for any."""
    head = file.read(_ENDS)
    size = os.fstat(file.fileno()).st_size
    file.seek(max(len(head), size - _ENDS))
    return f"{size}:{hashlib.sha256(head + file.read()).hexdigest()}"


def file_digest(path: str) -> str:
    """`digest_of` a path; `unreadable:ERRNO` where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return digest_of(file)
    except OSError as error:
        return f"unreadable:{error.errno}"


def fingerprint(listing: Listing) -> tuple[str, list[str]]:
    """SHA-256 over the relative path and digest of every image, and a note on copies.

    No times, so that a copy on another machine has the same one. An edit that keeps the size of a file above 128 KiB
    and touches only its middle goes unseen.
    """
    whole = hashlib.sha256()
    for name, digest in zip(listing.names, listing.digests, strict=True):
        whole.update(f"{name}\0{digest}\0".encode("utf-8", "surrogateescape"))
    copies = len(listing.digests) - len(set(listing.digests))
    notes = [f"{copies} images are copies of another one in {shown(listing.root)}"] if copies else []
    return whole.hexdigest(), notes
