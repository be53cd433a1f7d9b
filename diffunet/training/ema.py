"""Exponential moving average of the parameters, on the parameters' own device, in one fused call."""

from __future__ import annotations

import copy

import torch
from torch import nn

from diffunet.spec import EMAConfig


class EMA:
    """A second network whose parameters follow: p_ema += (1 - d) (p - p_ema), d = min(decay, (1 + n) / (10 + n)).

    The warm-up keeps early averages near the network, so that a preview at step 500 is no noise. Only parameters are
    averaged; buffers are the network's own.
    """

    def __init__(self, config: EMAConfig, network: nn.Module) -> None:
        self.config = config
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Follow `network` after its update number `updates` (from 1)."""
        decay = min(self.config.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.network.parameters()), [p.detach() for p in network.parameters()], 1 - decay)
        for buffer, newest in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(newest)
