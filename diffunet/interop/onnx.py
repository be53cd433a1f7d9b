"""A network as an ONNX file by torch's exporter, with its batch and its sides open; ONNX Runtime runs it to check.

Inputs are `x`, `t` and what else the network takes (`class_labels`, `cond`, `vector`, `previous`), the output is `out`.
The metadata holds the description of the denoiser under `diffunet`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from diffunet.errors import ConfigError
from diffunet.interop import probe, torch_export
from diffunet.schedules import Schedule

LARGEST = 2**31 - 2**24  # bytes that one file may hold; what is more stands beside it, in NAME.onnx.data


def library(name: str) -> ModuleType:
    """One of the libraries of the extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"ONNX needs {name}: pip install 'diffunet[export]'") from None


def write(net: nn.Module, path: Path, description: dict[str, Any], schedule: Schedule | None) -> None:
    """Write the network to an .onnx file.

    Raises:
        ConfigError: the extra is not installed, or torch cannot follow the network.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    save(torch_export.program(net, schedule), net, path, description)


def save(program: ExportedProgram, net: nn.Module, path: Path, description: dict[str, Any]) -> None:
    """Write a network's program as ONNX, with the description of its denoiser inside."""
    config: Any = net.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated ways
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    names = list(probe.inputs(net, probe.sizes(config)[0], None))
    rename(exported.model.graph, names, torch_export.SIDES[config.dims])
    exported.model.metadata_props["diffunet"] = json.dumps(description)
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    exported.save(path, external_data=size > LARGEST)


def rename(graph: Any, names: list[str], sides: tuple[str, ...]) -> None:
    """Call the inputs by `names`, the output `out`, and their open sides by what they are.

    The exporter's own way of naming lets an input clash with a value inside.
    """
    inner = [value for node in graph.all_nodes() for value in node.outputs] + list(graph.initializers.values())
    for value in inner:
        if value.name in (*names, "out"):
            value.name = f"{value.name}_inner"
    words = dict(zip(map(str, graph.inputs[0].shape), ("batch", "", *sides), strict=True))
    for value, name in zip([*graph.inputs, *graph.outputs], [*names, "out"], strict=True):
        value.name = name
        value.shape = type(value.shape)([side if isinstance(side, int) else words[str(side)] for side in value.shape])


def open_runner(path: Path) -> probe.Runner:
    """What ONNX Runtime computes of an .onnx file on the CPU."""
    session = library("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(given: Any) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: given[name].numpy() for name in names})[0])

    return run
