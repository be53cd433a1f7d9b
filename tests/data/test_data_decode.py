"""Golden pixels: every mode, transparency, depth, rotation and size rule of one image file."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data.decode import ENDINGS, FORMATS, Plan, Unreadable, decode
from diffunet.errors import DataError
from tests.data.pictures import folder, levels, new, png

PLAN = Plan(3, None, False, (255, 255, 255), 10**6, 255.0, None, False)


RED = (255, 0, 0)


def test_grey_is_one_channel_and_colour_three_unless_said_otherwise(tmp_path: Path) -> None:
    new("L", 100).save(tmp_path / "a.png")
    assert folder(tmp_path).train.shape == (1, 1, 1)
    assert folder(tmp_path, channels=3).train[0].ravel().tolist() == pytest.approx([100 / 127.5 - 1] * 3)
    new("RGB", (100, 100, 100)).save(tmp_path / "b.png")
    assert folder(tmp_path).train.shape == (3, 1, 1)
    assert folder(tmp_path, channels=1).train[1].ravel().tolist() == pytest.approx([100 / 127.5 - 1])


DEEP = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "<u2"), ("a.tiff", "<u2"), ("a.tif", ">u2"), ("a.pgm", "<u2")])
def test_sixteen_bits_keep_their_whole_range(tmp_path: Path, name: str, dtype: str) -> None:
    Image.fromarray(DEEP.astype(dtype)).save(tmp_path / name)
    images = folder(tmp_path).train
    assert images.value_range == (0.0, 65535.0)
    np.testing.assert_allclose(images[0][0], DEEP / 32767.5 - 1, atol=1e-6)
    assert (images[0].min(), images[0].max()) == (-1.0, 1.0)


def test_a_stated_range_serves_twelve_bit_data(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    images = folder(tmp_path, value_range=(0, 4095)).train
    assert images[0].ravel().tolist() == [-1.0, 1.0]
    assert images.value_range == (0.0, 4095.0)


def test_shallow_and_deep_files_in_one_folder_share_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.array([[0, 1]], np.float32)).save(tmp_path / "c.tiff")
    assert [image.ravel().tolist() for image in folder(tmp_path).train] == [[-1.0, 1.0]] * 3


def test_colour_key_of_a_deep_png_is_transparent(tmp_path: Path) -> None:
    row = struct.pack(">HH", 300, 65535)
    png(tmp_path / "a.png", 16, 0, [row], (2, 1), (b"tRNS", struct.pack(">H", 300)))
    np.testing.assert_allclose(levels(tmp_path, background=(51, 51, 51))[0, 0], [51, 255], atol=1e-3)


def test_deep_colour_is_read_with_eight_bits_and_the_right_white(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 16, 2, [struct.pack(">HHH", 0, 0x8000, 65535)], (1, 1))
    np.testing.assert_allclose(levels(tmp_path)[:, 0, 0], [0, 128, 255], atol=1e-4)


def test_floats_between_zero_and_one_need_no_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(tmp_path / "a.tiff")
    assert folder(tmp_path).train[0].ravel().tolist() == [-1.0, -0.5, 1.0]


@pytest.mark.parametrize("values", [np.array([[0, 2.5]], np.float32), np.array([[-7, 70000]], np.int32)])
def test_other_floats_and_integers_need_a_range(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "depth.tiff")
    with pytest.raises(DataError, match=r"depth\.tiff holds .*data\.value_range"):
        folder(tmp_path)
    low, high = float(values.min()), float(values.max())
    assert folder(tmp_path, value_range=(low, high)).train[0].ravel().tolist() == [-1.0, 1.0]


def test_nan_in_a_float_image_makes_it_a_bad_file(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.array([[0, 1]], np.float32)).save(tmp_path / "b.tiff")
    skipped = folder(tmp_path, bad_files_cap=0.5).skipped
    assert [(Path(bad.path).name, bad.reason) for bad in skipped] == [("a.tiff", "it holds NaN or infinity")]


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.T, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(levels(tmp_path)[0], TURNS[orientation](pixels), atol=1e-4)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_the_first_of_several_frames_is_used_and_said_so_once(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if name.endswith("webp") else {}
    for stem in ("a", "b"):
        frames[0].save(tmp_path / f"{stem}{name[1:]}", save_all=True, append_images=frames[1:], **options)
    split = folder(tmp_path)
    np.testing.assert_allclose((split.train[0][:, 0, 0] + 1) * 127.5, RED, atol=1e-4)
    kind = Image.registered_extensions()[name[1:]]
    assert [note for note in split.notes if "frame" in note] == [
        f"the first frame is used of 2 {kind} files with several; first: {tmp_path / name}"
    ]


def test_a_fit_without_scaling_is_the_centre_crop(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(levels(tmp_path, size=8)[0], pixels[:, 3:11], atol=1e-4)
    np.testing.assert_allclose(levels(tmp_path, size=(4, 14))[0], pixels[2:6], atol=1e-4)


def test_size_is_height_then_width(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    assert folder(tmp_path, size=(6, 9)).train.shape == (3, 6, 9)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_shrinking_is_antialiased(tmp_path: Path, depth: type) -> None:
    """One-pixel stripes become their mean; picking pixels would leave black and white."""
    stripes = np.tile(np.array([0, np.iinfo(depth).max], depth), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(levels(tmp_path, size=8)[0, 2:-2, 2:-2], 127.5, atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1000, 1), (3, 500)])
def test_extreme_shapes_can_be_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 99).save(tmp_path / "a.png")
    np.testing.assert_allclose(levels(tmp_path, size=16), np.full((1, 16, 16), 99), atol=1e-4)


def bomb(path: Path, side: int) -> None:
    """A valid black PNG of side x side that packs to about 1 KB for each megapixel (or 120 bytes, at one bit)."""
    png(path, 1, 0, [b"\0" * ((side + 7) // 8)] * side, (side, side))


def test_max_pixels_is_the_limit_and_nothing_else(tmp_path: Path) -> None:
    bomb(tmp_path / "a.png", 1000)
    new("L", 1).save(tmp_path / "b.png")
    assert len(folder(tmp_path, max_pixels=1_000_000, size=4).train) == 2
    split = folder(tmp_path, max_pixels=999_999, size=4, bad_files_cap=0.5)
    assert len(split.train) == 1
    assert "1000000 pixels) is above data.max_pixels = 999999" in split.skipped[0].reason


def test_a_decompression_bomb_costs_no_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png", 12_000)
    assert (tmp_path / "bomb.png").stat().st_size < 25_000
    new("L", 1).save(tmp_path / "good.png")
    program = (
        "import resource, sys\n"
        "from diffunet.data import load\n"
        "from diffunet.spec import DataConfig\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "config = DataConfig(name='folder', path=sys.argv[1], size=8, bad_files_cap=0.5)\n"
        "before = peak(); split = load(config)\n"
        "print(peak() - before, len(split.train), split.skipped[0].reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, count, reason = done.stdout.split(maxsplit=2)
    assert int(grown) < 50 * 1024, f"{grown} KiB"
    assert count == "1"
    assert "144000000 pixels" in reason


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 8, 0, [b""], (0, 1))
    with pytest.raises(Unreadable):
        decode(str(tmp_path / "a.png"), PLAN)


def test_only_the_listed_formats_are_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="ICO", sizes=[(4, 4)])
    with pytest.raises(Unreadable, match="it is no PNG, JPEG"):
        decode(str(tmp_path / "a.png"), PLAN)


def test_every_ending_belongs_to_a_listed_format() -> None:
    known = Image.registered_extensions()
    assert {known[ending] for ending in ENDINGS} == set(FORMATS)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.ppm"])
def test_damaged_files_are_decoded_or_named_and_never_crash(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(7)
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(tmp_path / name)
    good = (tmp_path / name).read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        cut = rng.integers(len(data) // 2, len(data) + 1)
        (tmp_path / name).write_bytes(data[:cut])
        try:
            assert decode(str(tmp_path / name), PLAN).shape[0] == 3
        except (Unreadable, DataError):
            refused += 1
    assert refused > 10  # the damage is real


def test_pillows_own_limit_is_put_back(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    new("L", 1).save(tmp_path / "a.png")
    folder(tmp_path, max_pixels=5)
    assert limit == Image.MAX_IMAGE_PIXELS
