"""Averages of the parameters, several at once: tensors on the parameters' own devices, one fused call for each average.

    p_avg += (1 - d) (p - p_avg)    after update number t = 1, 2, ...

"ema" has a warm-up: d = min(decay, (1 + t) / (10 + t)), so that a preview at step 500 is no noise. "ema-0.050" has a
power-function profile of that relative length: d = (1 - 1 / t)^(gamma + 1) (EDM2, 2312.02696, eq 127); from stored ones
posthoc.py makes any other length. Only parameters are averaged; buffers are the network's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import EMAConfig
from diffunet.training.parallel import cut_like, whole
from diffunet.training.posthoc import beta, gamma_of

WARM_UP = "ema"


def power_name(sigma_rel: float) -> str:
    """The name of the power-function average of a relative length: "ema-0.050"."""
    return f"{WARM_UP}-{sigma_rel:.3f}"


class Averages:
    """The averages that a config asks for, beginning at the network as it is.

    Made after the network is on its device and, where it is sharded, after `fully_shard`: an average has the device,
    layout and shards of its parameter.

    Args:
        config: which averages.
        network: the network that is trained, without a wrapper around it.

    Attributes:
        tensors: name of the average ("ema", "ema-0.050") -> name of the parameter -> tensor like the parameter.
    """

    def __init__(self, config: EMAConfig, network: nn.Module) -> None:
        self.config = config
        self.gammas = {power_name(length): gamma_of(length) for length in config.sigma_rel}
        self.tensors: dict[str, dict[str, Tensor]] = {
            name: {n: p.detach().clone() for n, p in network.named_parameters()} for name in (WARM_UP, *self.gammas)
        }

    def decay(self, name: str, updates: int) -> float:
        """What average `name` keeps of itself at update number `updates` (from 1): a number in [0, 1)."""
        if name == WARM_UP:
            return min(self.config.decay, (1 + updates) / (10 + updates))
        return beta(updates, self.gammas[name])

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Follow `network` after its update number `updates` (from 1)."""
        live = [p.detach() for p in network.parameters()]
        for name, average in self.tensors.items():
            torch._foreach_lerp_(list(average.values()), live, 1 - self.decay(name, updates))

    @contextmanager
    def lent(self, network: nn.Module, name: str) -> Iterator[nn.Module]:
        """The network with an average in place of its parameters, in eval mode; after the block it is as it was.

        The very same parameters hold the average meanwhile, so wrappers around the network (DDP, a sharding) see it
        too, and memory holds one more copy. What torch.compile made is set aside: it was made for training. Every rank
        of a sharded network must enter and leave. Not to be used between a forward and its backward.

        Raises:
            ConfigError: no average of that name.
        """
        average = self._known(name)
        _reshard(network)
        modes = {module: module.training for module in network.modules()}
        own = {n: p.detach().clone() for n, p in network.named_parameters()}
        with ExitStack() as stack:
            stack.callback(_give_back, network, own, modes)
            if any(module._compiled_call_impl is not None for module in modes):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            _put(network, average)
            network.eval()
            yield network

    def state(self, name: str) -> dict[str, Tensor]:
        """An average as whole tensors, for a checkpoint; those of shards are gathered, which all ranks must call.

        Raises:
            ConfigError: no average of that name.
        """
        return {n: whole(t) for n, t in self._known(name).items()}

    @torch.no_grad()
    def restore(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; names beyond the parameters (buffers, in older checkpoints) are left alone.

        Raises:
            ConfigError: no average of that name.
            CheckpointError: a parameter is missing or has another shape.
        """
        average = self._known(name)
        wrong = [f"{n}: missing" for n in average if n not in tensors]
        wrong += [
            f"{n}: {tuple(tensors[n].shape)} where {tuple(t.shape)} is expected"
            for n, t in average.items()
            if n in tensors and tensors[n].shape != t.shape
        ]
        if wrong:
            differences = f"{len(wrong)} differences: {'; '.join(wrong[:5])}"
            raise CheckpointError(f"the stored average '{name}' does not fit the network ({differences})")
        for n, t in average.items():
            t.copy_(cut_like(tensors[n], t))

    def _known(self, name: str) -> dict[str, Tensor]:
        if name not in self.tensors:
            raise ConfigError(f"no average '{name}' is kept; there are: {', '.join(self.tensors)}")
        return self.tensors[name]


@torch.no_grad()
def _put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for n, p in network.named_parameters():
        p.copy_(tensors[n])


def _give_back(network: nn.Module, own: Mapping[str, Tensor], modes: Mapping[nn.Module, bool]) -> None:
    _reshard(network)
    _put(network, own)
    for module, mode in modes.items():
        module.training = mode


def _reshard(network: nn.Module) -> None:
    """Drop the whole parameters that a forward without a backward leaves in a sharded network beside its shards."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
