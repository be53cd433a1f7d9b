"""Folders: which files count, classes, bad files, lazy reading and fingerprints."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import Split, load
from diffunet.data import folder as folder_module
from diffunet.errors import ConfigError, DataError
from diffunet.spec import DataConfig


def folder(path: Path, **options: object) -> Split:
    return load(DataConfig(name="folder", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


def write(path: Path, level: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path, format="PNG")
    return path


def names(split: Split, root: Path) -> list[str]:
    return [os.path.relpath(split.train.name_of(i), root) for i in range(len(split.train))]


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A hundred small images of different levels."""
    for i in range(100):
        write(tmp_path / f"{i:02}.png", i)
    return tmp_path


def test_a_flat_folder_has_no_classes_and_is_in_order_of_names(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "A.PNG", "c.Png"]):
        write(tmp_path / name, i)
    split = folder(tmp_path)
    assert names(split, tmp_path) == ["A.PNG", "b.png", "c.Png"]
    assert split.train.labels is None
    assert split.train.classes is None
    assert split.notes == ()


def test_sub_folders_are_classes_and_deeper_files_belong_to_them(tmp_path: Path) -> None:
    for name in ["dog/1.png", "dog/more/deep/2.png", "cat/3.png"]:
        write(tmp_path / name, len(name))
    (tmp_path / "empty").mkdir()
    train = folder(tmp_path).train
    assert train.classes == ("cat", "dog")
    assert train.labels is not None
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1, 1]


def test_images_beside_sub_folders_make_one_set_without_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "dog" / "b.png", 1)
    split = folder(tmp_path)
    assert len(split.train) == 2
    assert split.train.classes is None
    assert split.notes == ("1 of 2 images lie beside the sub-folders, so the folder is taken without classes",)


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    for name in ["in/notes.txt", "in/LICENSE", "in/x.avif", "in/.hidden.png", "in/.cache/b.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    split = folder(tmp_path / "in")
    assert names(split, tmp_path / "in") == ["a.png"]
    assert split.skipped == ()
    assert sorted(split.notes[0].split(": ")[1].split(", ")) == ["1 .avif", "1 .txt", "1 without ending"]
    assert split.notes[1:] == (
        f"left out 2 entries that are no regular files; first: {tmp_path}/in/gone.png",
        f"left out 1 links to folders; first: {tmp_path}/in/loop",
    )


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    target = write(tmp_path / "elsewhere" / "a.png", 9)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").symlink_to(target)
    assert len(folder(tmp_path / "in").train) == 1


def test_odd_names_are_read_and_shown_escaped(tmp_path: Path) -> None:
    odd = [b"new\nline.png", "\u0634\u0643\u0644 \u732b.png".encode(), b"caf\xe9.png", b"n" * 251 + b".png", b" .png"]
    for i, name in enumerate(odd):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            Image.new("L", (4, 4), i).save(file, format="PNG")
    split = folder(tmp_path)
    assert sorted(os.fsencode(name) for name in names(split, tmp_path)) == sorted(odd)
    assert len(split.train.fingerprint) == 64
    with open(os.path.join(os.fsencode(tmp_path), odd[0]), "wb") as file:
        file.write(b"text")
    with pytest.raises(DataError, match=r"new\\\\nline\.png|new\\nline\.png") as caught:
        folder(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("one", "two"), [("cat", "Cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_differ_only_in_case_or_unicode_form_are_refused(tmp_path: Path, one: str, two: str) -> None:
    write(tmp_path / one / "a.png")
    write(tmp_path / two / "b.png")
    with pytest.raises(DataError, match="differ only in case or Unicode form"):
        folder(tmp_path)


def test_missing_empty_and_wrong_paths_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data\.path = {tmp_path}/no does not exist"):
        folder(tmp_path / "no")
    with pytest.raises(DataError, match=r"is a file, not a folder"):
        folder(write(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"found 0 images in {tmp_path}/empty \(looked for \.png \.jpg") as caught:
        folder(tmp_path / "empty")
    assert caught.value.exit_code == 3


@pytest.fixture
def open_to_nobody() -> Iterator[Path]:
    """A folder that another user can list; the test runs as such a user, since root may read everything."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        for file in ("a/1.png", "a/2.png", "b/3.png"):
            write(Path(name) / file, int(file[2]))
        os.chmod(f"{name}/a/2.png", 0)
        Image.init()  # Pillow imports its readers late, perhaps from where nobody may read
        if user == 0:
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(user)


def test_a_file_that_may_not_be_read_is_a_bad_file(open_to_nobody: Path) -> None:
    if os.access(open_to_nobody / "a" / "2.png", os.R_OK, effective_ids=True):
        pytest.skip("this user may read files of mode 000")
    split = folder(open_to_nobody, bad_files_cap=0.5)
    assert names(split, open_to_nobody) == ["a/1.png", "b/3.png"]
    assert "Permission denied" in split.skipped[0].reason


def test_a_part_that_may_not_be_listed_is_an_error_and_not_left_out(open_to_nobody: Path) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    os.chmod(open_to_nobody / "b", 0)
    os.seteuid(user)
    if os.access(open_to_nobody / "b", os.R_OK, effective_ids=True):
        pytest.skip("this user may list folders of mode 000")
    with pytest.raises(DataError, match=r"cannot list .*/b: Permission denied"):
        folder(open_to_nobody)


def test_two_images_are_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", 1)
    split = folder(tmp_path, held_out=0.1)
    assert len(split.train) == 2
    assert split.held_out is None


def spoil(root: Path) -> list[str]:
    """Three kinds of bad file in place of images 10, 20 and 30."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)).save(root / "10.png")
    whole = (root / "10.png").read_bytes()
    (root / "10.png").write_bytes(whole[: whole.index(b"IDAT") + 8])
    (root / "20.png").write_bytes(b"")
    (root / "30.png").write_text("not an image")
    return ["10.png", "20.png", "30.png"]


def test_bad_files_are_skipped_and_listed_with_a_reason(hundred: Path) -> None:
    bad = spoil(hundred)
    split = folder(hundred, bad_files_cap=0.03)
    assert len(split.train) == 97
    assert [os.path.basename(file.path) for file in split.skipped] == bad
    assert all(file.reason for file in split.skipped)
    assert names(split, hundred) == [f"{i:02}.png" for i in range(100) if i not in (10, 20, 30)]
    assert (split.train[11][0, 0, 0] + 1) * 127.5 == pytest.approx(12, abs=1e-4)


def test_labels_stay_with_their_images_when_files_are_skipped(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    train = folder(tmp_path, bad_files_cap=0.25).train
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 1]
    assert [round(float(image[0, 0, 0] + 1) * 127.5) for image in train] == [2, 1, 3]


def test_more_bad_files_than_the_cap_stop_the_run(hundred: Path) -> None:
    spoil(hundred)
    with pytest.raises(DataError, match=r"3 of 100 images cannot be read \(data\.bad_files_cap = 0\.02\)") as caught:
        folder(hundred, bad_files_cap=0.02)
    assert caught.value.exit_code == 3
    assert all(name in str(caught.value) for name in ("10.png", "20.png", "30.png"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_folder_of_bad_files_is_no_data_set_whatever_the_cap(tmp_path: Path, share: float) -> None:
    file = write(tmp_path / "a.png", size=(64, 64))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        folder(tmp_path, bad_files_cap=1.0)


def test_fail_stops_at_the_first_bad_file(hundred: Path) -> None:
    spoil(hundred)
    with pytest.raises(DataError, match=r"[123]0\.png cannot be read: .*data\.bad_files = 'skip'"):
        folder(hundred, bad_files="fail")


def test_other_sizes_are_named_and_the_remedy_given(tmp_path: Path) -> None:
    write(tmp_path / "a.png", size=(8, 6))
    write(tmp_path / "b.png", size=(5, 9))
    with pytest.raises(DataError, match=r"b\.png is 9 x 5 pixels \(height x width\).* 6 x 8; set --data\.size 6"):
        folder(tmp_path)
    assert folder(tmp_path, size=6).train.shape == (1, 6, 6)


def test_the_same_sides_the_other_way_round_are_another_size(tmp_path: Path) -> None:
    write(tmp_path / "a.png", size=(8, 6))
    write(tmp_path / "b.png", size=(6, 8))
    with pytest.raises(DataError, match=r"b\.png is 8 x 6 pixels"):
        folder(tmp_path)


def test_four_channels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"data\.channels = 4"):
        folder(tmp_path, channels=4)


def test_a_large_folder_is_read_item_by_item_with_the_same_result(
    hundred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(hundred / "99.png")
    eager = folder(hundred).train
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    lazy = folder(hundred, cache="off").train
    assert isinstance(lazy.source, folder_module.Files)
    assert (lazy.shape, lazy.value_range, lazy.fingerprint) == (eager.shape, eager.value_range, eager.fingerprint)
    copy = pickle.loads(pickle.dumps(lazy))
    for i in range(100):
        np.testing.assert_array_equal(copy[i], eager[i])
        assert lazy.name_of(i) == eager.name_of(i)


def test_item_by_item_a_damaged_file_is_named_when_it_is_read(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    train = folder(hundred, cache="off").train
    spoil(hundred)
    with pytest.raises(DataError, match=r"10\.png cannot be read"):
        train[10]


def test_the_fingerprint_follows_the_files_and_not_the_machine(
    hundred: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = folder(hundred).train.fingerprint
    copy = tmp_path_factory.mktemp("copy") / "moved"
    shutil.copytree(hundred, copy, copy_function=shutil.copy)  # new times
    assert folder(copy).train.fingerprint == first
    seen = {first}
    data = bytearray((copy / "50.png").read_bytes())
    write(copy / "50.png", 51)  # edited, same name
    assert (copy / "50.png").stat().st_size == len(data)
    for change in (
        lambda: None,
        lambda: write(copy / "x.png", 7),
        lambda: (copy / "x.png").rename(copy / "y.png"),
        lambda: (copy / "03.png").unlink(),
    ):
        change()
        seen.add(folder(copy).train.fingerprint)
    assert len(seen) == 5


def test_copies_are_noted(hundred: Path) -> None:
    shutil.copy(hundred / "07.png", hundred / "copy.png")
    assert folder(hundred).notes == (f"1 images are copies of another one in {hundred}",)
