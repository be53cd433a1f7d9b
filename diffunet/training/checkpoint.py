"""Checkpoints that a crash cannot spoil: hidden folder, fsync, manifest with SHA-256, one rename, rotation after.

A checkpoint is a folder `step-<8 digits>` of safetensors and JSON files, with a manifest.json that names each with its
size and SHA-256; the manifest's last field `self` is the SHA-256 of its own canonical JSON (sorted keys, no spaces)
without that field. Nothing in it can run code, and only files that the manifest names are opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from diffunet.errors import CheckpointError, StorageError, UserError
from diffunet.storage import fsync_dir, patiently, storage_error, write_durable
from diffunet.training.ranks import Alone

FORMAT = 1
NAME = re.compile(r"step-(\d{8})")
TEMPORARY = re.compile(r"\.(tmp|trash)-\d{8}-\d+")
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
T = TypeVar("T")


class DamagedError(UserError):
    """One checkpoint does not hold what its manifest says; an older one may."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: every file's bytes in memory, equal to its manifest."""

    step: int
    path: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]


def canonical(fields: Mapping[str, Any]) -> str:
    """The one JSON text of these fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def seal(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON with its own digest as the last field."""
    text = canonical(fields)
    return f'{text[:-1]},"self":"{hashlib.sha256(text.encode()).hexdigest()}"}}'.encode()


def write(
    root: Path, step: int, files: Mapping[str, bytes], facts: Mapping[str, Any], ranks: Alone | None = None
) -> Path:
    """Write one checkpoint, complete or not at all, and durable when this returns.

    Each process writes its own files; the main one makes the folder, and the manifest and the visible name after all
    files are durable. What fails on one process fails on all.

    Args:
        root: the folder of checkpoints.
        step: optimizer steps done.
        files: name -> content; no two processes have the same name.
        facts: JSON values for the manifest (config hash, data fingerprint, versions).
        ranks: the processes that write together.

    Raises:
        StorageError: full disk (bytes needed and free) or no permission; older checkpoints are untouched.
    """
    ranks = ranks or Alone()
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{step:08d}-{ranks.tell(os.getpid())}"
    need = sum(ranks.gather(sum(map(len, files.values()))))

    def together(do: Callable[[], T]) -> list[T]:
        def told() -> T:
            try:
                return do()
            except OSError as error:
                raise storage_error(error, final, need) from None

        return ranks.agree(told)

    try:
        together(lambda: _begin(temporary) if ranks.main else None)
        parts = together(lambda: _put(temporary, files))
        manifest = {**facts, "format": FORMAT, "step": step, "files": {n: e for part in parts for n, e in part.items()}}
        together(lambda: _finish(temporary, final, manifest) if ranks.main else None)
    finally:
        if ranks.main:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _begin(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()


def _put(temporary: Path, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Durable files that no name leads to yet; what the manifest says of them."""
    for name, data in files.items():
        patiently(partial(write_durable, temporary / name, data))
    return {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}


def _finish(temporary: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest, and then the one rename that makes all of it visible."""
    patiently(partial(write_durable, temporary / "manifest.json", seal(manifest)))
    fsync_dir(temporary)
    if final.exists():
        _set_aside(final)
    os.rename(temporary, final)
    fsync_dir(final.parent)


def _set_aside(path: Path) -> None:
    """A folder of this step that was found damaged gives way; its files are kept for salvage."""
    number = 0
    while (aside := path.with_name(f"damaged-{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)


def rotate(root: Path, keep: int, pinned: Collection[int | None] = ()) -> None:
    """Delete all checkpoints but the newest `keep` and the `pinned`: out of sight by a rename, then file by file.

    Raises:
        StorageError: one cannot be renamed.
    """
    for step in (old for old in steps(root)[:-keep] if old not in pinned):
        old, trash = root / f"step-{step:08d}", root / f".trash-{step:08d}-{os.getpid()}"
        try:
            os.rename(old, trash)
        except OSError as error:
            raise storage_error(error, old, 0) from None
        shutil.rmtree(trash, ignore_errors=True)


def _listed(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise StorageError(
            f"cannot read {root}: {error.strerror}; nothing was changed; check the disk and run the same command again"
        ) from None


def clean(root: Path) -> None:
    """Remove what a killed process of ours left behind; foreign files are never touched.

    Raises:
        StorageError: the folder cannot be read.
    """
    for path in _listed(root):
        if TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints in `root`, oldest first, by strict name.

    Raises:
        StorageError: the folder cannot be read.
    """
    names = [NAME.fullmatch(path.name) for path in _listed(root) if path.is_dir()]
    return sorted(int(match[1]) for match in names if match)


def read(root: Path, step: int) -> Checkpoint:
    """Read one checkpoint into memory and verify all of it before anything is used.

    Raises:
        DamagedError: a file is missing, changed, or the manifest is not what was written.
    """
    path = root / f"step-{step:08d}"
    manifest = _read_manifest(path)
    if manifest.get("step") != step:
        raise DamagedError(f"manifest.json is of step {manifest.get('step')}")
    files: dict[str, bytes] = {}
    for name, entry in manifest["files"].items():
        if not PLAIN.fullmatch(name):
            raise DamagedError(f"manifest.json names {name!r}, which is not a plain file name")
        try:
            files[name] = (path / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from None
        if len(files[name]) != entry["size"] or hashlib.sha256(files[name]).hexdigest() != entry["sha256"]:
            raise DamagedError(f"{name} does not match its SHA-256")
    return Checkpoint(step, path, manifest, files)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = (path / "manifest.json").read_bytes()
    except OSError as error:
        raise DamagedError(f"manifest.json cannot be read ({error.strerror})") from None
    try:
        manifest = json.loads(data)
        manifest.pop("self")
        sizes = [(entry["size"], entry["sha256"]) for entry in manifest["files"].values()]
        intact = seal(manifest) == data and manifest["format"] == FORMAT and len(sizes) > 0
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError("manifest.json does not match its SHA-256")
    return manifest


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    reasons: list[str] = []
    found = steps(root)
    for step in reversed(found):
        try:
            checkpoint = read(root, step)
        except DamagedError as error:
            reasons.append(f"{root / f'step-{step:08d}'} is damaged: {error}")
            continue
        return checkpoint, [f"{reason}; continuing from step {step}" for reason in reasons]
    if found:
        raise CheckpointError(
            f"no valid checkpoint among {len(found)} in {root}: {'; '.join(reasons)}. "
            "Nothing was deleted; restore a copy, or use --out for a new run"
        )
    return None, []
