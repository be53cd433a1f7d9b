"""Which images a folder holds, in which classes, and a fingerprint of them; no pixel is decoded here.

Rules: files are known by their ending (any case) and ordered by relative path. If every image lies in a sub-folder, the
sub-folders of the first level are the classes, in order of their names, and deeper files belong to them; images beside
sub-folders make the whole folder one without classes (a note says so). Names that begin with a dot are left out; links
to files are followed, links to folders are not (they may be loops); other endings, linked folders and entries that are
no regular files (pipes, broken links) are left out with a note.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from typing import NoReturn

import numpy as np

from diffunet.data.base import shown
from diffunet.data.decode import ENDINGS
from diffunet.errors import DataError

_ENDS = 64 * 2**10  # bytes of a file's head and of its tail that go into the fingerprint


def _unlisted(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {shown(str(error.filename))}: {error.strerror}; it is part of data.path") from error


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


def scan(root: str) -> tuple[list[str], list[str]]:
    """Relative paths (with /) of the images below `root`, sorted, and notes on what was left out.

    Raises:
        DataError: no folder, no image in it, or a part of it cannot be listed.
    """
    if not os.path.isdir(root):
        is_what = "is a file, not a folder" if os.path.exists(root) else "does not exist"
        raise DataError(f"data.path = {shown(root)} {is_what}; data 'folder' needs a folder of images")
    found: list[str] = []
    links: list[str] = []
    odd: list[str] = []
    others: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
        for name in (name for name in files if not name.startswith(".")):
            path, ending = os.path.join(folder, name), os.path.splitext(name)[1].lower()
            if ending not in ENDINGS:
                others[ending or "without ending"] += 1
            elif os.path.isfile(path):
                found.append(os.path.relpath(path, root).replace(os.sep, "/"))
            else:
                odd.append(path)
    notes = _left_out(others, odd, links)
    if not found:
        raise DataError("; ".join([f"found 0 images in {shown(root)} (looked for {' '.join(ENDINGS)})", *notes]))
    return sorted(found), notes


def label(names: list[str], root: str) -> tuple[np.ndarray | None, tuple[str, ...] | None, list[str]]:
    """Class of each image, names of the classes, notes."""
    loose = sum("/" not in name for name in names)
    if loose:
        mixed = f"{loose} of {len(names)} images lie beside the sub-folders, so the folder is taken without classes"
        return None, None, [mixed] if loose < len(names) else []
    of = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(of)))
    forms: dict[str, str] = {}
    for name in classes:
        twin = forms.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise DataError(
                f"class folders {twin!a} and {name!a} in {shown(root)} differ only in case or Unicode form; "
                "rename or join them"
            )
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in of], dtype=np.int64), classes, []


def file_digest(path: str) -> str:
    """Size and SHA-256 of the first and last 64 KiB: whole for most images, and cheap for any."""
    try:
        with open(path, "rb") as file:
            head = file.read(_ENDS)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(len(head), size - _ENDS))
            return f"{size}:{hashlib.sha256(head + file.read()).hexdigest()}"
    except OSError as error:
        return f"unreadable:{error.errno}"


def fingerprint(root: str, names: list[str]) -> tuple[str, list[str]]:
    """SHA-256 over the relative path and `file_digest` of every image, and a note on copies.

    No times, so that a copy on another machine has the same one. An edit that keeps the size of a file above 128 KiB
    and touches only its middle goes unseen.
    """
    digests = [file_digest(os.path.join(root, name)) for name in names]
    whole = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        whole.update(f"{name}\0{digest}\0".encode("utf-8", "surrogateescape"))
    copies = len(digests) - len(set(digests))
    notes = [f"{copies} images are copies of another one in {shown(root)}"] if copies else []
    return whole.hexdigest(), notes
