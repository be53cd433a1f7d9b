"""Pictures that a command is given: found, paired with others of their names, and read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig

if TYPE_CHECKING:
    from torch import Tensor


def find_pictures(given: list[Path]) -> list[Path]:
    """The pictures that are named, folders replaced by what is in them.

    Raises:
        DataError: one does not exist, or a folder without pictures.
        ConfigError: two have one name, so that the result of one would replace the other's.
    """
    from diffunet.data.scan import scan

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += [path / name for name in scan(str(path))[0]]
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist; name pictures, or folders of pictures")
    stems: dict[str, Path] = {}
    for path in found:
        twin = stems.setdefault(path.stem, path)
        if twin != path:
            raise ConfigError(f"{twin} and {path} would both become {path.stem}.png; run them with two --out")
    return found


def find_pairs(
    others: list[Path] | None, pictures: list[Path], flag: str, other: str = "picture", each: str = "pictures"
) -> dict[Path, Path]:
    """The other picture of each one: by order, or in one folder by name; empty where none is given.

    Messages call one of `others` an `other`, and the pictures `each`.

    Raises:
        ConfigError: another number of them than of pictures.
        DataError: one is not there.
    """
    if not others:
        return {}
    if len(others) == 1 and others[0].is_dir():
        by_stem = {path.stem: path for path in sorted(others[0].iterdir())}
        missing = [path for path in pictures if path.stem not in by_stem]
        if missing:
            raise DataError(f"{others[0]} holds no {other} for {missing[0]} (looked for {missing[0].stem}.*)")
        return {path: by_stem[path.stem] for path in pictures}
    if len(others) != len(pictures):
        raise ConfigError(f"{len(others)} times {flag} for {len(pictures)} {each}; give one for each, or one folder")
    missing = [path for path in others if not path.exists()]
    if missing:
        raise DataError(f"{missing[0]} does not exist; {flag} names {other}s, or one folder of them")
    return dict(zip(pictures, others, strict=True))


def read_picture(path: Path, channels: int | None, max_pixels: int) -> Tensor:
    """One picture as (C, H, W) in [-1, 1], of 1 or 3 channels; None takes as many as the file has.

    Raises:
        DataError: no picture, damaged, or more pixels than allowed.
    """
    import torch

    from diffunet.data.decode import Unreadable, decode_any, read_header

    try:
        own = 1 if read_header(str(path), max_pixels).grey else 3
        values = decode_any(str(path), channels or own, DataConfig().background, None, max_pixels)
    except Unreadable as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return torch.from_numpy(values)
