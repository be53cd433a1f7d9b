"""`diffunet ema`: averages of any length after training, and drawing from every set of weights that a run has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffunet import load, save
from diffunet.cli import main
from diffunet.cli.averages import early
from diffunet.cli.guidance import open_guide
from diffunet.cli.runs import open_denoiser
from diffunet.config import resolve
from diffunet.training.snapshots import listed
from diffunet.weights import described, load_segmenter
from tests.cli.test_sample import arrays
from tests.test_weights_segmenter import segmenter
from tests.training.runs import write_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with snapshots of two lengths at six steps and an average of a third; not to be changed."""
    folder = tmp_path_factory.mktemp("averages")
    config = write_config(folder, steps="12", checkpoint_every="6", held_out_every="12")
    flags = [
        "--process.schedule=cosine",
        "--process.prediction=v",
        "--ema.sigma_rel=0.05,0.1",
        "--ema.snapshot_every=2",
    ]
    assert main(["train", str(config), "--out", str(folder / "run"), *flags]) == 0
    assert main(["ema", str(folder / "run"), "--sigma-rel", "0.07"]) == 0
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run like it that may be changed."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What `diffunet ema` prints, or its error."""
    capsys.readouterr()
    assert main(["ema", *map(str, arguments)]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def same_weights(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    a, b = one.network.state_dict(), other.network.state_dict()
    largest = max(value.abs().max().item() for value in b.values())
    return all((a[name] - b[name]).abs().max().item() <= tolerance * largest for name in b)


# --- making them ------------------------------------------------------------------------------------------------------


def test_a_stored_length_is_made_again(run: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, copy, "--sigma-rel", "0.05,0.1")
    for length in ("0.050", "0.100"):
        path = copy / "ema" / f"sigma_rel-{length}.safetensors"
        assert f"wrote {path}: step 12, 12 snapshots of 0.05, 0.1, error of the profile" in text
        assert same_weights(load(path), load(copy / "ema" / f"step-00000012-{length}.safetensors"), 1e-6)
    assert f"next: diffunet sample {copy} --ema sigma_rel-0.100" in text


def test_an_earlier_step_has_a_name_of_its_own(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = json.loads(said(capsys, copy, "--sigma-rel=0.1", "--at-step=6", "--json"))["made"]
    assert (result["name"], result["step"], result["snapshots"]) == ("sigma_rel-0.100@6", 6, 6)
    assert result["profile_error"] < 1e-6
    assert same_weights(load(result["file"]), load(copy / "ema" / "step-00000006-0.100.safetensors"), 1e-6)


def test_the_file_says_what_it_is(run: Path) -> None:
    description, _, _ = described(run / "ema" / "sigma_rel-0.070.safetensors")
    assert (description["step"], description["updates"], description["sigma_rel"]) == (12, 12, 0.07)
    assert description["schedule"]["kind"] == "cosine"
    assert 0 < description["profile_error"] < 0.1
    assert description["data"] == described(run)[0]["data"]


def test_a_poor_fit_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not quite that average; more snapshots" in said(capsys, copy, "--sigma-rel", "0.01")


def test_the_list_has_the_names_that_ema_takes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, run, "--list").splitlines()[1:]
    assert [line.strip() for line in lines] == [
        *("ema", "raw", "0.050", "0.100", "sigma_rel-0.070", "early"),
        *(f"{length}@STEP (STEP 2, 4, 6, 8, 10, 12)" for length in ("0.050", "0.100")),
    ]
    result = json.loads(said(capsys, run, "--list", "--json"))
    assert result["kept"] == ["0.050", "0.100"]
    assert list(result["made"]) == ["sigma_rel-0.070"]
    assert len(result["snapshots"]) == 12


def test_a_segmentation_run_has_averages_too(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its snapshots as the trainer writes them; the network is a real one."""
    config = {"run": {"task": "segment"}, "model": {"kind": "classic"}, "data": {"name": "pairs", "path": "."}}
    (copy / "config.json").write_text(json.dumps(resolve(config).model_dump(mode="json")))
    one = segmenter()
    shutil.rmtree(copy / "ema")
    for length in ("0.050", "0.100"):
        path = copy / "ema" / f"step-00000012-{length}.safetensors"
        save(one, path, step=12, updates=12, sigma_rel=float(length))
    text = said(capsys, copy, "--sigma-rel=0.1")
    path = copy / "ema" / "sigma_rel-0.100.safetensors"
    assert f"next: diffunet segment {path} IMAGE..." in text
    assert same_weights(load_segmenter(path), one, 1e-6)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give --sigma-rel LENGTHS, for example 0.05,0.1, or --list"),
        (["--sigma-rel=0.05", "--list"], "or --list"),
        (["--list", "--at-step=2"], "--at-step is for --sigma-rel"),
        (["--sigma-rel=short"], "'short' should be numbers with commas"),
        (["--sigma-rel=0.3"], "relative length 0.3 is none"),
        (["--sigma-rel=nan"], "relative length nan is none"),
        (["--sigma-rel=0.05,0.0501"], "must differ within three decimals"),
        (["--sigma-rel=0.05", "--at-step=5"], "no snapshot of step 5"),
    ],
)
def test_wrong_usage_is_explained(
    run: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    before = sorted(run.rglob("*"))
    assert expected in said(capsys, run, *flags, code=2)
    assert sorted(run.rglob("*")) == before, "nothing is written"


def test_a_run_without_snapshots_is_told_how_to_make_them(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "train with ema.sigma_rel = [0.05, 0.1]" in said(capsys, trained, "--sigma-rel=0.05", code=2)
    assert "no snapshots: ema.sigma_rel and ema.snapshot_every" in said(capsys, trained, "--list")
    assert "is not a run folder" in said(capsys, trained / "samples", "--list", code=4)


# --- drawing from them ------------------------------------------------------------------------------------------------

FILES = {
    "ema": "weights",
    "0.05": "ema/step-00000012-0.050",
    "ema-0.050": "ema/step-00000012-0.050",
    "0.100": "ema/step-00000012-0.100",
    "0.05@4": "ema/step-00000004-0.050",
    "early": "ema/step-00000002-0.050",  # 2 and 4 are as near to a quarter of 12
    "0.07": "ema/sigma_rel-0.070",
    "sigma_rel-0.07": "ema/sigma_rel-0.070",
}


@pytest.mark.parametrize("name", FILES)
def test_a_name_opens_its_file(run: Path, name: str) -> None:
    assert same_weights(open_denoiser(run, name), load(run / f"{FILES[name]}.safetensors"))


def test_sampling_goes_by_name(run: Path, tmp_path: Path) -> None:
    flags = ["--n=3", "--class=4"]
    found = {name: arrays(run, tmp_path, *flags, "--ema", name) for name in ("ema", "raw", "0.05@2", "0.07")}
    assert len({rows.tobytes() for rows in found.values()}) == 4
    made = arrays(run / "ema" / "sigma_rel-0.070.safetensors", tmp_path, *flags)
    assert np.array_equal(found["0.07"], made)


def test_a_checkpoint_that_is_newer_than_the_snapshots_goes_first(copy: Path) -> None:
    for path in (copy / "ema").glob("step-00000012-*"):
        path.rename(copy / path.name)
    for name, length in (("0.05", "0.050"), ("ema-0.1", "0.100")):
        assert same_weights(open_denoiser(copy, name), load(copy / f"step-00000012-{length}.safetensors"))
    (copy / "checkpoints" / "step-00000012").rename(copy / "elsewhere")
    assert same_weights(open_denoiser(copy, "0.05"), load(copy / "ema" / "step-00000010-0.050.safetensors"))


@pytest.mark.parametrize("name", ["best", "0.2", "0.05@3", "sigma_rel-0.05", "ema-0.07", "0.07@2", "0.05@"])
def test_unknown_weights_are_an_error_that_lists_them(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    capsys.readouterr()
    assert main(["sample", str(run), "--n=1", "--ema", name]) == 2
    error = capsys.readouterr().err
    assert f"has no weights '{name}'; there are: ema, raw, 0.050, 0.100, sigma_rel-0.070, early, 0.050@STEP" in error
    assert f"`diffunet ema {run} --sigma-rel 0.07`" in error


def test_early_is_the_shortest_average_at_a_quarter_of_the_way(run: Path) -> None:
    found = early(listed(run))
    assert found is not None
    assert (found.step, found.length) == (2, "0.050")
    assert early(listed(run)[-2:]) is None


# --- a weaker model for free ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), [("0.05@4", "step-00000004-0.050"), ("early", "step-00000002-0.050")])
def test_an_early_average_guides_like_its_file(run: Path, tmp_path: Path, name: str, file: str) -> None:
    flags = ["--n=3", "--class=4", "--guidance=2"]
    by_name = arrays(run, tmp_path, *flags, "--guide", name)
    assert np.array_equal(by_name, arrays(run, tmp_path, *flags, f"--guide={run / 'ema' / file}.safetensors"))
    assert not np.array_equal(by_name, arrays(run, tmp_path, *flags[:2]))


def test_a_guide_of_another_name_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = ["--n=1", "--guidance=2", f"--out={tmp_path / 'x.npz'}"]
    for guide, code, expected in (
        ("0.2", 2, "has no weights '0.2'; there are: ema, raw"),
        ("weaker", 4, "--guide weaker does not exist"),
    ):
        assert main(["sample", str(run), *flags, "--guide", guide]) == code
        error = capsys.readouterr().err
        assert expected in error
        assert "0.050@STEP" in error
    weights = run / "weights.safetensors"
    assert main(["sample", str(weights), *flags, "--guide", "early"]) == 4
    assert "--ema early needs a run folder" in capsys.readouterr().err
    # a path that exists goes before a name
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "early")
    with torch.no_grad():
        assert same_weights(open_guide(run, "early"), load(run))
