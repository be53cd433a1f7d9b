"""Golden pixels of every format class: how a file stores its values, and which ones come out."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data.decode import FORMATS
from tests.data.pictures import levels, new, palette, png

RED, PAPER, DARK = (255, 0, 0), (40, 80, 120), (1, 2, 3)
GREY = tuple((51 * i,) for i in range(6))
Make = Callable[[Path], object]


def saved(image: Image.Image, **options: object) -> Make:
    """Pillow writes it."""
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def text(data: bytes) -> Make:
    """The bytes as they are."""
    return lambda path: path.write_bytes(data)


def array(values: list[object], dtype: str, **options: object) -> Make:
    return saved(Image.fromarray(np.array([values], dtype)), **options)


def packed(bits: int, colour: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> Make:
    """A PNG of one row, of a kind that Pillow cannot write."""
    return lambda path: png(path, bits, colour, [row], (width, 1), *chunks)


def interlaced(path: Path) -> None:
    """Adam7: of one row of four pixels, passes 1, 4 and 6 hold pixel 0, pixel 2, and pixels 1 and 3."""
    png(path, 8, 0, [b"\x0a", b"\x1e", b"\x14\x28"], (4, 1))
    data = bytearray(path.read_bytes())
    data[28] = 1
    head = data[12:29]
    data[29:33] = struct.pack(">I", zlib.crc32(head))
    path.write_bytes(data)


def flat(mode: str, colour: tuple[int, ...] | int) -> Image.Image:
    return Image.new(mode, (16, 16), colour)  # type: ignore[arg-type]


def frames(*colours: tuple[int, int, int], **options: object) -> Make:
    images = [Image.new("RGB", (2, 1), colour) for colour in colours]
    return lambda path: images[0].save(path, save_all=True, append_images=images[1:], **options)  # type: ignore[arg-type]


def turned() -> Make:
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees
    return saved(new("RGB", RED, DARK), exif=exif)


SIXTEEN: list[object] = [0, 257, 32896, 65535]
EXACT: dict[str, object] = {"lossless": True, "exact": True}
# class: (file name, how it is written, the pixels of the first row as levels 0..255, how far they may be off)
GOLDEN: dict[str, tuple[str, Make, list[tuple[float, ...]], float]] = {
    "png L": ("a.png", saved(new("L", 0, 255)), [(0,), (255,)], 0),
    "png 1": ("a.png", saved(new("1", 0, 1)), [(0,), (255,)], 0),
    "png L 2 bits": ("a.png", packed(2, 0, b"\x1b", 4), [(0,), (85,), (170,), (255,)], 0),
    "png L 4 bits": ("a.png", packed(4, 0, b"\x0f\x70", 3), [(0,), (255,), (119,)], 0),
    "png L interlaced": ("a.png", interlaced, [(10,), (20,), (30,), (40,)], 0),
    "png L colour key": ("a.png", saved(new("L", 7, 8), transparency=7), [(73,), (8,)], 0),
    "png LA": ("a.png", saved(new("LA", (9, 255), (9, 0))), [(9,), (73,)], 0),
    "png 16 bits": ("a.png", array(SIXTEEN, "<u2"), [(0,), (1,), (128,), (255,)], 1e-4),
    "png RGB": ("a.png", saved(new("RGB", RED, DARK)), [RED, DARK], 0),
    "png RGB 16 bits": ("a.png", packed(16, 2, struct.pack(">HHH", 0, 0x8000, 65535), 1), [(0, 128, 255)], 0),
    "png RGB colour key": ("a.png", saved(new("RGB", RED, DARK), transparency=DARK), [RED, PAPER], 0),
    "png RGB turned": ("a.png", turned(), [DARK, RED], 0),
    "png RGBA": ("a.png", saved(new("RGBA", (*RED, 255), (*RED, 0))), [RED, PAPER], 0),
    "png RGBA half": ("a.png", saved(new("RGBA", (240, 0, 20, 51))), [(80, 64, 100)], 0),
    "png P": ("a.png", saved(palette(False)), [(200, 100, 50), (10, 20, 30)], 0),
    "png P transparent": ("a.png", saved(palette(True)), [PAPER, (10, 20, 30)], 0),
    "apng": ("a.png", frames(RED, DARK), [RED, RED], 0),
    "jpeg L": ("a.jpg", saved(flat("L", 77), quality=95), [(77,)] * 16, 1),
    "jpeg RGB": ("a.jpeg", saved(flat("RGB", (200, 100, 50)), quality=95), [(200, 100, 50)] * 16, 3),
    "jpeg progressive": ("a.jfif", saved(flat("RGB", PAPER), format="JPEG", progressive=True), [PAPER] * 16, 3),
    "jpeg CMYK": ("a.jpg", saved(flat("CMYK", (0, 255, 255, 0)), quality=100), [RED] * 16, 3),
    "webp RGB": ("a.webp", saved(new("RGB", RED, DARK), **EXACT), [RED, DARK], 0),
    "webp RGBA": ("a.webp", saved(new("RGBA", (*RED, 255), (*RED, 0)), **EXACT), [RED, PAPER], 0),
    "webp lossy": ("a.webp", saved(flat("RGB", PAPER), quality=90), [PAPER] * 16, 4),
    "webp animated": ("a.webp", frames(RED, DARK, lossless=True), [RED, RED], 0),
    "gif P": ("a.gif", saved(palette(False)), [(200, 100, 50), (10, 20, 30)], 0),
    "gif transparent": ("a.gif", saved(palette(True)), [PAPER, (10, 20, 30)], 0),
    "gif animated": ("a.gif", frames(RED, DARK), [RED, RED], 0),
    "bmp 1": ("a.bmp", saved(new("1", 0, 1)), [(0,), (255,)], 0),
    "bmp L": ("a.bmp", saved(new("L", *(g for (g,) in GREY))), list(GREY), 0),
    "bmp RGB": ("a.bmp", saved(new("RGB", RED, DARK)), [RED, DARK], 0),
    "pbm text": ("a.pbm", text(b"P1 3 1 1 0 1"), [(0,), (255,), (0,)], 0),
    "pgm text": ("a.pgm", text(b"P2 # comment\n2 1 255\n9 200\n"), [(9,), (200,)], 0),
    "pgm 16 bits": ("a.pgm", text(b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535)), [(1,), (255,)], 1e-4),
    "ppm text": ("a.pnm", text(b"P3 1 1 255 1 2 3"), [DARK], 0),
    "ppm RGB": ("a.ppm", saved(new("RGB", RED, DARK)), [RED, DARK], 0),
    "tiff 1 group 4": ("a.tif", saved(new("1", 0, 1), compression="group4"), [(0,), (255,)], 0),
    "tiff L lzw": ("a.tif", saved(new("L", 3, 4), compression="tiff_lzw"), [(3,), (4,)], 0),
    "tiff RGB deflate": ("a.tiff", saved(new("RGB", RED, DARK), compression="tiff_adobe_deflate"), [RED, DARK], 0),
    "tiff RGBA": ("a.tif", saved(new("RGBA", (*RED, 255), (*RED, 0))), [RED, PAPER], 0),
    "tiff CMYK": ("a.tif", saved(new("CMYK", (0, 255, 255, 0), (0, 0, 0, 255))), [RED, (0, 0, 0)], 0),
    "tiff 16 bits": ("a.tiff", array(SIXTEEN, "<u2"), [(0,), (1,), (128,), (255,)], 1e-4),
    "tiff 16 bits, big end first": ("a.tif", array(SIXTEEN, ">u2"), [(0,), (1,), (128,), (255,)], 1e-4),
    "tiff float": ("a.tiff", array([0, 0.2, 1], "<f4"), [(0,), (51,), (255,)], 1e-4),
    "tiff pages": ("a.tiff", frames(RED, DARK), [RED, RED], 0),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_pixels(tmp_path: Path, case: str) -> None:
    name, make, expected, off = GOLDEN[case]
    make(tmp_path / name)
    found = levels(tmp_path, background=PAPER)
    np.testing.assert_allclose(found[:, 0].T, expected, atol=off + 1e-4)


@pytest.mark.parametrize("case", GOLDEN)
def test_the_file_is_of_the_class_that_its_name_says(tmp_path: Path, case: str) -> None:
    """Pillow itself says what was written: so the table cannot hold one class twice."""
    name, make, _, _ = GOLDEN[case]
    make(tmp_path / name)
    with Image.open(io.BytesIO((tmp_path / name).read_bytes())) as image:
        kind = {"jpeg": "JPEG", "apng": "PNG", "pbm": "PPM", "pgm": "PPM"}.get(case.split()[0], case.split()[0].upper())
        assert image.format == kind
        several = any(word in case for word in ("apng", "animated", "pages"))
        assert bool(getattr(image, "is_animated", False)) == several


def test_thirty_classes_of_every_format_are_there() -> None:
    assert len(GOLDEN) >= 30
    assert {Image.registered_extensions()[Path(name).suffix] for name, *_ in GOLDEN.values()} == set(FORMATS)
