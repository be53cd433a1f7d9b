"""A network without memory, and arguments that fit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffunet.nn import ATTENTIONS, NETWORKS
from diffunet.spec import NetworkConfig

aten = torch.ops.aten


def inputs(config: NetworkConfig, batch: int, sides: tuple[int, ...], time: float = 0.5) -> dict[str, Any]:
    """Arguments that a network of this config takes: random images, class 0, and `time` as the network is told it."""
    told: dict[str, Any] = {"x": torch.randn(batch, config.in_channels, *sides)}
    if config.time.kind != "none":
        told["t"] = torch.full((batch,), time)
    if getattr(config, "num_classes", None):
        told["class_labels"] = torch.zeros(batch, dtype=torch.long)
    if channels := getattr(config, "cond_channels", 0):
        told["cond"] = torch.randn(batch, channels, *sides)
    return told


class _Fused(TorchFunctionMode):
    """Attention as a CPU and a GPU run it, in one operation; on the meta device torch would take it apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return aten._scaled_dot_product_flash_attention_for_cpu(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def _fused(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        # here, and not around the whole pass: blocks that run again inside backward() would be outside
        with _Fused():
            return forward(*args)

    return run


class _Unfilled(TorchFunctionMode):
    """Leaves out the first values of weights, which a tensor without memory cannot hold and torch is slow to skip."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def weightless(config: NetworkConfig) -> Iterator[nn.Module]:
    """The network of a config on the meta device; what runs inside has shapes and no values."""
    with torch.device("meta"):
        with _Unfilled():
            net: nn.Module = NETWORKS.build(config)
        for module in net.modules():
            if isinstance(module, tuple(ATTENTIONS.values())):
                module.forward = _fused(module.forward)
        yield net
