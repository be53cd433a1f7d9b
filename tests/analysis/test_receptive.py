"""The receptive field: against known values, and against which gradients are not zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffunet.analysis.receptive import ReceptiveField, receptive_field, thin
from diffunet.analysis.weightless import inputs
from diffunet.nn import ATTENTIONS, NETWORKS, PRESETS
from diffunet.spec import NetworkConfig
from tests.analysis.networks import classic, unet
from tests.families import PARTS

PLAIN = {"attention_levels": (), "attention_in_mid": False, "time": "none"}


def widths(field: ReceptiveField) -> dict[str, int]:
    """Part -> largest receptive field."""
    return {reach.part.name: reach.largest for reach in field.reaches}


def test_the_u_net_of_2015_sees_188_positions() -> None:
    """Its way down to 140 is (5, 6, 14, 16, 32, 36, 68, 76, 140); on the way up the phase decides: 188 to 204."""
    field = receptive_field(PRESETS["unet-2015"])
    found = widths(field)
    assert [found[f"down {level} blocks"] for level in range(5)] == [5, 14, 32, 68, 140]
    assert [found[f"down {level}-{level + 1}"] for level in range(4)] == [6, 16, 36, 76]
    assert (field.reaches[-1].smallest, field.size) == (188, 204)
    assert field.everywhere == {}
    assert field.exact


def test_a_stack_of_convolutions_adds_up() -> None:
    """One level: stem 3, a block on the way down, two in mid and two on the way up with 4 each, head 2."""
    field = receptive_field(unet(channel_multipliers=(1,), attention_levels=()))
    assert field.size == 3 + 5 * 4 + 2
    assert field.everywhere["Attention"] == 1


def test_dilation_widens_by_its_rate() -> None:
    block = {"kind": "dilated", "groups": 4, "rates": (1, 5)}
    field = receptive_field(unet(block=block, down="none", up="none", **PLAIN))
    # stem and head, then blocks: one down and two up at rate 1, one down, two mid and one up at rate 5
    assert field.size == 1 + 2 + 2 + 4 * 3 + 20 * 4


def supports(config: NetworkConfig, length: int, phases: int) -> list[int]:
    """How wide the gradient of each of some output positions reaches, in a line of positive weights."""
    line = thin(config)
    net: nn.Module = NETWORKS.build(line).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, (nn.GroupNorm, *ATTENTIONS.values())):
            # the scale as a constant, so that nothing overflows and nothing far away is seen
            module.forward = lambda x, *_: x / x.detach().square().mean().sqrt()
    told = {key: value.double() for key, value in inputs(line, 1, (length,)).items()}
    x = told["x"] = torch.rand_like(told["x"], requires_grad=True)
    y, found = net(**told), []
    for phase in range(phases):
        (gradient,) = torch.autograd.grad(y[0, :, y.shape[2] // 2 + phase].sum(), x, retain_graph=True)
        (hit,) = gradient[0, 0].nonzero(as_tuple=True)
        found.append(int(hit[-1] - hit[0] + 1))
    return found


@pytest.fixture
def _pools_pass_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of two depends on both, though only one of them has a gradient."""
    from diffunet.nn import resample

    monkeypatch.setitem(resample.MAXIMA, 1, F.avg_pool1d)


@pytest.mark.usefixtures("_pools_pass_all")
@pytest.mark.parametrize(
    ("down", "up", "skip"),
    [
        *((down, "nearest_conv", "concat") for down in PARTS["down"][1] if down != "none"),
        *(("avg_pool", up, "concat") for up in PARTS["up"][1] if up not in ("none", "nearest_conv")),
        *(("avg_pool", "nearest", skip) for skip in ("add", "bottleneck", "gated")),
    ],
)
def test_it_is_where_gradients_are_not_zero(down: str, up: str, skip: str) -> None:
    config = unet(channel_multipliers=(1, 2, 2), down=down, up=up, skip=skip, **PLAIN)
    last = receptive_field(config).reaches[-1]
    found = supports(config, 256, 4)
    assert (last.smallest, last.largest) == (min(found), max(found))


@pytest.mark.usefixtures("_pools_pass_all")
def test_of_classic_networks_too() -> None:
    config = classic(levels=4, down="max_pool")
    last = receptive_field(config).reaches[-1]
    found = supports(config, 512, 8)
    assert (last.smallest, last.largest) == (min(found), max(found))


@pytest.mark.parametrize(
    ("kind", "everywhere"), [("self", True), ("linear", True), ("channel", True), ("spatial", False)]
)
def test_attention_sees_everything_where_it_does(kind: str, everywhere: bool) -> None:
    field = receptive_field(unet(attention=kind))
    names = {cls.__name__ for cls in ATTENTIONS.values()}
    assert bool(names & set(field.everywhere)) == everywhere
    local = receptive_field(unet(**PLAIN)).size
    # four gates of 7 at level 1 on the longest path: 6 positions of stride 2 each
    assert field.size == local + (0 if everywhere else 4 * 6 * 2)


def test_norms_and_axes_change_nothing() -> None:
    sizes = {receptive_field(unet(dims=dims, **PLAIN)).size for dims in (1, 2, 3)}
    double = {receptive_field(unet(block={"kind": "double_conv", "norm": n}, **PLAIN)).size for n in ("none", "batch")}
    assert len(sizes) == len(double) == 1


@pytest.mark.parametrize("name", ["ddpm-cifar10", "adm-64", "ncsnpp-cifar10", "edm2-xs"])
def test_presets_have_one(name: str) -> None:
    field = receptive_field(PRESETS[name])
    assert field.exact
    assert 100 < field.reaches[-1].smallest <= field.size < 1000
    order = [reach.largest for reach in field.reaches if reach.part.role == "blocks"]
    assert order[-1] == max(order)
