"""CIFAR-10: the real pickles, and pickles that are not what they should be."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffunet.data import Split, cifar, load
from diffunet.data.cifar import CLASSES, TEST, TRAIN
from diffunet.errors import DataError, UnsafeError
from diffunet.spec import DataConfig


def cifar10(path: Path) -> Split:
    return load(DataConfig(name="cifar10", path=str(path)))


def batch(count: int = 2) -> dict[Any, Any]:
    data = np.arange(count * 3072).reshape(count, 3072).astype(np.uint8)
    return {b"data": data, b"labels": [i % 10 for i in range(count)]}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Six batches of two images, written by this Python and numpy."""
    for name in (*TRAIN, TEST):
        (tmp_path / name).write_bytes(pickle.dumps(batch()))
    return tmp_path


def test_the_real_files(cifar_root: Path, shared: Path) -> None:
    split = cifar10(cifar_root)
    train, test = split.train, split.held_out
    assert test is not None
    assert (len(train), len(test), train.shape) == (50000, 10000, (3, 32, 32))
    assert train.classes == CLASSES
    with np.load(shared / "cifar10" / "labels.npz") as labels:
        np.testing.assert_array_equal(train.labels, labels["train"])
        np.testing.assert_array_equal(test.labels, labels["test"])
    mean = np.mean([train[i] for i in range(0, 50000, 25)], axis=(0, 2, 3))
    np.testing.assert_allclose((mean + 1) / 2, [0.4914, 0.4822, 0.4465], atol=0.01)  # the published means
    assert cifar10(cifar_root / "cifar-10-batches-py").train.fingerprint == train.fingerprint


def test_pixels_are_channels_then_rows(small: Path) -> None:
    image = cifar10(small).train[0]
    expected = np.arange(3072).astype(np.uint8).reshape(3, 32, 32)
    np.testing.assert_allclose((image + 1) * 127.5, expected, atol=1e-4)


class Call:
    """Calls `function(*arguments)` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "payload",
    [
        lambda canary: Call(os.system, f"touch {canary}"),
        lambda canary: Call(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
        lambda canary: Call(np.save, str(canary), [1]),
        lambda canary: Call(np.ndarray.tofile, np.zeros(1), str(canary)),
        lambda canary: Call(Path.touch, canary),
    ],
    ids=["system", "eval", "numpy function", "ndarray method", "path"],
)
def test_code_in_a_batch_is_refused_and_never_run(tmp_path: Path, small: Path, protocol: int, payload: Any) -> None:
    canary = tmp_path / "canary.npy"
    evil = pickle.dumps(batch() | {b"extra": payload(canary)}, protocol=protocol)
    (small / TRAIN[2]).write_bytes(evil)
    with pytest.raises(UnsafeError, match=rf"{TRAIN[2]} could run code: it asks for") as caught:
        cifar10(small)
    assert caught.value.exit_code == 7
    assert not canary.exists()
    pickle.loads(evil)
    assert canary.exists()  # the trap was armed


WRONG: dict[str, Any] = {
    "no dict": [1, 2],
    "no data": {b"labels": [1]},
    "no labels": {b"data": np.zeros((1, 3072), np.uint8)},
    "label 10": batch() | {b"labels": [0, 10]},
    "text label": batch() | {b"labels": [0, "cat"]},
    "one label too few": batch() | {b"labels": [0]},
    "another width": batch() | {b"data": np.zeros((2, 3071), np.uint8)},
    "another type": batch() | {b"data": np.zeros((2, 3072), np.int32)},
    "objects": batch() | {b"data": np.full((2, 3072), None)},
    "empty": {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_batch_is_named(small: Path, kind: str) -> None:
    (small / TRAIN[1]).write_bytes(pickle.dumps(WRONG[kind]))
    with pytest.raises(DataError, match=f"{TRAIN[1]} is no CIFAR-10 batch"):
        cifar10(small)


@pytest.mark.parametrize(
    "body",
    [b"]r\xff\xff\xff\x00.", b"\x8e" + (2**40).to_bytes(8, "little") + b"."],
    ids=["memo number 2^24", "string of 1 TiB"],
)
def test_a_small_batch_that_claims_much_memory_gets_none(small: Path, body: bytes) -> None:
    (small / TRAIN[0]).write_bytes(b"\x80\x04" + body)
    tracemalloc.start()
    with pytest.raises(DataError, match=TRAIN[0]):
        cifar10(small)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_truncated_batch_is_named(small: Path) -> None:
    whole = (small / TEST).read_bytes()
    for end in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        (small / TEST).write_bytes(whole[:end])
        with pytest.raises(DataError, match=f"{TEST} is damaged"):
            cifar10(small)


def test_a_missing_batch_is_named(small: Path) -> None:
    (small / TRAIN[4]).unlink()
    with pytest.raises(DataError, match=rf"{TRAIN[4]} not found .*cifar-10-batches-py"):
        cifar10(small)


def test_a_file_far_larger_than_a_batch_is_not_opened(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_LARGEST", 1000)
    with pytest.raises(UnsafeError, match=f"{TRAIN[0]} has .* bytes"):
        cifar10(small)
