"""How the processes share one network: each has all of it (ddp), or each holds a part of every tensor (fsdp).

Sharding is torch's own `fully_shard` (FSDP2): a parameter becomes a DTensor cut along its first side, whole only while
its block computes. accelerate would leave the network as it is on CPUs, so it is not asked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diffunet.errors import ConfigError
from diffunet.nn.layers import Timed
from diffunet.table import Table
from diffunet.training.ranks import Alone


class Replicated:
    """Each process holds the whole network; DDP averages the gradients. The main process writes all there is."""

    def __init__(self, accelerator: Accelerator, ranks: Alone) -> None:
        self.accelerator, self.ranks = accelerator, ranks

    def cut(self, network: nn.Module) -> None:
        """Lay a network that is on its device out over the processes, in place.

        Raises:
            ConfigError: it cannot be.
        """

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """What trains: the network in its wrapper, the optimizer in accelerate's."""
        return cast(tuple[nn.Module, Any], self.accelerator.prepare(network, optimizer))

    def micro_step(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Where one backward pass belongs; gradients are exchanged in the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    @property
    def suffix(self) -> str | None:
        """What the names of this process's files end with; None where it writes none."""
        return "" if self.ranks.main else None


class Sharded(Replicated):
    """Each process holds its share of every parameter, average and moment, and writes its share of a checkpoint."""

    def cut(self, network: nn.Module) -> None:
        if scalars := [name for name, p in network.named_parameters() if p.ndim == 0]:
            raise ConfigError(f"train.parallel = 'fsdp' cannot cut the single numbers {scalars[:3]}; use 'ddp'")
        if getattr(network, "uncertainty", None) is not None:
            raise ConfigError("model.uncertainty_channels is not for train.parallel = 'fsdp'; use 'ddp'")
        mesh = init_device_mesh(self.accelerator.device.type, (self.ranks.count,))
        inside: tuple[str, ...] = ()
        for name, module in network.named_modules():
            if isinstance(module, Timed) and not f"{name}.".startswith(inside or ("\0",)):
                inside += (f"{name}.",)  # the outermost parts that a forward calls one after another
                if any(True for _ in module.parameters()):
                    fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        accelerator = self.accelerator
        return accelerator.prepare_model(network, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)

    def micro_step(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        cast(FSDPModule, network).set_requires_gradient_sync(last)
        return nullcontext()

    @property
    def suffix(self) -> str | None:
        return f"-{self.ranks.index}-of-{self.ranks.count}"


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its cuts; all processes must call it where it has some."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor on the device of `model`, cut as it is; each process takes its own part of what it has."""
    tensor = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


PARALLELS: Table[type[Replicated]] = Table("train.parallel", {"ddp": Replicated, "fsdp": Sharded})
