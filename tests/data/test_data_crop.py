"""Random parts of larger images: uniformly placed, pure functions of (seed, position), of any mix of sizes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import Split, load
from diffunet.data import folder as folder_module
from diffunet.errors import DataError
from diffunet.spec import DataConfig
from diffunet.training.indexstream import Stream, draw


def picture(path: Path, height: int, width: int, mode: str = "L") -> np.ndarray:
    """Write a picture whose grey value names the place: 16 row + column (+ 1 in green, + 2 in blue)."""
    values = (16 * np.arange(height)[:, None] + np.arange(width)).astype(np.uint8)
    values = values if mode == "L" else np.stack([values, values + 1, values + 2], axis=-1)
    Image.fromarray(values).save(path)
    return values


def folder(path: Path, **options: object) -> Split:
    return load(DataConfig(name="folder", path=str(path), **{"held_out": 0.0, "crop": 4, **options}))  # type: ignore[arg-type]


def grey(x0: np.ndarray) -> np.ndarray:
    """The stored values 0..255 of an item in [-1, 1]."""
    values: np.ndarray = (x0 + 1) * 127.5
    assert np.abs(values - values.round()).max() < 1e-3
    return values.round().astype(int)


def at(seed: int = 0) -> Callable[[], np.random.Generator]:
    return lambda: np.random.default_rng(seed)


def test_every_place_is_as_likely_as_any_other(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 6, 7)
    stream = Stream(folder(tmp_path).train, 3, False, 0.0, None)
    n = 1200
    corners = [int(grey(stream[p]["x0"])[0, 0, 0]) for p in range(n)]
    places, counts = np.unique(corners, return_counts=True)
    assert places.tolist() == [16 * y + x for y in range(3) for x in range(4)]
    # chi-squared with 11 degrees of freedom: above 31.3 once in a thousand seeds
    assert ((counts - n / 12) ** 2 / (n / 12)).sum() < 31.3


def test_a_part_is_a_piece_of_the_image_as_it_is_stored(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", 9, 11)
    train = folder(tmp_path).train
    for seed in range(8):
        part = grey(train.view(0, at(seed)))[0]
        top, left = divmod(int(part[0, 0]), 16)
        assert (part == whole[top : top + 4, left : left + 4]).all()


def test_an_item_itself_is_the_middle(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", 8, 13)
    assert (grey(folder(tmp_path).train[0])[0] == whole[2:6, 4:8]).all()


def test_held_out_images_are_never_placed_at_random(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", 8 + i, 9)
    split = folder(tmp_path, held_out=0.5)
    assert split.held_out is not None
    assert len(split.train) == len(split.held_out) == 2
    assert split.held_out[1].shape == (1, 4, 4)
    assert (split.held_out[1] == split.held_out[1]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sizes_may_differ_and_colour_stays_together(tmp_path: Path, mode: str) -> None:
    for i, (height, width) in enumerate([(4, 4), (5, 12), (9, 6)]):
        picture(tmp_path / f"{i}.png", height, width, mode)
    train = folder(tmp_path).train
    assert train.shape == (1 if mode == "L" else 3, 4, 4)
    for i in range(3):
        part = grey(train.view(i, at(i)))
        assert part.shape == train.shape
        if mode == "RGB":
            assert (part == part[:1] + np.arange(3)[:, None, None]).all()


def test_a_position_sees_the_same_at_any_time_and_in_any_process(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 12, 15)
    picture(tmp_path / "b.png", 15, 12)
    first = Stream(folder(tmp_path).train, 5, True, 0.0, None, True)
    again = pickle.loads(pickle.dumps(Stream(folder(tmp_path).train, 5, True, 0.0, None, True)))
    views = {p: first[p]["x0"] for p in (40, 3, 17)}
    assert all((again[p]["x0"] == views[p]).all() for p in (3, 17, 40))
    assert (
        len({Stream(folder(tmp_path).train, seed, True, 0.0, None, True)[3]["x0"].tobytes() for seed in range(5)}) > 1
    )


def test_a_flip_and_a_turn_make_the_eight_symmetries_alike(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", 4, 4)
    stream = Stream(folder(tmp_path, flip=True, rotate=True).train, 1, True, 0.0, None, True)
    n = 640
    seen = [grey(stream[p]["x0"])[0].tobytes() for p in range(n)]
    faces = [np.rot90(side, k).astype(int).tobytes() for side in (whole, whole[:, ::-1]) for k in range(4)]
    counts = np.array([seen.count(face) for face in faces])
    assert counts.sum() == n
    # chi-squared with 7 degrees of freedom: above 24.3 once in a thousand seeds
    assert ((counts - n / 8) ** 2 / (n / 8)).sum() < 24.3


def test_without_crop_the_random_streams_are_as_they_were(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 4)
    whole = folder(tmp_path, crop=None).train
    item = Stream(whole, 7, False, 0.0, None)[11]
    assert (item["x0"] == whole[0]).all()
    assert (item["eps"] == draw(7, "noise", 11).standard_normal((1, 4, 4), dtype=np.float32)).all()


def test_a_folder_too_large_for_memory_gives_the_same_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", 7 + i, 9, "RGB")
    held = folder(tmp_path).train
    monkeypatch.setattr(folder_module, "IN_MEMORY", 100)
    lazy = folder(tmp_path, cache="off").train
    assert type(lazy.source.whole) is not type(held.source.whole)  # type: ignore[attr-defined]
    for i in range(3):
        assert (lazy.view(i, at(i)) == held.view(i, at(i))).all()
        assert lazy.name_of(i) == held.name_of(i)
    assert lazy.fingerprint == held.fingerprint


def test_the_side_of_the_parts_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 8, 8)
    assert len({folder(tmp_path, crop=crop).train.fingerprint for crop in (None, 4, 5)}) == 3


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", 8, 8)
    picture(tmp_path / "small.png", 3, 9)
    with pytest.raises(DataError, match=r"small\.png is 3 x 9 pixels .*data\.crop = 4; lower it"):
        folder(tmp_path)


def test_a_damaged_file_is_left_out_and_the_others_keep_their_places(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", 6, 6 + i)
    broken = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(broken[: len(broken) * 2 // 3])
    split = folder(tmp_path, bad_files_cap=0.5)
    assert [Path(bad.path).name for bad in split.skipped] == ["1.png"]
    assert [Path(split.train.name_of(i)).name for i in range(2)] == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digits", "crop": 4}, "data.crop needs data.name = 'folder', not 'digits'"),
        ({"name": "folder", "path": "x", "crop": 4, "size": 8}, "leave one out"),
        ({"name": "folder", "path": "x", "rotate": True}, "data.rotate turns the squares that data.crop takes"),
        ({"name": "pairs", "path": "x", "crop": 4}, "data.crop is not for data.name = 'pairs'"),
    ],
)
def test_contradictions_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)  # type: ignore[arg-type]
