"""Small pictures of every kind, and what a folder makes of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from diffunet.data import Split, load
from diffunet.spec import DataConfig


def folder(path: Path, **options: object) -> Split:
    return load(DataConfig(name="folder", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def levels(path: Path, **options: object) -> np.ndarray:
    """The one image of a folder, (C, H, W), as levels 0..255."""
    images = folder(path, **options).train
    assert len(images) == 1
    return (images[0].astype(np.float64) + 1) * 127.5


def png(
    path: Path, bits: int, colour: int, rows: list[bytes], size: tuple[int, int], *chunks: tuple[bytes, bytes]
) -> None:
    """Write a PNG that Pillow cannot write; `rows` without the filter byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def new(mode: str, *pixels: object) -> Image.Image:
    """An image of one row."""
    image = Image.new(mode, (len(pixels), 1))
    for i, pixel in enumerate(pixels):
        image.putpixel((i, 0), pixel)  # type: ignore[arg-type]
    return image


def palette(transparent: bool) -> Image.Image:
    image = new("P", 0, 1)
    image.putpalette([200, 100, 50, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 0
    return image
