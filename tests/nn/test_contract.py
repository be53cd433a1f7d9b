"""What every network of the family keeps, whatever it is put together from: each pair of choices meets in some case.

The cases are computed from the tables, so a new line of a table is tested from the moment it stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffunet import Denoiser, Schedule, UNet, UNetConfig, load, save
from diffunet.nn import DOWNS
from diffunet.spec import (
    BlurPool,
    BottleneckSkip,
    CosineAttention,
    DoubleConvBlock,
    FirUp,
    FourierTime,
    InBlock,
    ResidualBlock,
    SelfAttention,
    SinusoidalTime,
    Spec,
    StridedConv,
    TransposedConv,
)
from tests.families import PARTS, kinds
from tests.nn.networks import perturbed
from tests.nn.pairs import Case, contradictory, cover, each, every_pair, met

BASE: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "base_channels": 8,
    "channel_multipliers": (1, 2, 2),
    "blocks_per_level": 1,
    "num_classes": 3,
    "null_class": True,
    "block": ResidualBlock(groups=2),
}
SIDES = {1: (21,), 2: (11, 13), 3: (5, 6, 7)}  # odd at the top, and some of them below it too
# the same kinds with other options, which make other parts of them
VARIANTS: dict[str, list[Spec]] = {
    "down": [StridedConv(pad="asymmetric"), BlurPool(taps=3, conv=True), InBlock(taps=4, project=True)],
    "up": [TransposedConv(kernel=4), FirUp(taps=5, conv=True), InBlock(taps=4, project=True)],
    "skip": [BottleneckSkip(ratio=0.5)],
    "block": [
        ResidualBlock(groups=2, condition="scale_shift", rescale=True, group_channels=4),
        DoubleConvBlock(groups=2, norm="group", activation="silu"),
        DoubleConvBlock(norm="batch"),
    ],
    "attention": [SelfAttention(heads=2), CosineAttention(heads=2)],
    "time": [FourierTime(log=True, features=2), SinusoidalTime(order="cos_sin", shift=0, width=2)],
}
NOT_PARTS = {"padding": ["zeros", "reflect", "circular"], "dims": [1, 2, 3]}


def made(key: str, kind: str) -> Spec:
    """A part of its kind; with two groups where it has groups."""
    choice = PARTS[key][0]
    groups = {"groups": 2} if "groups" in kinds(choice)[kind].model_fields else {}
    return TypeAdapter(choice).validate_python({"kind": kind} | groups)


def refused(case: Case) -> bool:
    try:
        UNetConfig(**BASE | case)
    except ValidationError:
        return True
    return False


KINDS = {key: [made(key, kind) for kind in table] for key, (_, table) in PARTS.items()}
OPTIONAL = {key: [None, *KINDS[key]] for key in ("input_pyramid", "output_pyramid")}
CHOICES = {key: [*KINDS[key], *VARIANTS.get(key, [])] for key in PARTS} | OPTIONAL | NOT_PARTS
CONTRADICTORY = contradictory(CHOICES, refused)
CASES = cover(CHOICES, CONTRADICTORY)


def name_of(case: Case) -> str:
    return "-".join(str(getattr(part, "kind", part)) for part in case.values())


every_case = pytest.mark.parametrize("case", CASES, ids=name_of)


def network(case: Case) -> UNet:
    """The case's network; no weight is zero, and none so large that values grow from layer to layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturbed(UNet(**BASE | case), gain=0.5)


def told(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Images, times, and a class and no class."""
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, *SIDES[case["dims"]], generator=chance)
    return x.to(dtype), torch.tensor([3.0, 500.0]), torch.tensor([1, 3])


def relative(y: Tensor, reference: Tensor) -> float:
    """|y - reference| / |reference|."""
    return ((y.float() - reference).norm() / reference.norm()).item()


def test_every_pair_meets_unless_it_is_contradictory() -> None:
    assert {pair for case in CASES for pair in met(case)} == set(every_pair(CHOICES)) - CONTRADICTORY
    assert len(CASES) <= 150


RULES: dict[tuple[str, str], Callable[[Any, Any], bool]] = {
    ("down", "up"): lambda down, up: (down.kind == "none") != (up.kind == "none"),
    ("down", "block"): lambda down, block: down.kind == "in_block" and not block.resamples,
    ("up", "block"): lambda up, block: up.kind == "in_block" and not block.resamples,
    ("time", "class_embedding"): lambda time, classes: classes.before_mlp and not time.mlp,
    ("down", "input_pyramid"): lambda down, pyramid: down.kind == "none" and pyramid is not None,
    ("down", "output_pyramid"): lambda down, pyramid: down.kind == "none" and pyramid is not None,
    ("up", "input_pyramid"): lambda up, pyramid: up.kind == "none" and pyramid is not None,
    ("up", "output_pyramid"): lambda up, pyramid: up.kind == "none" and pyramid is not None,
}


def test_nothing_else_is_refused() -> None:
    expected = {
        frozenset({(a, x), (b, y)})
        for (a, b), at_odds in RULES.items()
        for x in CHOICES[a]
        for y in CHOICES[b]
        if at_odds(x, y)
    }
    assert expected == CONTRADICTORY


@pytest.mark.parametrize("keys", list(RULES)[:6], ids="-".join)  # the last two follow from down = 'none'
def test_a_contradiction_names_its_keys(keys: tuple[str, str]) -> None:
    cases = [dict(pair) for pair in CONTRADICTORY]
    for case in (case for case in cases if case.keys() == set(keys)):
        with pytest.raises(ValidationError) as caught:
            UNetConfig(**BASE | {"down": "none", "up": "none"} | case)
        assert all(f"{key} " in str(caught.value) for key in keys), str(caught.value)


@every_case
def test_any_size_keeps_its_shape_and_reaches_every_parameter(case: Case) -> None:
    net, (x, t, labels) = network(case).double().train(), told(case, torch.float64)
    y = net(x, t, labels)
    assert y.shape == (2, 3, *x.shape[2:])
    y.backward(torch.randn(y.shape, dtype=torch.float64))
    # a batch norm subtracts the biases of the convolutions before it again
    normed = getattr(case["block"], "norm", "") == "batch"
    gradients = {name: p.grad for name, p in net.named_parameters() if not (normed and name.endswith(".bias"))}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    # in float64 what is zero but for rounding is far below this, and what is not is far above
    assert [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-11] == []


@every_case
def test_saved_and_loaded_is_equal(case: Case, tmp_path: Path) -> None:
    net, inputs = network(case).eval(), told(case)
    save(Denoiser(net, Schedule.linear()), tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors").network
    assert loaded.config == net.config
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), net(*inputs))


@every_case
def test_bfloat16_stays_near_float32(case: Case) -> None:
    """About 40 roundings on the way, each by up to 2^-9: 8 % if all of them went the same way."""
    net, (x, t, labels) = network(case).eval(), told(case)
    with torch.no_grad():
        y = net(x, t, labels)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(net(x, t, labels), y) < 0.08
        half = net.bfloat16()(x.bfloat16(), t, labels)
    assert half.dtype == torch.bfloat16
    assert relative(half, y) < 0.08


@pytest.mark.parametrize("case", each(CASES, KINDS), ids=name_of)
def test_every_part_compiles_without_a_graph_break(case: Case) -> None:
    torch._dynamo.reset()
    net, inputs = network({**case, "channel_multipliers": (1, 2)}).train(), told(case)
    net(*inputs)  # while training the first step brings magnitude-preserving weights to unit size
    compiled = torch.compile(net, fullgraph=True, backend="eager")(*inputs)
    assert relative(compiled, net(*inputs)) < 1e-5


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("case", each(CASES, KINDS)[:4], ids=name_of)
def test_compiled_to_machine_code_it_computes_the_same(case: Case) -> None:
    torch._dynamo.reset()
    net, inputs = network({**case, "channel_multipliers": (1, 2)}).eval(), told(case)
    with torch.no_grad():
        assert relative(torch.compile(net, fullgraph=True)(*inputs), net(*inputs)) < 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("dims", NOT_PARTS["dims"])
@pytest.mark.parametrize("padding", NOT_PARTS["padding"])
@pytest.mark.parametrize("down", KINDS["down"], ids=list(DOWNS))
def test_all_combinations_keep_the_shape(down: Spec, padding: str, dims: int) -> None:
    """All of down x up x skip x block x padding x dims, forward only."""
    built = 0
    for up, skip, block in product(KINDS["up"], KINDS["skip"], KINDS["block"]):
        case = {"down": down, "up": up, "skip": skip, "block": block, "padding": padding, "dims": dims}
        pairs = {frozenset(pair) for pair in met(case)}
        if not pairs & CONTRADICTORY:
            x, *rest = told(case)
            with torch.no_grad():
                y = UNet(**BASE | case)(x, *rest)
            assert y.shape == (2, 3, *x.shape[2:]), name_of(case)
            built += 1
    assert built >= len(KINDS["skip"]) * len(KINDS["block"])
