"""Folders as they are found: links in circles, fewer images than a batch, and ten thousand damaged files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data.decode import FORMATS, Plan, decode, limits
from diffunet.training.indexstream import Stream
from tests.data.pictures import folder

ENDINGS = ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm")


def test_links_that_lead_in_circles_are_left_out_and_each_file_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "a" / "b").mkdir(parents=True)
    Image.new("L", (4, 4)).save(root / "a" / "b" / "one.png")
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    (root / "a" / "round.png").symlink_to(root / "a" / "trip.png")
    (root / "a" / "trip.png").symlink_to(root / "a" / "round.png")
    os.mkfifo(root / "a" / "pipe.png")
    split = folder(root)
    assert [split.train.name_of(i) for i in range(len(split.train))] == [str(root / "a" / "b" / "one.png")]
    assert split.notes == (
        "left out 1 files with other endings: 1 without ending",
        f"left out 3 entries that are no regular files; first: {root}/a/pipe.png",
        f"left out 1 links to folders; first: {root}/a/b/up",
    )


def test_fewer_images_than_a_batch_are_each_seen_as_often(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (2, 2), i).save(tmp_path / f"{i}.png")
    stream = Stream(folder(tmp_path).train, 0, False, 0.0, None)
    assert sorted(stream[p]["index"] for p in range(12)) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, put in, cut out or cut off."""
    found = bytearray(data)
    for place in random.integers(0, len(found), random.integers(1, 9)):
        found[place] = random.integers(256)
    kind, place = random.integers(4), int(random.integers(len(found)))
    if kind == 1:
        del found[place:]
    elif kind == 2:
        del found[place : place + int(random.integers(1, 64))]
    elif kind == 3:
        found[place:place] = random.bytes(int(random.integers(1, 64)))
    return bytes(found)


def damaged(root: Path, count: int) -> None:
    """`count` files, each a damaged copy of a good picture of some format."""
    random = np.random.default_rng(20)
    picture = Image.fromarray(random.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    good = {}
    for ending in ENDINGS:
        picture.save(root / f"good.{ending}")
        good[ending] = (root / f"good.{ending}").read_bytes()
    for i in range(count):
        ending = ENDINGS[i % len(ENDINGS)]
        (root / f"{i:05}.{ending}").write_bytes(mutate(good[ending], random))


def undecodable(path: Path) -> bool:
    """Does Pillow itself, asked plainly, fail to decode the file?"""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.convert("RGB")
    except Exception:  # every kind is raised on damaged files
        return True
    return False


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on what is odd in the damaged files
@pytest.mark.parametrize("count", [210, pytest.param(10_000, marks=pytest.mark.soak)])
def test_of_damaged_files_every_undecodable_one_is_named_and_none_crashes(tmp_path: Path, count: int) -> None:
    damaged(tmp_path, count)
    split = folder(tmp_path, size=16, bad_files_cap=1.0, channels=3, max_pixels=10**6, value_range=(0, 255))
    named = {bad.path: bad.reason for bad in split.skipped}
    assert len(named) + len(split.train) == count + len(ENDINGS)
    wrong = {str(path) for path in tmp_path.iterdir() if undecodable(path)}
    assert wrong <= named.keys()
    assert len(wrong) > count / 5  # the damage is real
    assert all(named[path] for path in named)
    # what else is refused has more pixels than are allowed, or none
    assert len(named.keys() - wrong) <= count / 50
    assert not {path for path in named if "good." in path}


@pytest.mark.soak
def test_the_rules_cost_a_clean_picture_at_most_two_percent(tmp_path: Path) -> None:
    side = 1024
    path, random = str(tmp_path / "a.png"), np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)
    plan = Plan(3, (side, side), False, (255, 255, 255), 10**8, 255.0, None, False)

    def plain() -> np.ndarray:
        with Image.open(path) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))

    assert (plain() == decode(path, plan)).all()
    best = {"plain": float("inf"), "ours": float("inf")}
    with limits(plan.max_pixels):
        for _ in range(20):  # turn about, and the best of each: what else the machine does is not counted
            for name, read in (("plain", plain), ("ours", lambda: decode(path, plan))):
                begun = time.process_time()
                read()
                best[name] = min(best[name], time.process_time() - begun)
    assert best["ours"] <= 1.02 * best["plain"], best
