"""report.html: one whole page that needs nothing else, from any run folder, whatever is in it."""

from __future__ import annotations

import builtins
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffunet import report
from tests.report.conftest import Make, records

OLD = sorted((Path(__file__).parents[1] / "fixtures").glob("format-*/run"))
VOID = {"meta", "input", "img", "br", "link"}
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e\"'&amp;<img src=x onerror=y>$\\frac{"


class Page(HTMLParser):
    """Collects tags and text; notes every tag that is not closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.wrong += self.open
        for svg in self.svgs:
            ElementTree.fromstring(svg)  # raises where it is not well formed

    @property
    def svgs(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.source, flags=re.DOTALL)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def made(run: Path) -> Page:
    """The page of a run, which must be whole and must ask for nothing from anywhere."""
    page = Page(report.write(run))
    assert page.wrong == []
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, name, value)
    named = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(named) == len(set(named)), "two elements of one name"
    assert not re.search(r"url\((?!#)", page.source)
    return page


@pytest.mark.parametrize("folder", OLD, ids=lambda folder: folder.parent.name)
def test_an_old_run_has_a_report(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    page = made(run)
    for words in ("tiny", "done", "step 2 of 2", "torch 2.13.0+cpu", "precision no", "0.9601", "model.base_channels"):
        assert words in page.text, words
    assert "train.clip_norm" not in page.text.split("the whole config")[0], "a default is listed as a change"


def test_a_run_that_goes_well_shows_every_curve(make: Make) -> None:
    page = made(make(records(1000)))
    for title in ("Loss", "Gap", "Held-out loss by noise", "Learning rate", "Gradient norm", "Images a second",
                  "Share of the time that waited for data (%)", "Peak memory (MiB)"):  # fmt: skip
        assert ("h3", {}) in page.tags
        assert title in page.text, title
    assert len(page.svgs) == 9
    assert "Not over-fitting yet" in page.text
    assert "currentColor" in page.source
    assert not re.search(r"#0[12]0[0-9a-f]{3}\b", page.source), "a stand-in colour is left"


def test_the_step_from_which_it_over_fits_is_said_and_drawn(make: Make) -> None:
    lines = records(1000, every=50)
    for record in lines:
        if "held_out" in record and record["step"] > 400:
            record["held_out"]["loss"] += (record["step"] - 400) / 500
    page = made(make(lines))
    (since,) = set(re.findall(r"over-fits since step (\d+)", page.text))
    assert 400 < int(since) <= 600
    assert any("over-fits" in svg for svg in page.svgs)


def test_hostile_text_stays_text(make: Make) -> None:
    lines = records(200)
    lines[-1]["held_out"]["dice"] = {HOSTILE: 0.5}
    lines[-1]["copies"] = {
        "samples": HOSTILE,
        "extractor": HOSTILE,
        "pixels": {"median": HOSTILE, "flag": True},
        "nearest": [{"seed": HOSTILE, "pixels": {"name": HOSTILE, "distance": HOSTILE}}, HOSTILE],
    }
    event = dict.fromkeys(("time", "kind", "step", "message", HOSTILE), HOSTILE)
    config = {"run": {"name": HOSTILE, HOSTILE: HOSTILE}, HOSTILE: [HOSTILE], "train": HOSTILE, "model": HOSTILE}
    run = make(lines, (event,), config, dict.fromkeys(("state", "message", "host", "pid"), HOSTILE))
    for name in ("environment", "evaluation", "bits_per_dim"):
        shutil.copy(run / "config.json", run / f"{name}.json")
    page = made(run)
    assert "<script>alert(1)</script>" in page.text, "not lost, but shown as text"
    assert "\x1b" not in page.source
    assert "\u202e" not in page.source
    assert "img" not in {tag for tag, _ in page.tags}


WILD: list[Any] = [
    None,
    True,
    "x",
    [],
    {},
    [1, "a", None],
    {"loss": {}},
    -1,
    1e308,
    10**400,
    float("nan"),
    {"step": {}},
]


def test_metrics_of_any_kind_do_no_harm(make: Make) -> None:
    random = np.random.default_rng(0)
    keys = ["step", "loss", "lr", "grad_norm", "seconds", "data_seconds", "held_out", "seen", "memory", "copies"]
    lines = records(200, every=10)
    for record in lines[::3]:
        record[keys[random.integers(len(keys))]] = deepcopy(WILD[random.integers(len(WILD))])
        for part in (record.get("held_out"), record.get("seen")):
            if isinstance(part, dict):
                part[["loss", "bins", "dice"][random.integers(3)]] = deepcopy(WILD[random.integers(len(WILD))])
    made(make(lines))


@pytest.mark.parametrize("value", WILD, ids=lambda value: repr(value)[:20])
def test_other_files_of_any_kind_do_no_harm(make: Make, value: Any) -> None:
    fields = dict.fromkeys(("kind", "step", "message", "time", "state", "pid", "host", "train", "run", "model"), value)
    made(make([], (fields,), fields, fields))


def test_folders_with_little_in_them_have_a_report_too(tmp_path: Path) -> None:
    assert "No step has been logged yet" in made(tmp_path).text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null, "skipped": true}\n{"step": 2')
    assert "1 x skipped" in made(tmp_path).text


def test_pictures_are_in_the_page_and_broken_ones_are_named(make: Make) -> None:
    run = make(records(100))
    (run / "samples").mkdir()
    for step in range(10, 200, 10):
        Image.new("L", (64, 64), step).save(run / "samples" / f"step-{step:08d}.png")
    Image.new("RGB", (3000, 2000)).save(run / "samples" / "step-00000190.png")
    (run / "samples" / "step-00000010.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page = made(run)
    assert sum(tag == "img" for tag, _ in page.tags) == 7
    assert "8 of 19 previews" in page.text
    assert "Unreadable: step 10." in page.text
    assert "step 190" in page.text
    assert len(page.source) < 1_000_000


def test_without_matplotlib_there_are_numbers_and_a_hint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    page = made(make(records(300)))
    assert page.svgs == []
    assert "pip install 'diffunet[plot]'" in page.text
    assert "Loss: held-out images" in page.text


def test_a_report_of_100_000_steps_takes_seconds(make: Make) -> None:
    """CPU seconds: about two, and four times that where two processes share the caches of the machine."""
    run = make(records(100_000, every=1000))
    begun = time.process_time()
    report.write(run)
    assert time.process_time() - begun < 8
    assert (run / "report.html").stat().st_size < 2_000_000


def test_reports_of_a_run_that_goes_on_take_a_hundredth_of_its_time(make: Make) -> None:
    writer = report.Writer(make(records(10)))
    assert not writer(), "the first one comes once it can be paid for"
    writer.cost = 0.0
    assert writer()
    assert writer.cost > 0
    assert not writer()
