"""A real, tiny training whose averages were stored on the way, and some lengths that were followed but not stored."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffunet import Denoiser, save
from diffunet.spec import DataInfo, EMAConfig
from diffunet.training.averages import Averages, power_name
from tests import tiny

STEPS, EVERY = 100, 4
STORED = (0.05, 0.1)
BETWEEN = (0.03, 0.07, 0.15)


class Trajectory(NamedTuple):
    """The run's folder, and the averages at its last step, of stored and other lengths: name of tensor -> tensor."""

    run: Path
    averages: dict[float, dict[str, Tensor]]


def snapshot(den: Denoiser, averages: Averages, run: Path, step: int, updates: int) -> None:
    """What the trainer writes every `ema.snapshot_every` steps."""
    for length in STORED:
        with averages.lent(den.network, power_name(length)):
            path = run / "ema" / f"step-{step:08d}-{length:.3f}.safetensors"
            save(den, path, step=step, updates=updates, sigma_rel=length)


def train(run: Path) -> Trajectory:
    """Learn stripes of random strength, at a constant rate; every tenth step is skipped, as for a gradient of NaN."""
    den = tiny.denoiser(dims=2, base_channels=4)
    den.data = DataInfo(shape=(1, 6, 5))
    den.network.train()
    averages = Averages(EMAConfig(sigma_rel=(*STORED, *BETWEEN)), den.network)
    optimizer = torch.optim.AdamW(den.network.parameters(), lr=1e-2)
    generator, stripes = torch.Generator().manual_seed(0), torch.tensor([1.0, -1.0] * 3)[:, None].expand(6, 5)
    updates = 0
    for step in range(1, STEPS + 1):
        x0 = stripes * torch.rand(8, 1, 1, 1, generator=generator)
        t, eps = torch.rand(8, generator=generator), torch.randn(x0.shape, generator=generator)
        _, alpha, sigma = den.levels(t, x0)
        optimizer.zero_grad()
        (den(alpha * x0 + sigma * eps, t) - x0).square().mean().backward()
        if step % 10:
            optimizer.step()
            updates += 1
            averages.update(den.network, updates)
        if step % EVERY == 0:
            snapshot(den, averages, run, step, updates)
    save(den, run / "weights.safetensors", step=STEPS)
    return Trajectory(run, {length: averages.state(power_name(length)) for length in (*STORED, *BETWEEN)})
