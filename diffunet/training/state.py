"""All that a run is between two steps, and how it becomes the files of a checkpoint and back.

No random state is in it (see indexstream), and nothing that needs pickle: tensors are safetensors, numbers are JSON.
Processes that share the network (see parallel) write a file each, `network-0-of-2.safetensors`; a tensor that stands in
several of them is cut along its first side, and any number of processes can put it together again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from diffunet import weights
from diffunet.errors import CheckpointError
from diffunet.training.averages import Averages
from diffunet.training.checkpoint import Checkpoint
from diffunet.training.parallel import cut_like, share

MOMENTS = ("exp_avg", "exp_avg_sq")
Parts = dict[str, dict[str, Tensor]]  # name of a file -> its tensors


@dataclass
class Counters:
    """Numbers that go with the tensors.

    step counts passes of the loop, skipped those that left the weights alone; precision and threads are those the run
    began with, since other ones would give other bits. shift is how much further the data is than the steps, since
    each rewind goes on with later data.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    precision: str = "no"
    threads: int = 1
    world: int = 1
    shift: int = 0
    rewinds: int = 0

    @property
    def updates(self) -> int:
        """Steps that changed the weights; the learning rate and the averages follow these."""
        return self.step - self.skipped

    @property
    def place(self) -> int:
        """Where in the stream of the data the next step reads, in steps."""
        return self.step + self.shift


LATER = {"shift": 0, "rewinds": 0}  # numbers that checkpoints of the first versions do not have


def parts_of(
    network: nn.Module, averages: Averages, optimizer: torch.optim.Optimizer, task: Mapping[str, Tensor]
) -> Parts:
    """The tensors of a checkpoint by file: the network, each average, the moments, what a task remembers."""
    buffers = buffers_of(network)
    moments = {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
        if parameter in optimizer.state
    }
    parts: Parts = {"network": dict(network.state_dict())}
    parts |= {name: tensors | buffers for name, tensors in averages.tensors.items()}
    return parts | {"optimizer": moments} | ({"task": dict(task)} if task else {})


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state that are no parameters."""
    parameters = {name for name, _ in network.named_parameters()}
    return {name: value for name, value in network.state_dict().items() if name not in parameters}


def to_files(parts: Parts, numbers: Mapping[str, Any], suffix: str | None = "") -> dict[str, bytes]:
    """The files of one process, name -> bytes.

    Args:
        parts: see `parts_of`; a cut tensor gives this process's share.
        numbers: JSON values under `counters`, `scaler`, `guard` and `noise_scale`; empty but on the main process.
        suffix: stands behind the names; None where this process writes nothing.
    """
    if suffix is None:
        return {}
    files = {f"{name}{suffix}.safetensors": _pack(tensors) for name, tensors in parts.items()}
    return files | ({"state.json": json.dumps(numbers, sort_keys=True).encode()} if numbers else {})


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: share(t.detach()).cpu().contiguous() for name, t in tensors.items()})


def numbers_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON values of a checkpoint; those that an older version did not write are empty.

    Raises:
        CheckpointError: state.json is missing or holds something else.
    """
    try:
        numbers = json.loads(_content(checkpoint, "state.json"))
        found = {"counters": numbers["counters"], "scaler": numbers["scaler"]}
        found |= {name: dict(numbers.get(name) or {}) for name in ("guard", "noise_scale")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{checkpoint.path / 'state.json'} does not hold the state of a run; use --out for a new one"
        ) from None
    return found


def counters_of(checkpoint: Checkpoint) -> Counters:
    """The counters of a checkpoint.

    Raises:
        CheckpointError: it was written by another version.
    """
    stored, kinds = numbers_of(checkpoint)["counters"], {n: type(value) for n, value in asdict(Counters()).items()}
    if isinstance(stored, dict):
        stored = LATER | stored
    known = isinstance(stored, dict) and {name: type(value) for name, value in stored.items()} == kinds
    if not known or stored["step"] != checkpoint.step:
        raise CheckpointError(f"{checkpoint.path} was written by another version of diffunet; its state cannot be read")
    return Counters(**stored)


def _content(checkpoint: Checkpoint, name: str) -> bytes:
    if name not in checkpoint.files:
        raise CheckpointError(f"{checkpoint.path} holds no {name}; use --out for a new run")
    return checkpoint.files[name]


def tensors_of(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The whole tensors of `network`, `ema`, `ema-0.050`, `optimizer` or `task`.

    Raises:
        CheckpointError: a file is not there, or no safetensors file.
        UnsafeError: its header is beyond the limits.
    """
    pattern = re.compile(rf"{re.escape(part)}-(\d+)-of-(\d+)\.safetensors")
    cuts = sorted((int(match[1]), int(match[2])) for match in map(pattern.fullmatch, checkpoint.files) if match)
    if not cuts:
        return _read(checkpoint, f"{part}.safetensors")
    if cuts != [(rank, cuts[0][1]) for rank in range(cuts[0][1])]:
        raise CheckpointError(f"{checkpoint.path} holds only {len(cuts)} of the {cuts[0][1]} files of {part}")
    shares = [_read(checkpoint, f"{part}-{rank}-of-{count}.safetensors") for rank, count in cuts]
    return {
        name: torch.cat(pieces) if len(pieces := [one[name] for one in shares if name in one]) > 1 else pieces[0]
        for name in shares[0]
    }


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    data, path = _content(checkpoint, name), checkpoint.path / name
    weights.check_header(data, path)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # safetensors' Rust errors share no base class
        raise CheckpointError(f"{path} is no safetensors file: {ascii(str(error))[1:-1]}; use --out") from None


def from_checkpoint(
    checkpoint: Checkpoint, network: nn.Module, averages: Averages, optimizer: torch.optim.Optimizer
) -> None:
    """Put a verified checkpoint into a network, its averages and its optimizer.

    Raises:
        CheckpointError: it belongs to another network; the first five differences are named.
    """
    _fill(network, tensors_of(checkpoint, "network"), checkpoint)
    for name in averages.tensors:
        tensors = tensors_of(checkpoint, name)
        weights.check_fit(network, tensors, checkpoint.path)
        averages.restore(name, tensors)
    moments = tensors_of(checkpoint, "optimizer")
    wanted = {f"{n}.{moment}": p.shape for n, p in network.named_parameters() for moment in MOMENTS}
    if moments and {name: moment.shape for name, moment in moments.items()} != wanted:
        raise CheckpointError(f"{checkpoint.path / 'optimizer.safetensors'} does not fit the network")
    updates = torch.tensor(float(counters_of(checkpoint).updates))
    optimizer.state.clear()
    for name, parameter in network.named_parameters():
        if f"{name}.{MOMENTS[0]}" not in moments:
            continue
        # fused AdamW keeps its step count beside the parameter, on the parameter's device
        stored: dict[str, Tensor] = {"step": updates.to(parameter.device, copy=True)}
        stored |= {moment: cut_like(moments[f"{name}.{moment}"], parameter) for moment in MOMENTS}
        optimizer.state[parameter] = stored


def _fill(network: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Whole tensors into a network that may be cut."""
    weights.check_fit(network, tensors, checkpoint.path)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(cut_like(tensors[name], value))


def task_of(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a task remembered, of the names and kinds that it remembers now; nothing where that is nothing.

    Raises:
        CheckpointError: the file is not there, or holds something else.
    """
    if not wanted:
        return {}
    tensors = tensors_of(checkpoint, "task")
    if {name: (t.dtype, t.ndim) for name, t in tensors.items()} != {n: (t.dtype, t.ndim) for n, t in wanted.items()}:
        raise CheckpointError(f"{checkpoint.path / 'task.safetensors'} does not fit the objective")
    return tensors
