"""MNIST and Fashion-MNIST: four files in LeCun's idx format, plain or gzipped.

An idx file is a big-endian header (0, 0, type 8 = uint8, number of axes; then a 32-bit length per axis) and the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import partial

import numpy as np

from diffunet.data.base import Images, Split, shown
from diffunet.data.download import find
from diffunet.errors import DataError
from diffunet.spec import DataConfig

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MOST = 2**31  # bytes that one file may claim
_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: str, axes: int) -> np.ndarray:
    """The uint8 array of an idx file (.gz is unpacked).

    Raises:
        DataError: not an idx file of uint8 with `axes` axes, or another length than its header says.
    """
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes((0, 0, 8, axes)):
                raise DataError(
                    f"{shown(path)} is no idx file of bytes with {axes} axes; it begins {head[:4].hex(' ')}"
                )
            shape = struct.unpack(f">{axes}I", head[4:])
            count = int(np.prod(shape, dtype=object))
            if count > _MOST:
                raise DataError(f"{shown(path)} claims {count} bytes; at most {_MOST} are read")
            body = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown(path)} cannot be read: {error}") from error
    if len(body) != count:
        has = f"only {len(body)}" if len(body) < count else "more"
        raise DataError(f"{shown(path)} is damaged: its header says {count} bytes and it has {has}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _padded(images: np.ndarray, config: DataConfig) -> np.ndarray:
    """Add black equally on all sides (an odd pixel right and below) up to data.size; every pixel stays as it is."""
    height, width = images.shape[1:]
    side = config.size or (height, width)
    wanted = (side, side) if isinstance(side, int) else side
    extra = [want - have for want, have in zip(wanted, (height, width), strict=True)]
    if min(extra) < 0:
        raise DataError(
            f"data.size = {config.size} is smaller than the {height} x {width} of data '{config.name}', which is "
            "padded to a larger size and never shrunk"
        )
    return np.pad(images, [(0, 0), *((e // 2, e - e // 2) for e in extra)]) if max(extra) else images


def _part(images_path: str, labels_path: str, classes: tuple[str, ...], config: DataConfig) -> Images:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if 0 in images.shape or len(images) != len(labels):
        raise DataError(
            f"{shown(images_path)} has {len(images)} images and {shown(labels_path)} {len(labels)} labels; "
            "expected as many of each, and at least one"
        )
    if labels.max() >= len(classes):
        raise DataError(f"{shown(labels_path)} holds label {labels.max()}; expected 0 to {len(classes) - 1}")
    return Images.from_array(_padded(images, config)[:, None], (0.0, 255.0), labels, classes)


def load_idx(config: DataConfig, title: str, classes: tuple[str, ...]) -> Split[Images]:
    """Training and test images, 1 x 28 x 28 (or padded to data.size), from data.path or data.path/TITLE/raw.

    Raises:
        DataError: a file is missing or damaged, or data.size is smaller than the images.
    """
    paths = find(config, title, (f"{title}/raw",), FILES)
    train_x, train_y, test_x, test_y = (paths[name] for name in FILES)
    return Split(_part(train_x, train_y, classes, config), _part(test_x, test_y, classes, config))


load_mnist = partial(load_idx, title="MNIST", classes=_DIGITS)
load_fashion_mnist = partial(load_idx, title="FashionMNIST", classes=_FASHION)
