"""Stores of decoded images are made, checked and found again here; `shards` reads them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from diffunet.data.base import Listing, shown
from diffunet.data.bulk import decode_many
from diffunet.data.cache import Cache, sealed, unsealed
from diffunet.data.decode import Plan, Unreadable
from diffunet.data.shards import Part, Shards, damage, opened_store
from diffunet.errors import StorageError
from diffunet.storage import fsync_dir, write_file

PART = 2**30  # bytes of a part; more where there would be over a hundred of them
_FORMAT = 1
_SECONDS = (1e-4, 2e-8)  # that decoding takes, about: for each file, and for each pixel in it
Judge = Callable[[int, str], None]  # is told of each file that cannot be decoded; may raise DataError


@dataclass(frozen=True)
class Request:
    """Images to decode: their files, how many pixels each has, how they become arrays, and the folder's fingerprint.

    `size` is (H, W), or None where each image has its own.
    """

    listing: Listing
    pixels: Sequence[int] = field(repr=False)
    plan: Plan
    seal: str

    @property
    def about(self) -> dict[str, Any]:
        """All that the decoded values depend on."""
        about = {"format": _FORMAT, "seal": self.seal, "plan": asdict(self.plan), "pillow": PIL.__version__}
        found: dict[str, Any] = json.loads(json.dumps(about))  # as it comes back from a file
        return found

    @property
    def need(self) -> int:
        """Bytes of all the decoded images."""
        size = self.plan.size
        pixels = len(self.pixels) * size[0] * size[1] if size else sum(self.pixels)
        return pixels * self.plan.channels * self.plan.dtype.itemsize

    @property
    def costly(self) -> bool:
        """Whether decoding takes more than about a second, so that its result is worth keeping."""
        return len(self.pixels) * _SECONDS[0] + sum(self.pixels) * _SECONDS[1] > 1

    @property
    def name(self) -> str:
        """Of its store: `pixels-`, the fingerprint of the data, and a key of the rest."""
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        return f"pixels-{self.seal[:16]}-{key[:16]}"


def _manifest(folder: Path, request: Request, notes: list[str]) -> dict[str, Any] | None:
    """What a store says of itself, if it is undamaged; perhaps only of its first parts. None where there is none."""
    try:
        record = unsealed((folder / "manifest.json").read_bytes())
        wrong = damage(folder, record["parts"]) if record["about"] == request.about else "it is about other data"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = f"manifest.json: {error}"
    if wrong is None:
        return record
    notes.append(f"{shown(str(folder))} is damaged: {wrong}; its images are decoded again")
    return None


def _header(count: int, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The head of a .npy file of `count` items; as long for any count."""
    file = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _write_part(
    path: Path, images: Iterator[np.ndarray | Unreadable], record: dict[str, Any], most: int, judge: Judge
) -> None:
    """Write images into a part until it is full, and enter it in the record."""
    dtype, size = np.dtype(record["dtype"]), record["size"]
    shape = (record["channels"], *size) if size else ()
    path.unlink(missing_ok=True)  # what is being read elsewhere must not change: a new file, not the old one rewritten
    items = values = 0
    with open(path, "xb") as file:
        head = _header(0, shape, dtype)
        file.write(head)
        for image in images:
            if isinstance(image, Unreadable):
                record["bad"].append([record["done"], str(image)])
                judge(*record["bad"][-1])
            else:
                file.write(np.ascontiguousarray(image, dtype).data)
                items, values = items + 1, values + image.size
                if not size:
                    record["sides"].append(image.shape[1:])
            record["done"] += 1
            if values * dtype.itemsize >= most:
                break
        file.seek(0)
        file.write(_header(items if size else values, shape, dtype))
        file.flush()
        os.fsync(file.fileno())
    status = os.stat(path)
    times = [status.st_mtime_ns, status.st_ctime_ns]
    about = {"name": path.name, "items": items, "header": len(head), "bytes": status.st_size, "times": times}
    record["parts"].append(about | {"sha256": Part(str(path)).sha256()})


def _make(folder: Path, request: Request, record: dict[str, Any], judge: Judge) -> None:
    """Decode what is not yet in the store."""
    done, listing = record["done"], request.listing
    paths = [listing.path(i) for i in range(done, len(listing))]
    most = max(PART, request.need // 100)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        closing(decode_many(paths, request.pixels[done:], request.plan)) as decoded,
        tqdm(decoded, "decoding images, once", len(listing), initial=done, leave=False, disable=None) as images,
    ):
        rest = iter(images)
        while record["done"] < len(listing):
            _write_part(folder / f"part-{len(record['parts']):04}.npy", rest, record, most, judge)
            fsync_dir(folder)
            write_file(folder / "manifest.json", sealed(record))


def _new(request: Request) -> dict[str, Any]:
    plan = request.plan
    dtype = plan.dtype.newbyteorder("<").str
    record: dict[str, Any] = {"about": request.about, "channels": plan.channels, "dtype": dtype, "size": plan.size}
    return record | {"sides": [plan.size] if plan.size else [], "done": 0, "bad": [], "parts": []}


def _made(cache: Cache, folder: Path, request: Request, judge: Judge, notes: list[str]) -> dict[str, Any] | None:
    """The manifest of a store that is whole now; None, and a note, where it does not fit on the disk.

    Raises:
        OSError, StorageError: it cannot be written.
    """
    with cache.locked():
        record = _manifest(folder, request, notes)
        if record is not None and record["done"] == len(request.listing):
            return record  # another process made it while this one waited
        for old in cache.folder.glob("pixels-*"):
            if not old.name.startswith(f"pixels-{request.seal[:16]}-"):
                shutil.rmtree(old, ignore_errors=True)  # of data that is no more
        if record is None:
            shutil.rmtree(folder, ignore_errors=True)
            record = _new(request)
        if lack := cache.lack(request.need - sum(part["bytes"] for part in record["parts"])):
            notes.append(f"no decoded images are kept: {lack}")
            return None
        started = time.perf_counter()
        try:
            _make(folder, request, record, judge)
        except (OSError, StorageError):
            shutil.rmtree(folder, ignore_errors=True)  # a full disk is to have its space back
            raise
        took, size = time.perf_counter() - started, sum(part["bytes"] for part in record["parts"])
        notes.append(f"images decoded in {took:.0f} s and kept: {size:,} bytes in {shown(str(folder))}")
        return record


def stored(
    cache: Cache, request: Request, judge: Judge, notes: list[str]
) -> tuple[Shards, list[tuple[int, str]]] | None:
    """The decoded images of a request, from their store, which is made where it is missing or damaged.

    Of several processes one decodes and the others wait for it. None, and a note, where no store can be kept.

    Returns:
        The images that could be decoded, and for each other one its number in the request and the reason.

    Raises:
        DataError: from `judge`; another size than `plan.size`, or values that need data.value_range.
    """
    folder = cache.folder / request.name
    try:
        record = _manifest(folder, request, [])
        if record is None or record["done"] < len(request.listing):
            record = _made(cache, folder, request, judge, notes)
        if record is None:
            return None
        bad = dict(record["bad"])
        good = request.listing.select([i for i in range(len(request.listing)) if i not in bad])
        return opened_store(folder, record, good, request.plan.range, request.seal), list(bad.items())
    except (OSError, StorageError, NotImplementedError) as error:  # the last: a file system without locks
        notes.append(f"no decoded images are kept: {error}")
        return None
