"""Decoded images in the cache: the same numbers as without it, made once, never believed where they are damaged."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import Images, Split, load
from diffunet.data import cache as cache_module
from diffunet.data import folder as folder_module
from diffunet.data import store as store_module
from diffunet.data.shards import Shards
from diffunet.errors import DataError
from diffunet.spec import DataConfig


def folder(path: Path, cache: Path | str, **options: object) -> Split:
    config = {"held_out": 0.0, "cache": str(cache), **options}
    return load(DataConfig(name="folder", path=str(path), **config))  # type: ignore[arg-type]


def noise(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    if dtype is np.float32:
        return np.random.default_rng(seed).random(shape, dtype=np.float32)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


# what the files hold, how they end, what the config says
KINDS: dict[str, tuple[Callable[[int], np.ndarray], str, dict[str, object]]] = {
    "grey": (lambda i: noise((5, 7), np.uint8, i), "png", {}),
    "colour": (lambda i: noise((5, 7, 3), np.uint8, i), "png", {}),
    "colour as grey, resized": (lambda i: noise((9 + i, 7, 3), np.uint8, i), "png", {"channels": 1, "size": (4, 6)}),
    "grey as colour": (lambda i: noise((5, 7), np.uint8, i), "bmp", {"channels": 3}),
    "16 bits": (lambda i: noise((5, 7), np.uint16, i), "png", {}),
    "16 bits, a range": (lambda i: noise((5, 7), np.uint16, i), "png", {"value_range": (1000, 60_000)}),
    "float": (lambda i: noise((5, 7), np.float32, i), "tiff", {}),
    "parts": (lambda i: noise((6 + i, 17 - i, 3), np.uint8, i), "png", {"crop": 5}),
    "deep parts": (lambda i: noise((6 + i, 17 - i), np.uint16, i), "png", {"crop": 5}),
}


def write(root: Path, kind: str, count: int = 11) -> dict[str, object]:
    make, ending, options = KINDS[kind]
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make(i)).save(path)
    return options


def same(one: Images, other: Images) -> None:
    """Two data sets are equal bit for bit, in items, parts, names, labels, range and fingerprint."""
    assert len(one) == len(other)
    assert (one.shape, one.value_range, one.fingerprint) == (other.shape, other.value_range, other.fingerprint)
    assert one.files == other.files
    np.testing.assert_array_equal(one.labels, other.labels)
    for i in range(len(one)):
        assert one.name_of(i) == other.name_of(i)
        assert one[i].tobytes() == other[i].tobytes()
        place = partial(np.random.default_rng, i)
        assert one.view(i, place).tobytes() == other.view(i, place).tobytes()


def store_in(cache: Path) -> Path:
    (path,) = cache.glob("*/pixels-*")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_no_bit(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PART", 60)  # several parts
    options = write(tmp_path / "in", kind)
    plain = folder(tmp_path / "in", "off", **options).train
    made, found = (folder(tmp_path / "in", tmp_path / "c", **options).train for _ in range(2))
    assert isinstance(getattr(found.source, "whole", found.source), Shards)
    assert len(list(store_in(tmp_path / "c").glob("part-*.npy"))) > 2
    for other in (made, found, pickle.loads(pickle.dumps(found))):
        same(plain, other)
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    same(plain, folder(tmp_path / "in", "off", **options).train)


@pytest.mark.parametrize(("kind", "dtype"), [("colour", "|u1"), ("16 bits", "<f4"), ("parts", "|u1")])
def test_parts_are_plain_npy_files_of_the_decoded_type(tmp_path: Path, kind: str, dtype: str) -> None:
    folder(tmp_path / "in", tmp_path / "c", **write(tmp_path / "in", kind))
    (part,) = store_in(tmp_path / "c").glob("part-*.npy")
    array = np.load(part, mmap_mode="r")
    assert array.dtype.str == dtype
    assert array.shape == {"colour": (11, 3, 5, 7), "16 bits": (11, 1, 5, 7)}.get(kind, (array.size,))


def test_a_second_run_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = write(tmp_path / "in", "colour")
    assert any("images decoded in" in note for note in folder(tmp_path / "in", tmp_path / "c", **options).notes)
    monkeypatch.setattr(store_module, "decode_many", None)
    assert folder(tmp_path / "in", tmp_path / "c", **options).notes == ()


def test_other_data_and_other_plans_are_other_stores(tmp_path: Path) -> None:
    write(tmp_path / "in", "colour")
    folder(tmp_path / "in", tmp_path / "c")
    old = store_in(tmp_path / "c")
    folder(tmp_path / "in", tmp_path / "c", channels=1)
    assert len(list((tmp_path / "c").glob("*/pixels-*"))) == 2  # two runs on the same files need not undo each other
    Image.fromarray(noise((5, 7, 3), np.uint8, 99)).save(tmp_path / "in" / "a" / "00.png")
    changed = folder(tmp_path / "in", tmp_path / "c").train
    same(changed, folder(tmp_path / "in", "off").train)
    assert store_in(tmp_path / "c") != old  # and only one is left: the others are of data that is no more


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda store: flip(store / "part-0001.npy", -3),
    "a header": lambda store: flip(store / "part-0000.npy", 9),
    "cut": lambda store: os.truncate(store / "part-0001.npy", 150),
    "longer": lambda store: os.truncate(store / "part-0001.npy", 5000),
    "gone": lambda store: (store / "part-0001.npy").unlink(),
    "swapped": lambda store: shutil.copy(store / "part-0001.npy", store / "part-0002.npy"),
    "manifest": lambda store: flip(store / "manifest.json", 20),
    "no manifest": lambda store: (store / "manifest.json").unlink(),
    "no JSON": lambda store: (store / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_store_is_found_noted_and_made_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PART", 200)
    write(tmp_path / "in", "colour")
    plain = folder(tmp_path / "in", "off").train
    folder(tmp_path / "in", tmp_path / "c")
    DAMAGE[kind](store_in(tmp_path / "c"))
    again = folder(tmp_path / "in", tmp_path / "c")
    same(plain, again.train)
    said = [note for note in again.notes if " is damaged: " in note]
    assert len(said) == (kind != "no manifest")
    assert all(str(store_in(tmp_path / "c")) in note for note in said)
    assert any("images decoded in" in note for note in again.notes)
    assert folder(tmp_path / "in", tmp_path / "c").notes == ()


def test_a_part_cut_short_in_use_is_an_error_and_no_dead_process(tmp_path: Path) -> None:
    write(tmp_path / "in", "colour")
    train = folder(tmp_path / "in", tmp_path / "c").train
    before = train[10]
    os.truncate(store_in(tmp_path / "c") / "part-0000.npy", 500)
    with pytest.raises(DataError, match=r"part-0000\.npy became shorter while it was in use"):
        train[10]
    folder(tmp_path / "in", tmp_path / "c")
    assert (folder(tmp_path / "in", tmp_path / "c").train[10] == before).all()


def test_a_cache_that_is_removed_in_use_stays_readable(tmp_path: Path) -> None:
    write(tmp_path / "in", "parts")
    train = folder(tmp_path / "in", tmp_path / "c", crop=5).train
    before = [image.copy() for image in train]
    shutil.rmtree(tmp_path / "c")
    assert all((a == b).all() for a, b in zip(before, train, strict=True))


def test_what_does_not_fit_on_the_disk_is_decoded_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in", "colour")
    plain = folder(tmp_path / "in", "off").train
    monkeypatch.setattr(cache_module, "FREE", 1.0)
    split = folder(tmp_path / "in", tmp_path / "c")
    assert [note for note in split.notes if note.startswith("no decoded images are kept: decoded images need 1,155")]
    same(plain, split.train)
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    lazy = folder(tmp_path / "in", tmp_path / "c").train
    assert isinstance(lazy.source, folder_module.Files)
    same(plain, lazy)


def test_bad_files_are_left_out_the_same_with_a_cache(tmp_path: Path) -> None:
    write(tmp_path / "in", "colour")
    for name in ("a/02.png", "b/07.png"):
        data = (tmp_path / "in" / name).read_bytes()
        (tmp_path / "in" / name).write_bytes(data[: len(data) // 2])
    plain = folder(tmp_path / "in", "off", bad_files_cap=0.5)
    for _ in range(2):
        split = folder(tmp_path / "in", tmp_path / "c", bad_files_cap=0.5)
        assert len(split.skipped) == 2
        assert split.skipped == plain.skipped
        same(plain.train, split.train)
        with pytest.raises(DataError, match="2 of 11 images cannot be read"):
            folder(tmp_path / "in", tmp_path / "c")
        with pytest.raises(DataError, match=r"a/02\.png cannot be read"):
            folder(tmp_path / "in", tmp_path / "c", bad_files="fail")


def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a process of its own; its exit code is 0 where it returns something true."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if work() else 2
    finally:
        os._exit(code)


def test_decoding_that_is_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PART", 200)
    write(tmp_path / "in", "colour")
    plain = folder(tmp_path / "in", "off").train

    def killed_at_the_fourth_manifest() -> Split:
        renames: list[str] = []

        def listen(event: str, args: tuple[object, ...]) -> None:
            if event == "os.rename" and str(args[1]).endswith("manifest.json"):
                renames.append(str(args[1]))
                if len(renames) == 4:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(listen)
        return folder(tmp_path / "in", tmp_path / "c")

    _, status = os.waitpid(in_child(killed_at_the_fourth_manifest), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = store_in(tmp_path / "c")
    kept = {path.name: path.stat().st_ino for path in store.glob("part-*.npy")}
    assert len(kept) == 4  # the fourth is whole, but no manifest names it
    again = folder(tmp_path / "in", tmp_path / "c")
    same(plain, again.train)
    assert {name: (store / name).stat().st_ino for name in sorted(kept)[:3]} == dict(sorted(kept.items())[:3])
    assert not any("damaged" in note for note in again.notes)


def test_of_two_processes_one_decodes_and_both_read(tmp_path: Path) -> None:
    write(tmp_path / "in", "colour", 60)
    plain = folder(tmp_path / "in", "off").train

    def run() -> bool:
        split = folder(tmp_path / "in", tmp_path / "c")
        same(plain, split.train)
        (tmp_path / f"notes-{os.getpid()}").write_text("\n".join(split.notes))
        return True

    children = [in_child(run) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    notes = [(tmp_path / f"notes-{child}").read_text() for child in children]
    assert sum("images decoded in" in text for text in notes) == 1
