"""All that a run is between two steps, and how it becomes the files of a checkpoint and back.

No random state is in it (see indexstream), and nothing that needs pickle: tensors are safetensors, numbers are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from diffunet import weights
from diffunet.errors import CheckpointError
from diffunet.training.checkpoint import Checkpoint
from diffunet.training.ema import EMA

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Counters:
    """Numbers that go with the tensors.

    step counts passes of the loop, skipped those whose gradient was not finite; precision and threads are those the
    run began with, since other ones would give other bits.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    precision: str = "no"
    threads: int = 1
    world: int = 1

    @property
    def updates(self) -> int:
        """Steps that changed the weights; the learning rate and the EMA follow these."""
        return self.step - self.skipped


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def to_files(
    network: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    counters: Counters,
    task: Mapping[str, Tensor] | None = None,
) -> dict[str, bytes]:
    """The content of a checkpoint: name -> bytes; a task that remembers nothing has no file."""
    moments = {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
        if parameter in optimizer.state
    }
    numbers = {"counters": asdict(counters), "scaler": scaler.state_dict() if scaler is not None else None}
    return {
        "network.safetensors": _pack(network.state_dict()),
        "ema.safetensors": _pack(ema.network.state_dict()),
        "optimizer.safetensors": _pack(moments),
        "state.json": json.dumps(numbers, sort_keys=True).encode(),
    } | ({"task.safetensors": _pack(task)} if task else {})


def counters_of(checkpoint: Checkpoint) -> Counters:
    """The numbers of a checkpoint.

    Raises:
        CheckpointError: it was written by another version.
    """
    stored, kinds = _numbers(checkpoint)["counters"], {name: type(value) for name, value in asdict(Counters()).items()}
    known = isinstance(stored, dict) and {name: type(value) for name, value in stored.items()} == kinds
    if not known or stored["step"] != checkpoint.step:
        raise CheckpointError(f"{checkpoint.path} was written by another version of diffunet; its state cannot be read")
    return Counters(**stored)


def _numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        numbers = json.loads(_content(checkpoint, "state.json"))
        return {"counters": numbers["counters"], "scaler": numbers["scaler"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{checkpoint.path / 'state.json'} does not hold the state of a run") from None


def _content(checkpoint: Checkpoint, name: str) -> bytes:
    if name not in checkpoint.files:
        raise CheckpointError(f"{checkpoint.path} holds no {name}; use --out for a new run")
    return checkpoint.files[name]


def tensors_of(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The tensors of `network`, `ema`, `optimizer` or `task`.

    Raises:
        CheckpointError: the file is not there, or no safetensors file.
        UnsafeError: its header is beyond the limits.
    """
    name = f"{part}.safetensors"
    data, path = _content(checkpoint, name), checkpoint.path / name
    weights.check_header(data, path)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # safetensors' Rust errors share no base class
        raise CheckpointError(f"{path} is no safetensors file: {ascii(str(error))[1:-1]}") from None


def from_checkpoint(
    checkpoint: Checkpoint, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Put a verified checkpoint into a freshly made network, EMA, optimizer and scaler.

    Raises:
        CheckpointError: it belongs to another network; the first five differences are named.
    """
    weights.load_exactly(network, tensors_of(checkpoint, "network"), checkpoint.path)
    weights.load_exactly(ema.network, tensors_of(checkpoint, "ema"), checkpoint.path)
    moments = tensors_of(checkpoint, "optimizer")
    wanted = {f"{n}.{moment}": p.shape for n, p in network.named_parameters() for moment in MOMENTS}
    if moments and {name: moment.shape for name, moment in moments.items()} != wanted:
        raise CheckpointError(f"{checkpoint.path / 'optimizer.safetensors'} does not fit the network")
    updates = torch.tensor(float(counters_of(checkpoint).updates))
    for name, parameter in network.named_parameters():
        if f"{name}.{MOMENTS[0]}" not in moments:
            continue
        # fused AdamW keeps its step count beside the parameter, on the parameter's device
        stored: dict[str, Tensor] = {"step": updates.to(parameter.device, copy=True)}
        stored |= {moment: moments[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = stored
    stored_scaler = _numbers(checkpoint)["scaler"]
    if scaler is not None and stored_scaler is not None:
        scaler.load_state_dict(stored_scaler)


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
