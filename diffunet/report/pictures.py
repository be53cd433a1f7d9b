"""Pictures of a run inside a page: the bytes of PNG files as data URIs, made smaller where they are large."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SIDE = 1024  # pixels; what is larger is made smaller
PIXELS = 2**26  # what is larger still is not opened
BYTES = 2**25


def data_uri(path: Path) -> str | None:
    """A PNG file as `data:image/png;base64,...`, at most `SIDE` pixels wide and high; None where it is no such file."""
    try:
        if path.stat().st_size > BYTES:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.width * picture.height > PIXELS:
                return None
            picture.load()
            if max(picture.size) > SIDE:
                picture.thumbnail((SIDE, SIDE))
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG")
                content = buffer.getvalue()
    except Exception:  # Pillow's readers raise errors of many kinds over a damaged file
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def spread(items: Sequence[tuple[int, Path]], most: int = 8) -> list[tuple[int, Path]]:
    """The first, the last, and some evenly between."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
