"""Label files: CSV and JSON, held against the folder; and what a catalogue says of a folder that changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diffunet.data import Split, load
from diffunet.data.catalogue import catalogue, difference
from diffunet.errors import DataError
from diffunet.spec import DataConfig

NAMES = ("b/2.png", "a.png", "b/1.png", "c.png")


def folder(path: Path, **options: object) -> Split:
    return load(DataConfig(name="folder", path=str(path), **{"held_out": 0.0, **options}))  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * i).save(path)
    return tmp_path / "in"


FILES = {
    "labels.csv": "file,label\na.png,cat\nb/1.png,dog\nb/2.png,dog\nc.png,ant\n",
    "more.csv": '\ufefflabel,who,file\r\ncat,x,a.png\r\n"dog","a,b",./b/1.png\r\ndog,,b/2.png\r\nant,,"c.png"\r\n',
    "labels.json": '{"a.png": "cat", "b/1.png": "dog", "b/2.png": "dog", "c.png": "ant"}',
    "dataset.json": '{"labels": [["c.png", "ant"], ["b/1.png", "dog"], ["a.png", "cat"], ["b/2.png", "dog"]]}',
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_label_file_says_the_same(images: Path, name: str) -> None:
    (images / name).write_text(FILES[name])
    split = folder(images, labels=name)
    assert split.train.classes == ("ant", "cat", "dog")
    assert split.train.labels is not None
    assert split.train.labels.tolist() == [1, 2, 2, 0]  # of a.png, b/1.png, b/2.png, c.png
    assert [note for note in split.notes if "labels" in note or "other endings" not in note] == []


def test_numbers_are_ordered_as_numbers_and_the_first_is_class_zero(images: Path) -> None:
    (images / "l.csv").write_text("file,label\na.png,10\nb/1.png,9\nb/2.png,10\nc.png,2\n")
    split = folder(images, labels="l.csv")
    assert split.train.classes == ("2", "9", "10")
    assert split.train.labels is not None
    assert split.train.labels.tolist() == [2, 1, 2, 0]
    assert any("the 3 label values of" in note and "became the classes 0 to 2" in note for note in split.notes)
    (images / "l.json").write_text('{"a.png": 1, "b/1.png": 0, "b/2.png": 2, "c.png": 0}')
    split = folder(images, labels="l.json")
    assert split.train.labels is not None
    assert split.train.labels.tolist() == [1, 0, 2, 0]
    assert not any("became the classes" in note for note in split.notes)


def test_a_label_file_may_lie_elsewhere_and_wins_over_class_folders(images: Path, tmp_path: Path) -> None:
    (images / "a.png").unlink()
    (images / "c.png").unlink()
    (tmp_path / "l.json").write_text('{"b/1.png": "x", "b/2.png": "y"}')
    assert folder(images).train.classes == ("b",)
    assert folder(images, labels=str(tmp_path / "l.json")).train.classes == ("x", "y")


def test_labels_stay_with_their_images_when_files_are_left_out(images: Path) -> None:
    (images / "labels.csv").write_text(FILES["labels.csv"])
    (images / "b" / "1.png").write_text("damaged")
    train = folder(images, labels="labels.csv", bad_files_cap=0.3).train
    assert train.labels is not None
    assert [(Path(train.name_of(i)).name, train.labels[i]) for i in range(3)] == [
        ("a.png", 1),
        ("2.png", 2),
        ("c.png", 0),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,label\na.png,1\nb/1.png,1\nc.png,1\n", r"1 images are not in it \(first: b/2\.png\)"),
        ("l.csv", FILES["labels.csv"] + "d.png,1\n", r"1 of its files are no images in data\.path \(first: d\.png\)"),
        ("l.csv", FILES["labels.csv"] + "a.png,1\n", r"1 files are in it more than once \(first: a\.png\)"),
        ("l.csv", "a.png,1\n", "its first line names no column file and no label"),
        ("l.csv", "file,label\na.png\n", "line 2 has no file or no label"),
        ("l.csv", "", "names no column file"),
        ("l.csv", 'file,label\n"a.png,1', "is no label file"),
        ("l.json", '{"a.png": 1, "a.png": 2, "b/1.png": 1, "b/2.png": 1, "c.png": 1}', "more than once"),
        ("l.json", '{"labels": null}', "the label of 'labels' is neither|it is neither"),
        ("l.json", "[1, 2]", "it is neither"),
        ("l.json", '{"a.png": 1.5}', "the label of 'a.png' is neither a whole number nor text"),
        ("l.json", '{"a.png": true}', "neither a whole number"),
        ("l.json", '{"a.png": [1]}', "neither a whole number"),
        ("l.json", '{"a.png"', "is no label file"),
        ("l.json", "[" * 100_000, "is no label file"),
        ("l.txt", "", r"must end in \.csv or \.json"),
    ],
)
def test_what_is_wrong_with_a_label_file_is_said_in_one_line(images: Path, name: str, text: str, message: str) -> None:
    (images / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        folder(images, labels=name)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_label_file_that_is_missing_is_named(images: Path) -> None:
    with pytest.raises(DataError, match=r"data\.labels = no\.csv cannot be read: No such file"):
        folder(images, labels="no.csv")


def test_labels_are_only_for_folders() -> None:
    with pytest.raises(ValueError, match=r"data\.labels needs data\.name = 'folder', not 'digits'"):
        DataConfig(labels="l.csv")


def test_labels_belong_to_the_fingerprint_and_to_the_catalogue(images: Path) -> None:
    (images / "labels.csv").write_text(FILES["labels.csv"])
    one = folder(images, labels="labels.csv")
    (images / "labels.csv").write_text(
        FILES["labels.csv"].replace("a.png,cat", "a.png,dog").replace("c.png,ant", "c.png,cat")
    )
    other = folder(images, labels="labels.csv")
    assert one.train.fingerprint != other.train.fingerprint
    old, new = catalogue(one.train), catalogue(other.train)
    assert old is not None
    assert new is not None
    assert difference(old, new) == "data changed: ~2 (first: ~a.png)"


def test_a_catalogue_says_what_was_added_removed_and_edited(images: Path) -> None:
    split = folder(images, held_out=0.5)
    old = catalogue(split.train, split.held_out)
    assert old is not None
    assert sorted(old) == sorted(NAMES)
    assert json.loads(json.dumps(old)) == old
    assert "another way" in difference(old, old)
    for name in ("x.png", "y.png", "z.png"):
        Image.new("L", (4, 4), 200).save(images / name)
    os.unlink(images / "b" / "1.png")
    for name in ("a.png", "c.png"):
        Image.new("L", (4, 4), 99).save(images / name)
    split = folder(images, held_out=0.5)
    new = catalogue(split.train, split.held_out)
    assert new is not None
    assert difference(old, new) == "data changed: +3 -1 ~2 (first: +x.png, -b/1.png, ~a.png)"


def test_a_catalogue_is_the_same_on_another_machine_and_in_parts(images: Path, tmp_path: Path) -> None:
    first = catalogue(folder(images).train)
    os.rename(images, tmp_path / "moved")
    assert catalogue(folder(tmp_path / "moved").train) == first
    assert catalogue(folder(tmp_path / "moved", crop=2).train) == first
    assert catalogue(folder(tmp_path / "moved", crop=2, cache=str(tmp_path / "c")).train) == first


def test_data_that_is_no_files_has_no_catalogue() -> None:
    split = load(DataConfig(name="digits"))
    assert catalogue(split.train, split.held_out) is None


def test_odd_names_are_escaped_in_the_difference() -> None:
    assert difference({}, {"a\nb.png": "1"}) == "data changed: +1 (first: +'a\\nb.png')"
