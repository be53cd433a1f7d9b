"""From one image file to one array: every rule about modes, transparency, depth and size is here.

Pillow reads the file, because torchvision.io has open memory-safety bugs on untrusted files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from einops import rearrange
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from diffunet.data.base import Range, scale, shown
from diffunet.errors import DataError
from diffunet.spec.segmentation import MAX_VALUE

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_DEEP = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "F": 1.0, "I": None}
_limit: int | None = None  # the max_pixels that Pillow has been given


class Unreadable(Exception):
    """The file is no image, is damaged, or is refused; the message says which. The folder decides what follows."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded; `size` is (width, height) before EXIF rotation."""

    format: str
    mode: str
    size: tuple[int, int]
    frames: bool

    @property
    def grey(self) -> bool:
        """Whether one channel holds all of it; a palette counts as colour."""
        return self.mode in _GREY

    @property
    def full_scale(self) -> float | None:
        """The value of white: 255, 65535, 1 for float; None for 32-bit integers, which have no usual one."""
        if (self.format, self.mode) == ("PPM", "I"):  # Pillow stretches a deep PGM to 0..65535
            return 65535.0
        return _DEEP.get(self.mode, 255.0)


@dataclass(frozen=True)
class Plan:
    """How every file of one folder becomes an array.

    Attributes:
        channels: 1 or 3.
        size: (height, width), or None for any.
        resize: fit to `size`; otherwise another size is an error.
        background: colour (0..255) under transparent pixels.
        max_pixels: more are refused before decoding.
        full_scale: white in the arrays; shallower files are stretched to it.
        value_range: the user's own range: numbers stay as they are stored, and those outside become -1 or 1.
        deep: float32 arrays (some file has more than 8 bits); uint8 otherwise.
    """

    channels: int
    size: tuple[int, int] | None
    resize: bool
    background: tuple[int, ...]
    max_pixels: int
    full_scale: float
    value_range: Range | None
    deep: bool

    @property
    def range(self) -> Range:
        """The stored values that become -1 and 1."""
        return self.value_range or (0.0, self.full_scale)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.deep else np.uint8)


@contextmanager
def limits(max_pixels: int) -> Iterator[None]:
    """While it lasts Pillow refuses what has more than `max_pixels`, before it takes memory.

    Pillow's own limit is set and its warning made an error: both its checks, of the header and of the frames inside,
    then refuse. That limit and the warning filters belong to the process: a program that reads in threads enters this
    once around them, and what they enter inside changes nothing.
    """
    global _limit
    if _limit == max_pixels:
        yield
        return
    before, _limit = (Image.MAX_IMAGE_PIXELS, _limit), max_pixels
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata; they name no file and change no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, _limit = before


@contextmanager
def opened(file: str | BinaryIO, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Open an image within `limits`; whatever goes wrong inside is Unreadable (DataError and MemoryError pass)."""
    try:
        with limits(max_pixels), Image.open(file, formats=FORMATS) as image:
            yield image
    except (DataError, Unreadable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claim = str(error).split(" exceeds")[0]
        raise Unreadable(f"{claim} is above data.max_pixels = {max_pixels}; not decoded") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except Exception as error:  # decoders meet damaged files with every kind of exception
        raise Unreadable(shown(f"{type(error).__name__}: {error}")) from error


def read_header(file: str | BinaryIO, max_pixels: int) -> Header:
    """Format, mode and size without decoding, of a path or of a file open at its start.

    Raises:
        Unreadable: no image, damaged, or more than `max_pixels`.
    """
    with opened(file, max_pixels) as image:
        return Header(str(image.format), image.mode, image.size, bool(getattr(image, "is_animated", False)))


def _eight_bits(image: Image.Image, plan: Plan) -> Image.Image:
    """Lay the image on the background and convert it to L or RGB (Pillow knows CMYK, palettes, one bit, YCbCr)."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, (*plan.background, 255))
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    mode = "L" if plan.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() copies even where nothing changes


def _more_bits(image: Image.Image, plan: Plan, path: str, full_scale: float | None) -> Image.Image:
    """Values of a 16-bit, 32-bit or float image as they are stored, in mode F.

    `image.convert("RGB")` would cut 16 bits at 255 and floats at 0 and 255.
    """
    values = np.asarray(image).astype(np.float32)
    key = image.info.get("transparency")  # one grey value that means "transparent" (PNG)
    if isinstance(key, int) and full_scale:
        paper = np.asarray(Image.new("RGB", (1, 1), plan.background).convert("L"), dtype=np.float32)
        values[values == key] = paper.item() * full_scale / 255
    if not np.isfinite(values).all():
        raise Unreadable("it holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if plan.value_range is None and (full_scale is None or low < 0 or high > full_scale):
        raise DataError(
            f"{shown(path)} holds {image.mode} values from {low:g} to {high:g}; "
            "say which become -1 and 1: data.value_range = [low, high]"
        )
    return Image.fromarray(values)


def other_size(path: str, found: tuple[int, ...], wanted: tuple[int, int]) -> str:
    """The message for an image of another size than the first; sizes are (height, width)."""
    return (
        f"{shown(path)} is {found[0]} x {found[1]} pixels (height x width), but the first image is "
        f"{wanted[0]} x {wanted[1]}; set --data.size {min(wanted)} (or another side) to resize them all"
    )


def decode(path: str, plan: Plan) -> np.ndarray:
    """One file as (C, H, W), uint8 or (for a deep folder) float32, in `plan.range`.

    EXIF rotation is applied and of several frames the first is taken. With `plan.resize` the largest centred part with
    the wanted aspect is resampled (Lanczos, antialiased) to `plan.size`. Colour with 16 bits per channel is read with 8
    (Pillow has no deeper colour).

    Raises:
        Unreadable: no image, damaged, NaN, or more than `plan.max_pixels`.
        DataError: another size than `plan.size`, or values that need data.value_range.
    """
    with opened(path, plan.max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        own = Header(str(image.format), image.mode, image.size, False).full_scale
        flat = _more_bits(image, plan, path, own) if image.mode in _DEEP else _eight_bits(image, plan)
        if plan.resize and plan.size:
            flat = ImageOps.fit(flat, plan.size[::-1], Image.Resampling.LANCZOS)
        pixels = np.asarray(flat)
    if plan.size and plan.size != pixels.shape[:2]:
        raise DataError(other_size(path, pixels.shape[:2], plan.size))
    pixels = rearrange(pixels, "h w -> 1 h w" if pixels.ndim == 2 else "h w c -> c h w")
    if plan.deep and own and plan.value_range is None:
        pixels = pixels.astype(np.float32) / own * plan.full_scale
    return np.ascontiguousarray(np.broadcast_to(pixels, (plan.channels, *pixels.shape[1:])), dtype=plan.dtype)


def decode_any(
    path: str, channels: int, background: tuple[int, ...], value_range: Range | None, max_pixels: int
) -> np.ndarray:
    """One file of any size and depth as float32 (C, H, W) in [-1, 1]; the range is its own full scale if unset.

    Raises:
        Unreadable: no image, damaged, NaN, or more than `max_pixels`.
        DataError: values that need a range.
    """
    full_scale = read_header(path, max_pixels).full_scale
    if full_scale is None and value_range is None:
        raise DataError(f"{shown(path)} holds 32-bit integers, and nothing says which become -1 and 1")
    deep = full_scale != 255.0
    plan = Plan(channels, None, False, background, max_pixels, full_scale or 1.0, value_range, deep)
    return scale(decode(path, plan), plan.range)


def decode_label(path: str, max_pixels: int) -> np.ndarray:
    """The values of a label picture, integers (H, W): grey levels, or the indices of a palette.

    Raises:
        Unreadable: no image, damaged, or more than `max_pixels`.
        DataError: lossy JPEG, colour, or numbers that are not whole.
    """
    with opened(path, max_pixels) as image:
        if image.format == "JPEG":
            raise DataError(f"{shown(path)} is a JPEG, which changes the values of labels; store labels as PNG")
        ImageOps.exif_transpose(image, in_place=True)
        values = np.asarray(image if image.mode not in ("LA", "La") else image.convert("L"))
    if values.ndim == 3:
        if not (values[..., :3] == values[..., :1]).all():
            raise DataError(f"{shown(path)} is in colour; a label has one value a pixel (grey levels, or a palette)")
        values = values[..., 0]
    whole = values.astype(np.int64)
    if not (whole == values).all() or whole.min() < 0 or whole.max() > MAX_VALUE:
        raise DataError(f"{shown(path)} holds values that are no whole numbers from 0 to {MAX_VALUE}, as labels are")
    return whole
