"""The average of the weights: its warm-up, its arithmetic, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffunet.spec import EMAConfig
from diffunet.training.ema import EMA
from tests import tiny


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_warm_up_follows_its_formula(decay: float) -> None:
    """A weight that is always 1, averaged from 0: 1 - the product of min(d, (1 + n) / (10 + n))."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    ema, left = EMA(EMAConfig(decay=decay), net), 1.0
    nn.init.ones_(net.weight)
    for n in range(1, 200):
        ema.update(net, n)
        left *= min(decay, (1 + n) / (10 + n))
        assert ema.network.weight.item() == pytest.approx(1 - left, abs=1e-12)


def test_it_equals_a_plain_loop() -> None:
    """One fused call rounds as p_ema + (1 - d) (p - p_ema) does, up to the last place."""
    net = tiny.unet(dims=2, base_channels=4, num_classes=3, null_class=True)
    ema, plain = EMA(EMAConfig(decay=0.9), net), {n: p.clone() for n, p in net.state_dict().items()}
    for n in range(1, 30):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        ema.update(net, n)
        decay = min(0.9, (1 + n) / (10 + n))
        for name, p in net.state_dict().items():
            plain[name] += (1 - decay) * (p - plain[name])
    for name, value in ema.network.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, net.state_dict()[name])


def test_only_parameters_are_averaged() -> None:
    """Buffers, which may be counts, are the network's own."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(EMAConfig(decay=0.99), net)
    for n in range(1, 6):
        net(torch.randn(8, 3))
        ema.update(net, n)
    assert all(torch.equal(a, b) for a, b in zip(ema.network.buffers(), net.buffers(), strict=True))
    assert net[1].num_batches_tracked == 5


def test_the_average_is_a_network_of_its_own() -> None:
    """It never trains, and following changes nothing in the network."""
    net = tiny.unet().train()
    ema = EMA(EMAConfig(), net)
    before = {n: p.clone() for n, p in net.state_dict().items()}
    ema.update(net, 1)
    assert net.training
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert {p.data_ptr() for p in net.parameters()}.isdisjoint(p.data_ptr() for p in ema.network.parameters())
