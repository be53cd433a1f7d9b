"""`diffunet convert`: between projects and back, and what it refuses, of which nothing is left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffunet import ClassicUNet, load, save
from diffunet.cli import main
from diffunet.cli.convert import To
from diffunet.interop import probe
from diffunet.interop.formats import FORMATS
from diffunet.interop.released import RELEASED, Told
from diffunet.segmenter import Segmenter
from diffunet.spec import SegmentInfo
from diffunet.zoo import PRESETS
from tests import tiny
from tests.interop.parity import case, same

ADM = "guided-diffusion-legacy-scale-block"
HEADS = ("--head-channels", "16", "--attention-order", "legacy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works; conversions are said in short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, path: str, **changes: Any) -> dict[str, torch.Tensor]:
    """A fixture's state dict as a file."""
    state = case(name).state | changes
    safetensors.torch.save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)
    return state


def convert(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run it, see that it is done, and give what it says."""
    capsys.readouterr()
    assert main(["convert", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(*arguments: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run it, see that it fails with this code, and that no file was made or changed; the message."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    assert main(["convert", *arguments]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return message


def test_the_formats_of_the_command_are_those_of_the_table() -> None:
    assert [member.value for member in To] == list(FORMATS)


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert all(word in shown for word in ("--attention-order", "--preset", "--state", "diffunet[export]", "--debug"))


def test_a_pickled_state_dict_goes_there_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = put(ADM, "theirs.pt")
    flags = (*HEADS, "--process.schedule", "cosine", "--model.block.dropout", "0.1", "--size", "8")
    said = convert("theirs.pt", "ours.safetensors", "--to", "diffunet", *flags, capsys=capsys)
    assert said["read"] == "adm"
    assert said["files"] == ["ours.safetensors"]
    assert said["difference"] <= 1e-6
    assert said["sizes"] == [[16, 16], [18, 16]]
    assert said["model"]["block"] | {"condition": "scale_shift", "dropout": 0.1, "eps": 1e-5} == said["model"]["block"]
    assert said["process"]["schedule"]["kind"] == "cosine"
    den = load("ours.safetensors")
    assert den.data is not None
    assert den.data.shape == (3, 8, 8)
    back = convert("ours.safetensors", "back.pt", "--to", "adm", "--attention-order", "legacy", capsys=capsys)
    assert back["read"] == "diffunet"
    assert same(torch.load("back.pt", weights_only=True), state)
    assert sorted(os.listdir()) == ["back.pt", "ours.safetensors", "theirs.pt"]


def test_the_average_of_a_checkpoint_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = case("ddim-two-levels").state
    mean = {f"module.{name}": value + 0.01 for name, value in state.items()}
    torch.save([{f"module.{name}": value for name, value in state.items()}, {}, 3, 4000, mean], "ckpt.pth")
    said = convert("ckpt.pth", "mean.safetensors", "--to", "ddpm", capsys=capsys)
    assert said["read"] == "ddpm, weights '4'"
    written = safetensors.torch.load_file("mean.safetensors")
    assert same(written, {name: value + 0.01 for name, value in state.items()})


def test_a_folder_of_diffusers_goes_there_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffunet import compat

    put("ddim-two-levels", "theirs.safetensors")
    convert("theirs.safetensors", "hub", "--to", "diffusers", "--size", "8", capsys=capsys)
    pipe = compat.diffusers().DDPMPipeline.from_pretrained("hub", local_files_only=True)
    assert tuple(pipe.unet.config.sample_size) == (8, 8)
    said = convert("hub", "back.safetensors", "--to", "ddpm", capsys=capsys)
    assert said["read"] == "diffusers"
    assert 0 < said["difference"] <= 1e-5  # their network against ours, not ours against itself
    assert same(safetensors.torch.load_file("back.safetensors"), case("ddim-two-levels").state)


def test_a_converted_edm_network_samples_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("edm-ncsnpp-skips", "theirs.safetensors")
    said = convert("theirs.safetensors", "ours.safetensors", "--to", "diffunet", capsys=capsys)
    assert said["assumed"] == {
        "model.block.dropout": 0.0,
        "process.schedule.kind": "karras",
        "process.prediction": "edm",
        "process.clip": False,
    }
    assert main(["sample", "ours.safetensors", "--n", "1", "--steps", "2", "--out", "one.npz"]) == 0
    back = convert("ours.safetensors", "back.safetensors", "--to", "edm", capsys=capsys)
    assert same(safetensors.torch.load_file("back.safetensors"), case("edm-ncsnpp-skips").state)
    assert back["difference"] == 0


def test_a_network_becomes_an_onnx_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tiny.denoiser(), "ours.safetensors")
    said = convert("ours.safetensors", "ours.onnx", "--to", "onnx", capsys=capsys)
    assert said["supported"] == "every batch; sides that are multiples of 1, at least 2"
    assert said["difference"] <= 1e-5
    assert said["files"] == ["ours.onnx"]
    message = refused("ours.onnx", "again.safetensors", "--to", "diffunet", code=2, capsys=capsys)
    assert "cannot be converted back; convert its source" in message


def test_a_segmentation_network_becomes_a_program_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = SegmentInfo(channels=1, classes=("cell", "border"), values=(0, 1))
    for padding in ("same", "valid"):
        net = ClassicUNet(base_channels=2, levels=2, padding=padding)
        save(Segmenter(net.eval(), info), f"{padding}.safetensors")
    said = convert("same.safetensors", "same.pt2", "--to", "pt2", capsys=capsys)
    assert said["supported"] == "every batch; sides that are multiples of 2, at least 4"
    torch.export.load("same.pt2", extra_files=(extra := {"diffunet.json": ""}))
    assert json.loads(extra["diffunet.json"])["task"] == "segment"
    message = refused("valid.safetensors", "valid.pt2", "--to", "pt2", code=2, capsys=capsys)
    assert "padding = 'valid'" in message
    assert "no process" in refused("same.safetensors", "hub", "--to", "diffusers", code=2, capsys=capsys)


def test_what_the_tensors_do_not_show_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(ADM, "theirs.safetensors")
    start = ("theirs.safetensors", "ours.safetensors", "--to", "diffunet")
    assert "--heads" in refused(*start, code=2, capsys=capsys)
    assert "--attention-order" in refused(*start, "--heads", "4", code=2, capsys=capsys)
    for steps in ((), ("--process.schedule.T", "4000")):
        assert "--process.schedule linear or cosine" in refused(*start, *HEADS, *steps, code=2, capsys=capsys)
    message = refused(*start, "--preset", "adm-64", code=2, capsys=capsys)
    assert "not the weights of preset 'adm-64' (12 differences): base_channels is 32, not 192" in message
    # the network alone needs no process
    convert("theirs.safetensors", "new.pth", "--to", "adm", *HEADS[:2], "--attention-order", "new", capsys=capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ours.safetensors", "x.pt", "--to", "diffunet"), "weights of diffunet is a file ending in .safetensors"),
        (("ours.safetensors", "x.onnx", "--to", "pt2"), "a program of torch.export is a file ending in .pt2"),
        (("ours.safetensors", "x.pt", "--to", "diffusers"), "a pipeline folder of diffusers is a folder"),
        (("ours.safetensors", "full", "--to", "diffusers"), "full is a folder that holds other things"),
        (("ours.safetensors", "ours.safetensors", "--to", "diffunet"), "would be replaced"),
        (("ours.safetensors", "x.pt", "--to", "edm"), "EDM's names need --size"),
        (("ours.safetensors", "x.pt", "--to", "edm", "--size", "8"), "EDM cannot say this network"),
        (("ours.safetensors", "x.pt2", "--to", "pt2", "--heads", "2"), "--heads: nothing here needs it"),
        (("ours.safetensors", "x.pt2", "--to", "pt2", "--train.steps", "2"), "only --model.KEY and --process.KEY"),
        (("ours.safetensors", "x.pt2", "--to", "pt2", "--haeds", "2"), "unknown argument '--haeds'"),
        (("ours.txt", "x.pt2", "--to", "pt2"), "ours.txt: weights are .safetensors"),
        (("ours.safetensors", "x.pt2", "--to", "ptt"), "ptt"),
        (("ours.safetensors", "x.pt", "--to", "adm"), "guided-diffusion's names need --attention-order"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_command_is_explained(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny.denoiser(), "ours.safetensors")
    Path("ours.txt").write_text("")
    Path("full").mkdir()
    Path("full/file").write_text("")
    assert message in refused(*arguments, code=2, capsys=capsys)


FOREIGN = {
    "inner_model.u_net.d_blocks.0.1.main.0.mapper.weight": "k-diffusion's image_v1: its GELU",
    "model.downs.0.0.block1.proj.weight": "denoising-diffusion-pytorch",
    "blocks.3.adaLN_modulation.1.weight": "a transformer",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": "UNet2DConditionModel",
    "down_blocks.0.resnets.0.conv1.weight": "convert its folder",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_without_counterpart_are_named(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.torch.save_file({name: torch.zeros(2)}, "theirs.safetensors")
    assert FOREIGN[name] in refused("theirs.safetensors", "x.safetensors", "--to", "diffunet", code=2, capsys=capsys)


def test_k_diffusion_as_it_is_saved_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("k-diffusion-image", "theirs.safetensors")
    message = refused("theirs.safetensors", "x.safetensors", "--to", "diffunet", code=2, capsys=capsys)
    assert "k-diffusion's image_v1" in message


def test_unknown_and_malformed_weights_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = ("x.safetensors", "--to", "diffunet")
    safetensors.torch.save_file({"layer\n.weight": torch.zeros(2)}, "a.safetensors")
    assert "no network that is known here (layer\\n.weight" in refused("a.safetensors", *target, code=4, capsys=capsys)
    put("ddim-two-levels", "b.safetensors", **{"conv_in.weight": torch.zeros(())})
    assert "has the shape ()" in refused("b.safetensors", *target, code=4, capsys=capsys)
    put("edm-adm-labels", "c.safetensors", **{"map_layer0.weight": torch.zeros(7, 5)})
    assert "c.safetensors" in refused("c.safetensors", *target, code=4, capsys=capsys)
    assert "does not exist" in refused("none.pt", *target, code=4, capsys=capsys)


def test_a_hostile_pickle_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, ("touch canary",)

    torch.save({"input_blocks.0.0.weight": Runs()}, "theirs.pt")
    message = refused("theirs.pt", "x.safetensors", "--to", "diffunet", code=7, capsys=capsys)
    assert "posix.system" in message
    assert not Path("canary").exists()


def test_values_that_are_not_finite_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("ddim-two-levels", "theirs.safetensors", **{"mid.attn_1.k.bias": torch.full((64,), torch.nan)})
    message = refused("theirs.safetensors", "x.safetensors", "--to", "diffunet", code=6, capsys=capsys)
    assert "not finite: mid.parts.1.qkv.bias" in message


@pytest.mark.parametrize(("target", "to"), [("x.safetensors", "ddpm"), ("hub", "diffusers")])
def test_a_result_that_computes_something_else_is_not_kept(
    target: str, to: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("ddim-two-levels", "theirs.safetensors")
    monkeypatch.setattr(probe, "LIMIT", -1.0)  # nothing is so equal
    assert "it was not kept" in refused("theirs.safetensors", target, "--to", to, code=6, capsys=capsys)


def test_presets_say_what_the_tensors_do_not() -> None:
    assert set(RELEASED) <= set(PRESETS)
    told = Told(preset="iddpm-cifar10").with_preset()
    assert (told.heads, told.head_channels, told.attention_order) == (4, None, "legacy")
    assert told.model == {"block": {"dropout": 0.3}, "time": {"scale": 0.25}}
    assert told.process == {"schedule": {"kind": "cosine", "T": 4000}}
    upsampler = Told(preset="adm-upsample-512", heads=2, process={"schedule": {"T": 500}}).with_preset()
    assert (upsampler.heads, upsampler.head_channels, upsampler.model) == (2, None, {"cond_channels": 3})
    assert upsampler.process == {"schedule": {"kind": "linear", "T": 500}}
