"""The class of each image of a folder: from its sub-folders, or from a file (`data.labels`).

Sub-folders: if every image lies in one, those of the first level are the classes, in order of their names, and deeper
files belong to them; images beside sub-folders make the whole folder one without classes (a note says so).

A file: `.csv` whose first line names the columns `file` and `label` (others are not read), or `.json` with
`{"a.png": 3, ...}` or, as in the dataset.json of StyleGAN and EDM, `{"labels": [["a.png", 3], ...]}`. Files are named
as they stand below data.path, with /. The label values in rising order are the classes 0 .. K - 1, whole numbers as
numbers (also in CSV, if all are), anything else as text.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from diffunet.data.base import shown
from diffunet.errors import DataError, UnsafeError
from diffunet.spec import DataConfig
from diffunet.table import Table

MOST = 2**30  # bytes of a label file
Label = int | str
Found = tuple[dict[str, int] | None, tuple[str, ...] | None, list[str]]


def of_folders(names: Sequence[str], root: str) -> Found:
    """Class of each image by its sub-folder, names of the classes, notes.

    Raises:
        DataError: two sub-folders differ only in case or Unicode form.
    """
    loose = sum("/" not in name for name in names)
    if loose:
        mixed = f"{loose} of {len(names)} images lie beside the sub-folders, so the folder is taken without classes"
        return None, None, [mixed] if loose < len(names) else []
    classes = tuple(sorted({name.split("/", 1)[0] for name in names}))
    forms: dict[str, str] = {}
    for name in classes:
        twin = forms.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise DataError(
                f"class folders {twin!a} and {name!a} in {shown(root)} differ only in case or Unicode form; "
                "rename or join them"
            )
    number = {name: i for i, name in enumerate(classes)}
    return {name: number[name.split("/", 1)[0]] for name in names}, classes, []


def _of_csv(text: str) -> list[tuple[str, Label]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if missing := {"file", "label"} - set(rows.fieldnames or ()):
        raise ValueError(f"its first line names no column {' and no '.join(sorted(missing))}")
    found: list[tuple[str, Label]] = []
    for row in rows:
        if row["file"] is None or row["label"] is None:
            raise ValueError(f"line {rows.line_num} has no file or no label")
        found.append((row["file"], row["label"].strip()))
    try:
        return [(file, int(label)) for file, label in found]
    except ValueError:
        return found


def _are_pairs(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)


def _of_json(text: str) -> list[tuple[str, Label]]:
    record = json.loads(text, object_pairs_hook=list)  # pairs: a key that stands there twice is to be seen
    if _are_pairs(record) and len(record) == 1 and record[0][0] == "labels":
        record = record[0][1]
    if not _are_pairs(record):
        raise ValueError('it is neither {"a.png": 3, ...} nor {"labels": [["a.png", 3], ...]}')
    for name, label in record:
        if not isinstance(name, str) or type(label) not in (int, str):  # true is no number here
            raise ValueError(f"the label of {str(name)[:100]!a} is neither a whole number nor text")
    return [(name, label) for name, label in record]


_READERS: Table[Callable[[str], list[tuple[str, Label]]]] = Table("data.labels", {".csv": _of_csv, ".json": _of_json})


def _read(path: str) -> list[tuple[str, Label]]:
    """The entries of a label file.

    Raises:
        DataError: it cannot be read, or is no label file.
        UnsafeError: it is too large to be one.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in _READERS:
        raise DataError(f"data.labels = {shown(path)} must end in {' or '.join(_READERS)}")
    try:
        if os.path.getsize(path) > MOST:
            raise UnsafeError(f"data.labels = {shown(path)} has more than {MOST:,} bytes; it is not read")
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _READERS[ending](file.read())
    except OSError as error:
        raise DataError(f"data.labels = {shown(path)} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        raise DataError(f"data.labels = {shown(path)} is no label file: {shown(str(error))}") from None


def _held_against(path: str, entries: list[tuple[str, Label]], names: Sequence[str]) -> dict[str, Label]:
    """Label of each image.

    Raises:
        DataError: an image without label, a label without image, a file that is named twice.
    """
    there, listed = set(names), Counter(name for name, _ in entries)
    wrong = {
        "images are not in it": sorted(there - listed.keys()),
        "of its files are no images in data.path": sorted(listed.keys() - there),
        "files are in it more than once": sorted(name for name, count in listed.items() if count > 1),
    }
    if any(wrong.values()):
        said = [f"{len(files)} {what} (first: {shown(files[0])})" for what, files in wrong.items() if files]
        raise DataError(f"data.labels = {shown(path)} does not fit the folder: {'; '.join(said)}")
    return dict(entries)


def of_file(path: str, names: Sequence[str]) -> Found:
    """Class of each image by a label file, names of the classes, notes.

    Raises:
        DataError: the file cannot be read, is no label file, or does not name each image once.
    """
    entries = [(name.replace("\\", "/").removeprefix("./"), label) for name, label in _read(path)]
    of = _held_against(path, entries, names)
    numbers = [label for label in of.values() if isinstance(label, int)]
    if len(numbers) < len(of):
        of = {name: str(label) for name, label in of.items()}
    values: list[Label] = sorted(set(of.values()))  # of one type now
    number = {value: i for i, value in enumerate(values)}
    notes = []
    if numbers and values != list(range(len(values))):
        notes.append(f"the {len(values)} label values of {shown(path)} became the classes 0 to {len(values) - 1}")
    return {name: number[label] for name, label in of.items()}, tuple(map(str, values)), notes


def labels_of(config: DataConfig, names: Sequence[str]) -> Found:
    """Class of each image, names of the classes, notes; None and None where there are no classes.

    Raises:
        DataError: class folders that clash, or a label file that does not fit.
    """
    root = str(config.path)
    if config.labels is None:
        return of_folders(names, root)
    beside = os.path.join(root, config.labels)
    return of_file(beside if os.path.exists(beside) else config.labels, names)
