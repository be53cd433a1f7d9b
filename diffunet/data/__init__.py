"""Data sets: `load(config)` reads the one that `data.name` says and parts it into training and held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from diffunet.data.arrays import load_array
from diffunet.data.base import BadFile, Dataset, Images, Split
from diffunet.data.cifar import load_cifar10
from diffunet.data.digits import load_digits
from diffunet.data.folder import load_folder
from diffunet.data.idx import load_fashion_mnist, load_mnist
from diffunet.data.pairs import Pairs, load_pairs
from diffunet.data.volumes import load_volumes
from diffunet.errors import DataError
from diffunet.spec import DataConfig
from diffunet.table import Table

__all__ = ["DATASETS", "BadFile", "Images", "Pairs", "Split", "load"]


def _part(split: Split[Any], share: float, seed: int) -> Split[Any]:
    """Hold out int(share * N) images, drawn without replacement; both parts keep the order of the data."""
    total = len(split.train)
    count = int(share * total + 1e-9)  # 0.29 * 100 is 28.999...
    # Raw bits of Philox: numpy keeps their stream for ever, but not that of Generator.permutation.
    order = np.argsort(np.random.Philox(key=seed).random_raw(total), kind="stable")
    if count == 0:
        return split
    held_out, train = np.sort(order[:count]), np.sort(order[count:])
    return replace(split, train=split.train.subset(train), held_out=split.train.subset(held_out))


def _check(config: DataConfig, images: Dataset) -> None:
    channels, *sides = images.shape
    if config.channels not in (None, channels):
        raise DataError(f"data.channels = {config.channels}, but data '{config.name}' has {channels}")
    wanted = [config.size] * len(sides) if isinstance(config.size, int) else config.size
    if wanted is not None and list(wanted) != sides:
        is_now = " x ".join(map(str, sides))
        raise DataError(f"data.size = {config.size}, but data '{config.name}' is {is_now} and is not resized; unset it")


def load(config: DataConfig) -> Split[Any]:
    """Read a data set and part it.

    A data set with an official test split has that as held-out images; the others give `data.held_out` of their images,
    chosen by `data.seed` alone.

    Raises:
        DataError: missing, empty, damaged, or not what the config says.
        ConfigError: an option that this data set cannot have, or a library that is not installed.
        UnsafeError: a file that could run code or exhaust the machine.
    """
    split = DATASETS[config.name](config)
    _check(config, split.train)
    return split if split.held_out is not None else _part(split, config.held_out, config.seed)


DATASETS: Table[Callable[[DataConfig], Split[Any]]] = Table(
    "data.name",
    {
        "digits": load_digits,
        "folder": load_folder,
        "array": load_array,
        "fashion_mnist": load_fashion_mnist,
        "mnist": load_mnist,
        "cifar10": load_cifar10,
        "volumes": load_volumes,
        "pairs": load_pairs,
    },
)
