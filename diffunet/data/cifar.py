"""CIFAR-10 from its original files, which are pickles, without trusting them.

A pickle may call what it names. These name three things of numpy, and each is replaced here by `_Parts`, which only
remembers what it was given; the array is then made from the remembered bytes. Any other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

import numpy as np
from einops import rearrange

from diffunet.data.base import Images, Split, shown
from diffunet.data.download import find
from diffunet.errors import DataError, UnsafeError
from diffunet.spec import DataConfig

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_LARGEST = 2**28  # bytes; the original batches have 31 MB


class _Parts:
    """Stands for numpy.ndarray, numpy.dtype and the function that makes an array: keeps arguments and state."""

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Unpickler(pickle._Unpickler):  # Python's own: the C one reserves memory for any number that the file names
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UnsafeError(f"it asks for {ascii(f'{module}.{name}')[1:-1]}, which no CIFAR-10 batch needs")
        return _Parts


def _unpickled(path: str) -> Any:
    if os.path.getsize(path) > _LARGEST:
        raise UnsafeError(f"{shown(path)} has {os.path.getsize(path)} bytes; a CIFAR-10 batch has 31 MB; not opened")
    with open(path, "rb") as file:
        body = io.BytesIO(file.read())  # a read of a huge number of bytes ends with the body, and reserves nothing
    try:
        return _Unpickler(body, encoding="bytes").load()
    except UnsafeError as error:
        raise UnsafeError(f"{shown(path)} could run code: {error}; not loaded") from error
    except Exception as error:  # a damaged pickle ends in every kind of exception
        raise DataError(f"{shown(path)} is damaged: {shown(f'{type(error).__name__}: {error}')}") from error


def _bytes_of(array: Any) -> bytes:
    """The bytes in numpy's pickled state of an array: (version, shape, type, Fortran order, bytes); b"" for others."""
    state = getattr(array, "state", ())
    if isinstance(state, tuple) and len(state) == 5 and state[3] is False and isinstance(state[4], bytes):
        return state[4]
    return b""


def read_batch(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file.

    Raises:
        DataError: damaged, or not a batch of CIFAR-10.
        UnsafeError: the pickle asks for anything beyond a numpy array of bytes.
    """
    batch = _unpickled(path)
    table = {k.encode() if isinstance(k, str) else k: v for k, v in batch.items()} if isinstance(batch, dict) else {}
    labels, body = table.get(b"labels"), _bytes_of(table.get(b"data"))
    labels = labels if isinstance(labels, list) else []
    known = all(type(label) is int and 0 <= label < len(CLASSES) for label in labels)
    if not known or not body or len(body) != len(labels) * _PIXELS:
        raise DataError(f"{shown(path)} is no CIFAR-10 batch: expected 'data' (N x {_PIXELS} bytes) and N 'labels'")
    pixels = np.frombuffer(body, np.uint8)
    return rearrange(pixels, "(n c h w) -> n c h w", c=3, h=32, w=32), np.array(labels, dtype=np.int64)


def load_cifar10(config: DataConfig) -> Split[Images]:
    """50000 training and 10000 test images, 3 x 32 x 32, from data.path or data.path/cifar-10-batches-py.

    Raises:
        DataError: a batch is missing or damaged.
        UnsafeError: see `read_batch`.
    """
    paths = find(config, "CIFAR10", ("cifar-10-batches-py",), (*TRAIN, TEST))
    batches = [read_batch(paths[name]) for name in TRAIN]
    train = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    parts = [Images.from_array(x, (0.0, 255.0), y, CLASSES) for x, y in (train, read_batch(paths[TEST]))]
    return Split(train=parts[0], held_out=parts[1])
