"""`diffunet inspect`: presets, configs, runs and weights, as text, as JSON and as pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffunet.cli import main
from diffunet.nn import PRESETS
from tests.training.runs import write_config

SMALL = ["--model.base_channels", "32", "--model.channel_multipliers", "1,1", "--model.blocks_per_level", "1"]
SMALL += ["--model.attention.head_channels", "32"]


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints."""
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def values(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What the command prints as JSON."""
    found: dict[str, Any] = json.loads(said(capsys, *arguments, "--json"))
    return found


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("diffunet: error[E-")
    assert "Traceback" not in error
    return error


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_u_net_of_2015_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "unet-2015", "--size", "572")
    assert text.startswith("unet-2015: classic, 2-D, 31,030,658 parameters\n1x572x572 in, 2x388x388 out")
    assert "sizes     572 570 568 / 284 282 280 / 140 138 136 / 68 66 64 / 32 30 28 / 56 54 52" in text
    assert "104 102 100 / 200 198 196 / 392 390 388" in text
    assert "channels  1 64 / 64 128 / 128 256 / 256 512 / 512 1024 / 1024 512" in text
    assert "receptive field by construction: 188 to 204 positions" in text
    assert said(capsys, "unet-2015") == text, "its own size is that of the paper"


def test_every_column_of_the_table_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = values(capsys, "small", "--batch-size", "2")["cost"]
    for key in ("parameters", "macs", "kept_bytes"):
        assert sum(part[key] for part in found["parts"]) == found["total"][key]
    assert sum(role["macs"] for role in found["roles"].values()) == found["total"]["macs"]
    assert (found["takes"], found["gives"], found["batch"]) == ([3, 32, 32], [3, 32, 32], 2)
    text = said(capsys, "small", "--batch-size", "2")
    for part in found["parts"]:
        assert any(line.startswith(f"{part['name']} ") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120


def test_all_that_can_be_asked_is_answered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--receptive-field", "--aliasing", "--gradients", "--alternatives", "--time", "--measure", "--seeds", "1"]
    model = [*SMALL, "--model.attention_levels", "1", "--model.checkpoint_levels", "0,1"]
    found = values(capsys, "small", *model, "--size", "16", *asked, "--out", tmp_path)
    assert set(found) == {
        *("name", "files", "cost", "joins", "receptive_field", "memory", "effective_receptive_field"),
        *("alternatives", "aliasing", "gradients", "measured_memory"),
    }
    assert [Path(name).name for name in found["files"]] == ["diagram.svg", "diagram.png", "receptive_field.png"]
    assert all(Path(name).stat().st_size > 5000 for name in found["files"])
    assert found["joins"]["saved"]["macs"] > 0
    assert set(found["memory"]) == {"as configured"}, "which recomputes all levels already"
    assert [rival["name"] for rival in found["alternatives"]] == ["as configured", "direct", "dilated"]
    assert all(rival["seconds"] > 0 for rival in found["alternatives"])
    assert {peak["task"] for peak in found["measured_memory"]["peaks"]} == {"training", "inference"}
    assert found["aliasing"]["network"]["2"] < 1e-4 < found["aliasing"]["network"]["1"]
    assert found["effective_receptive_field"]["seeds"] == 1


# --- what it is asked about ------------------------------------------------------------------------------------------


def test_a_config_needs_only_its_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\npreset = "unet-2015-same"\nbase_channels = 8\n[data]\nname = "pairs"\nsize = [24, 16]\n')
    found = values(capsys, path)
    assert found["name"] == "mine.toml"
    assert found["cost"]["takes"] == [1, 24, 16]
    path.write_text("[model]\ndims = 1\nbase_channels = 32\nchannel_multipliers = [1]\nattention_levels = []\n")
    assert values(capsys, path, "--size", "20")["cost"]["gives"] == [3, 20]


def test_a_run_is_inspected_with_its_weights(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = values(capsys, trained, "--gradients", "--aliasing", "--receptive-field", "--seeds", "1")
    assert own["cost"]["takes"] == [1, 8, 8], "the sides of its data"
    weights = tmp_path / "some.safetensors"
    shutil.copy(trained / "weights.safetensors", weights)
    same = values(capsys, weights, "--gradients", "--aliasing", "--receptive-field", "--seeds", "1")
    assert same | {"name": own["name"]} == own | {"cost": same["cost"]}
    random = values(capsys, trained / "config.json", "--size", "8", "--gradients")
    assert random["cost"]["total"] == own["cost"]["total"]
    assert random["gradients"] != own["gradients"]
    text = said(capsys, trained, "--gradients")
    assert "(its own weights)" in text
    assert "(random weights)" in said(capsys, trained, "--gradients", "--model.base_channels", "16")


def test_a_run_without_weights_is_its_config(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "config.json", tmp_path / "config.json")
    assert values(capsys, tmp_path)["cost"]["takes"] == [1, 32, 32]


def test_weights_of_named_classes_too(capsys: pytest.CaptureFixture[str], named: Path) -> None:
    assert values(capsys, named)["cost"]["takes"] == [1, 6, 5]


def test_every_key_of_the_model_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--model.attention_levels", "0", "--model.skip=add", "--model.down", "max_pool"]
    flags += ["--model.dims", "3"]
    found = values(capsys, "small", *flags, "--size", "4x6x8")["cost"]
    assert found["takes"] == [3, 4, 6, 8]
    assert "down" not in found["roles"], "a pool multiplies nothing"
    assert "skip fusion" not in found["roles"], "a sum of equal widths multiplies nothing"


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adm-46"], "unknown preset 'adm-46'; did you mean 'adm-64'?"),
        (["runs/nothing"], "runs/nothing does not exist; name a preset, a config .toml, a run folder or a weights"),
        (["nothing.toml"], "nothing.toml does not exist"),
        (["small", "--size", "big"], "--size big: should be a side or HxW, for example 32 or 48x64"),
        (["small", "--size", "0"], "--size 0x0: should be 2 sides of at least 1"),
        (["small", "--size", "8x8x8"], "--size 8x8x8: should be 2 sides of at least 1, or one for all"),
        (["unet-2015", "--size", "64"], "unet-2015 cannot take images of 64x64: sides of (64, 64) are too small"),
        (["small", "--model.base_chanels", "32"], "unknown key 'model.base_chanels'; did you mean 'base_channels'?"),
        (["small", "--model.skip", "cat"], "one of: concat, bottleneck, add"),
        (["small", "--train.steps", "3"], "only keys of the model change what is inspected: --model.KEY VALUE"),
        (["small", "--sise", "3"], "unknown argument '--sise'"),
        (["small", "--batch-size", "0"], "see diffunet inspect --help"),
    ],
)
def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert expected in refusal(capsys, 2, *arguments)


def test_what_is_no_run_or_damaged_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, named: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a run folder: it holds no config.json" in refusal(capsys, 4, tmp_path / "empty")
    (tmp_path / "bad.toml").write_text("[model")
    assert "bad.toml is not well-formed" in refusal(capsys, 2, tmp_path / "bad.toml")
    (tmp_path / "model.toml").write_text("model = 3")
    assert "model should be a table of keys, not int" in refusal(capsys, 2, tmp_path / "model.toml")
    data = bytearray(named.read_bytes())
    data[-1] ^= 1
    named.write_bytes(data)
    assert "is damaged" in refusal(capsys, 4, named)


# --- what it costs ---------------------------------------------------------------------------------------------------

FRESH = """
import json, re, sys
from diffunet.cli import main
code = main(sys.argv[1:])
# not getrusage, whose peak begins with that of the process that started this one
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"code": code, "kilobytes": peak, "modules": sorted(sys.modules)}))
"""


def fresh(*arguments: str) -> dict[str, Any]:
    """A command in a fresh process: its exit code, peak memory and the modules that it loaded."""
    run = subprocess.run(
        [sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_a_large_network_allocates_no_weights() -> None:
    """296 million parameters are 1.2 GB; a process with torch in it has some 0.5 GB."""
    found = fresh("inspect", "adm-64", "--size", "64")
    assert found["code"] == 0
    assert found["kilobytes"] < 0.9e6
    assert "matplotlib" not in found["modules"]


def test_a_mistake_is_answered_without_torch() -> None:
    found = fresh("inspect", "adm-46")
    assert found["code"] == 2
    assert "torch" not in found["modules"]


def test_a_config_of_the_house_can_be_inspected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert values(capsys, write_config(tmp_path))["name"] == "tiny.toml"
    digits = Path(__file__).parents[2] / "configs" / "digits.toml"
    assert values(capsys, digits)["cost"]["total"]["parameters"] > 0


def test_the_summary_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "inspect NETWORK" in capsys.readouterr().out
    assert "adm-64" in PRESETS
