"""Programs compute what their network does, for other batches and sizes than they were traced with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffunet import UNet
from diffunet.errors import ConfigError
from diffunet.interop import onnx, probe, torch_export
from diffunet.spec import InBlock, ResidualBlock, StridedConv
from tests.nn.networks import tiny

DESCRIPTION = {"prediction": "eps"}


@pytest.fixture(scope="module")
def net() -> UNet:
    """Two levels, attention, classes, an image condition and a resampling inside the blocks."""
    return tiny(
        channel_multipliers=(1, 2),
        num_classes=4,
        null_class=True,
        cond_channels=1,
        down=InBlock(),
        up=InBlock(),
        block=ResidualBlock(groups=4, condition="scale_shift"),
    )


@pytest.fixture(scope="module")
def folder(net: UNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for both, since tracing takes the time."""
    made = tmp_path_factory.mktemp("programs")
    program = torch_export.program(net)
    torch_export.save(program, made / "net.pt2", DESCRIPTION)
    onnx.save(program, net, made / "net.onnx", DESCRIPTION)
    return made


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def run(request: pytest.FixtureRequest, folder: Path) -> probe.Runner:
    module: Any = {"onnx": onnx, "pt2": torch_export}[request.param]
    return module.open_runner(folder / f"net.{request.param}")


def given(net: UNet, batch: int, sides: tuple[int, ...]) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, *sides, generator=draw)
    cond = torch.randn(batch, 1, *sides, generator=draw)
    return {"x": x, "t": torch.arange(batch) * 90.5, "class_labels": torch.arange(batch) % 5, "cond": cond}


@pytest.mark.parametrize(("batch", "sides"), [(1, (4, 4)), (5, (12, 40)), (70, (8, 6))], ids=str)
def test_a_program_runs_on_other_batches_and_sizes(
    net: UNet, run: probe.Runner, batch: int, sides: tuple[int, ...]
) -> None:
    inputs = given(net, batch, sides)
    with torch.no_grad():
        ours = net(**inputs)
    theirs = run(inputs)
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()


def test_other_sizes_are_refused_by_the_program(net: UNet, run: probe.Runner) -> None:
    assert torch_export.supported(net.config) == "every batch; sides that are multiples of 2, at least 4"
    with pytest.raises(Exception, match=r"Guard failed|Non-zero status code"):
        run(given(net, 1, (9, 8)))


def test_an_onnx_file_names_its_inputs_and_describes_itself(folder: Path) -> None:
    session = onnx.library("onnxruntime").InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "x": ["batch", 3, "height", "width"],
        "t": ["batch"],
        "class_labels": ["batch"],
        "cond": ["batch", 1, "height", "width"],
        "out": ["batch", 3, "height", "width"],
    }
    assert json.loads(session.get_modelmeta().custom_metadata_map["diffunet"]) == DESCRIPTION


def test_a_pt2_file_describes_itself(folder: Path) -> None:
    torch.export.load(folder / "net.pt2", extra_files=(extra := {torch_export.DESCRIPTION: ""}))
    assert json.loads(extra[torch_export.DESCRIPTION]) == DESCRIPTION


def test_signals_with_other_borders_have_programs_too() -> None:
    net = tiny(dims=1, channel_multipliers=(1, 2), padding="circular", down=StridedConv(pad="asymmetric"))
    module = torch_export.program(net).module()
    assert probe.difference(probe.runner(net), lambda given: module(*given.values()), net, None) <= 1e-6


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: UNet) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"ONNX needs onnxscript: pip install 'diffunet\[export\]'"):
        onnx.write(net, tmp_path / "x.onnx", {}, None)
    assert not list(tmp_path.iterdir())
