"""Which files a run was trained on, and what has changed in them since."""

from __future__ import annotations

from collections.abc import Mapping

from diffunet.data.base import Dataset, shown

_SHOWN = 3  # names in a message


def catalogue(*parts: Dataset | None) -> dict[str, str] | None:
    """Name -> digest of the files behind all parts of a data set (training and held-out images), and their classes.

    None where items are no files. Give both parts of a split: which image is in which part depends on all of them.
    """
    found = [part.files for part in parts if part is not None]
    named = [files for files in found if files is not None]
    return {name: digest for files in named for name, digest in files.items()} if named else None


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What happened between two catalogues, in one line: `data changed: +3 -1 ~2 (first: +a.png, -b.png, ~c.png)`.

    + files that are new, - files that are gone, ~ files whose content or class is another.
    """
    changes = {
        "+": sorted(new.keys() - old.keys()),
        "-": sorted(old.keys() - new.keys()),
        "~": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    if not any(changes.values()):
        return "data changed: the files are the same, but they are read or parted in another way"
    counts = " ".join(f"{sign}{len(names)}" for sign, names in changes.items() if names)
    first = [sign + shown(names[0]) for sign, names in changes.items() if names][:_SHOWN]
    return f"data changed: {counts} (first: {', '.join(first)})"
