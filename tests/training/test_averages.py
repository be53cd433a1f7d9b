"""Averages of the weights: their arithmetic, what they leave alone, and a network that holds one for a while."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from diffunet.config import resolve
from diffunet.errors import CheckpointError, ConfigError
from diffunet.spec import EMAConfig
from diffunet.training.averages import Averages
from diffunet.training.posthoc import gamma_of
from tests import tiny

TWO = EMAConfig(decay=0.9, sigma_rel=(0.05, 0.2))
NAMES = ["ema", "ema-0.050", "ema-0.200"]


def wander(net: nn.Module, seed: int) -> None:
    """Move every parameter a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)


def followed(net: nn.Module, config: EMAConfig = TWO, updates: int = 5) -> Averages:
    """Averages of a network after a few updates."""
    averages = Averages(config, net)
    for n in range(1, updates + 1):
        wander(net, n)
        averages.update(net, n)
    return averages


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_warm_up_follows_its_formula(decay: float) -> None:
    """A weight that is always 1, averaged from 0: 1 - the product of min(d, (1 + n) / (10 + n))."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    averages, left = Averages(EMAConfig(decay=decay), net), 1.0
    nn.init.ones_(net.weight)
    for n in range(1, 200):
        averages.update(net, n)
        left *= min(decay, (1 + n) / (10 + n))
        assert averages.tensors["ema"]["weight"].item() == pytest.approx(1 - left, abs=1e-12)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_a_power_function_average_weighs_every_step_as_its_profile_says(length: float) -> None:
    """The decays' product telescopes: step tau of t weighs (tau / t)^(gamma + 1) - ((tau - 1) / t)^(gamma + 1)."""
    net, steps, power = nn.Linear(1, 1, bias=False).double(), 100, gamma_of(length) + 1
    averages, values = Averages(EMAConfig(sigma_rel=(length,)), net), torch.randn(steps, dtype=torch.float64)
    for n, value in enumerate(values.tolist(), 1):
        nn.init.constant_(net.weight, value)
        averages.update(net, n)
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** power
    expected = (edges.diff() * values).sum().item()
    assert averages.tensors[f"ema-{length:.3f}"]["weight"].item() == pytest.approx(expected, abs=1e-12)


def test_it_equals_a_plain_loop() -> None:
    """One fused call rounds as p_avg + (1 - d) (p - p_avg) does, up to the last place."""
    net = tiny.unet(dims=2, base_channels=4, num_classes=3, null_class=True)
    averages = Averages(TWO, net)
    plain = {name: copied(net) for name in NAMES}
    for n in range(1, 30):
        wander(net, n)
        averages.update(net, n)
        decays = [min(0.9, (1 + n) / (10 + n)), *((1 - 1 / n) ** (gamma_of(s) + 1) for s in TWO.sigma_rel)]
        for average, decay in zip(plain.values(), decays, strict=True):
            for name, p in net.state_dict().items():
                average[name] += (1 - decay) * (p - average[name])
    assert list(averages.tensors) == NAMES
    for name in NAMES:
        for parameter, value in averages.tensors[name].items():
            torch.testing.assert_close(value, plain[name][parameter], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, net.state_dict()[parameter])


def test_following_changes_nothing_in_the_network() -> None:
    net = tiny.unet().train()
    averages, before = Averages(TWO, net), copied(net)
    averages.update(net, 1)
    assert net.training
    assert same(copied(net), before)
    own = {p.data_ptr() for p in net.parameters()}
    assert all(own.isdisjoint(t.data_ptr() for t in average.values()) for average in averages.tensors.values())


# --- a network that holds an average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_lent_network_is_its_average_and_then_itself_again(name: str) -> None:
    net = nn.Sequential(tiny.unet(), nn.Dropout(0.5)).train()
    net[1].eval()  # a part that is frozen on purpose stays so
    averages = followed(net)
    before, parameters = copied(net), list(net.parameters())
    grads = [torch.randn_like(p) for p in parameters]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    with averages.lent(net, name) as lent:
        assert lent is net
        assert not any(module.training for module in net.modules())
        assert same(copied(net), averages.tensors[name])
    assert same(copied(net), before)
    assert [module.training for module in (net, net[0], net[1])] == [True, True, False]
    assert all(a is b and a.grad is g for a, b, g in zip(net.parameters(), parameters, grads, strict=True))


def test_the_network_comes_back_after_an_exception() -> None:
    net = tiny.unet().train()
    averages, before = followed(net), copied(net)

    def interrupted() -> None:
        with averages.lent(net, "ema"):
            wander(net, 99)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(copied(net), before)
    assert net.training


def test_buffers_are_the_networks_own() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    averages = Averages(TWO, net)
    for n in range(1, 6):
        net(torch.randn(8, 3))
        averages.update(net, n)
    with averages.lent(net, "ema-0.050"):
        net(torch.randn(8, 3))
    assert net[1].num_batches_tracked == 5
    assert set(averages.tensors["ema"]) == dict(net.named_parameters()).keys()


def test_looking_at_averages_changes_no_bit_of_the_training() -> None:
    """Two trainings, one of which draws from its averages after each step."""
    results = []
    for looks in (False, True):
        torch.manual_seed(0)
        net = tiny.unet(dims=2).train()
        averages, optimizer = Averages(TWO, net), torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
        x, t = torch.randn(2, 1, 4, 4), torch.tensor([3, 70])
        for n in range(1, 5):
            optimizer.zero_grad()
            net(x, t).square().mean().backward()
            optimizer.step()
            averages.update(net, n)
            for name in NAMES if looks else []:
                with averages.lent(net, name), torch.no_grad():
                    net(x, t)
        results.append({**copied(net), **{f"{a}/{n}": v for a in NAMES for n, v in averages.tensors[a].items()}})
    assert same(*results)


def test_a_compiled_network_draws_from_its_average_without_compiling_again() -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    net, x, t = tiny.unet(dims=2).train(), torch.randn(2, 1, 4, 4), torch.tensor([3, 70])
    plain = copy.deepcopy(net)
    net.compile(backend=backend, fullgraph=True)
    averages, of_plain = followed(net), followed(plain)
    live = net(x, t)
    with averages.lent(net, "ema"), of_plain.lent(plain, "ema"):
        assert torch.equal(net(x[:1], t[:1]), plain(x[:1], t[:1]))
    assert torch.equal(net(x, t), live)
    assert len(compiled) == 1


@pytest.fixture
def ranks() -> Iterator[None]:
    """A group of this one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_wrapper_for_many_processes_sees_the_average(ranks: None) -> None:
    net, x, t = tiny.unet(dims=2), torch.randn(2, 1, 4, 4), torch.tensor([3, 70])
    plain = copy.deepcopy(net)
    wrapped = DistributedDataParallel(net)
    averages, of_plain = followed(net), followed(plain)
    with averages.lent(net, "ema-0.200"), of_plain.lent(plain, "ema-0.200"), torch.no_grad():
        assert torch.equal(wrapped(x, t), plain(x, t))
    with torch.no_grad():
        assert torch.equal(wrapped(x, t), plain(x, t))


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_averaged_lent_and_stored_like_whole_tensors(ranks: None, name: str) -> None:
    net, x, t = tiny.unet(dims=2), torch.randn(2, 1, 4, 4), torch.tensor([3, 70])
    plain, mesh = copy.deepcopy(net), init_device_mesh("cpu", (1,))
    for module in [m for m in net.modules() if type(m).__name__ == "Residual"]:
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    averages, of_plain = Averages(TWO, net), Averages(TWO, plain)
    for n in range(1, 4):
        wander(plain, n)
        of_plain.update(plain, n)
        with torch.no_grad():
            for p, q in zip(net.parameters(), plain.parameters(), strict=True):
                p.copy_(distribute_tensor(q, p.device_mesh, p.placements))
        averages.update(net, n)
    assert all(isinstance(v, DTensor) for v in averages.tensors[name].values())
    assert same(averages.state(name), of_plain.state(name))
    again = Averages(TWO, net)
    again.restore(name, averages.state(name))
    assert same(again.state(name), of_plain.state(name))
    # a forward without a backward leaves whole parameters behind, on the way in as well as on the way out
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(net(x, t), plain(x, t))
        with averages.lent(net, name), of_plain.lent(plain, name), torch.no_grad():
            assert torch.equal(net(x, t), plain(x, t))


# --- storing and refusing ---------------------------------------------------------------------------------------------


def test_an_average_is_stored_and_found_again() -> None:
    """Names that are no parameters, which older checkpoints hold, do not matter."""
    net = tiny.unet()
    averages, fresh = followed(net), Averages(TWO, net)
    for name in NAMES:
        assert not same(fresh.state(name), averages.state(name))
        fresh.restore(name, averages.state(name) | {"a.buffer": torch.zeros(3)})
        assert same(fresh.state(name), averages.state(name))
    wander(net, 9)
    fresh.update(net, 6)
    averages.update(net, 6)
    assert all(same(fresh.state(name), averages.state(name)) for name in NAMES)


def test_what_does_not_fit_is_refused() -> None:
    net = tiny.unet()
    averages = followed(net)
    stored = {n: v.clone() for n, v in averages.state("ema").items()}
    missing, *_ = stored
    with pytest.raises(CheckpointError, match=f"'ema' does not fit the network .1 differences: {missing}: missing"):
        averages.restore("ema", {n: v for n, v in stored.items() if n != missing})
    with pytest.raises(CheckpointError, match=r"\(99,\) where \(.*\) is expected"):
        averages.restore("ema", stored | {missing: torch.zeros(99)})
    assert same(averages.state("ema"), stored)
    with pytest.raises(ConfigError, match=r"no average 'ema-0\.1' is kept; there are: ema, ema-0\.050, ema-0\.200"):
        averages.state("ema-0.1")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"sigma_rel": [0.05, 0.0501]}, r"ema: sigma_rel = \[0.05, 0.0501\] must be distinct"),
        ({"sigma_rel": [0.0002]}, "above 0 at three decimals"),
        ({"sigma_rel": [0.3]}, "ema.sigma_rel"),
        ({"sigma_rel": [0.01 * i for i in range(1, 10)]}, "ema.sigma_rel"),
        ({"snapshot_every": 100}, "ema: snapshot_every = 100 needs sigma_rel"),
        ({"sigma_rel": [0.05], "snapshot_every": 0}, "ema.snapshot_every"),
    ],
)
def test_averages_that_cannot_be_are_refused(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        resolve({"ema": section})


def test_one_length_stands_for_a_list_of_it() -> None:
    assert resolve({"ema": {"sigma_rel": 0.05}}).ema == EMAConfig(sigma_rel=(0.05,))
