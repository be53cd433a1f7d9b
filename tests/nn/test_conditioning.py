"""What the network is told beside the image: time, class and vector, against their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import Denoiser, Schedule, load, save
from diffunet.nn import CLASSES, TIMES
from diffunet.nn.magnitude import mp_sum
from diffunet.spec import (
    ClassBalanced,
    ClassLinear,
    FourierTime,
    LearnedTime,
    MagnitudeTime,
    NoTime,
    ResidualBlock,
    SinusoidalTime,
)
from tests.nn.networks import assert_right_gradients, images, perturbed, tiny

LABELS = torch.tensor([0, 2, 3])  # of three classes: the first, the last, none
T = torch.tensor([3.0, 40.5, 999.0])


def time(config: Any, channels: int = 8, embed: int = 12) -> Any:
    torch.manual_seed(0)
    return perturbed(TIMES.build(config, channels, embed))


def by_mlp(part: Any, features: Tensor) -> Tensor:
    """Linear, SiLU, Linear."""
    return part.mlp_out(F.silu(part.mlp_in(features)))


# --- time ------------------------------------------------------------------------------------------------------------


def waves(order: str, shift: int, channels: int, t: float) -> list[float]:
    """The sinusoids of DDPM and ADM, one at a time."""
    half = channels // 2
    angles = [t * 10_000 ** (-i / max(half - shift, 1)) for i in range(half)]
    sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
    return (cosines + sines if order == "cos_sin" else sines + cosines) + [0.0] * (channels % 2)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("channels", [2, 3, 8, 9])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("order", ["sin_cos", "cos_sin"])
def test_sinusoids_follow_their_formula(order: Any, shift: Any, channels: int, scale: float) -> None:
    times = [0.0, 1.0, 17.25, 999.0]
    part = time(SinusoidalTime(order=order, shift=shift, scale=scale), channels)
    expected = by_mlp(part, torch.tensor([waves(order, shift, channels, scale * t) for t in times]))
    torch.testing.assert_close(part(torch.tensor(times)), expected, rtol=0, atol=2e-4)  # float32 angles up to 999


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", ["sin_cos", "cos_sin"])
def test_fourier_features_follow_their_formula(order: Any, log: bool) -> None:
    part = time(FourierTime(order=order, log=log, scale=2.0, features=2))
    t = torch.tensor([0.02, 1.0, 60.0])
    angles = 2 * math.pi * part.frequencies.double() * (t.double().log() if log else t.double())[:, None]
    waves = [angles.sin(), angles.cos()] if order == "sin_cos" else [angles.cos(), angles.sin()]
    assert part.frequencies.shape == (8,)
    torch.testing.assert_close(part.features(t), torch.cat(waves, dim=1).float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(part(t), by_mlp(part, part.features(t)))


def test_frequencies_are_drawn_from_a_normal_of_their_scale() -> None:
    drawn = time(FourierTime(scale=16.0), channels=20_000).frequencies
    assert drawn.mean().abs() < 0.5
    assert drawn.std().item() == pytest.approx(16, rel=0.03)


def test_frequencies_are_weights_only_where_they_are_trained() -> None:
    for trained in (False, True):
        part = time(FourierTime(trained=trained))
        assert ("frequencies" in dict(part.named_parameters())) == trained
        assert "frequencies" in part.state_dict()


def test_learned_rows_stand_at_whole_times_and_lines_between() -> None:
    part, table = time(LearnedTime(steps=10)), time(LearnedTime(steps=10)).table.weight
    features = part.features(torch.tensor([0.0, 3.0, 9.0, 3.25, -1.0, 40.0]))
    expected = torch.stack([table[0], table[3], table[9], 0.75 * table[3] + 0.25 * table[4], table[0], table[9]])
    torch.testing.assert_close(features, expected)
    assert torch.equal(part.features(torch.tensor([3])), part.features(torch.tensor([3.0])))


def test_learned_rows_between_have_a_gradient_at_both_ends() -> None:
    part = time(LearnedTime(steps=5))
    part.features(torch.tensor([2.25])).sum().backward()
    assert part.table.weight.grad[:, 0].tolist() == [0, 0, 0.75, 0.25, 0]


def test_magnitude_preserving_time_is_one_normalised_map() -> None:
    part = time(MagnitudeTime())
    angles = T.double()[:, None] * part.fourier.frequencies.double() + part.fourier.phases.double()
    w = part.linear.weight.double()
    rows = w / (1e-4 + w.norm(dim=1, keepdim=True) / math.sqrt(8)) / math.sqrt(8)
    expected = (math.sqrt(2) * angles.cos()) @ rows.T
    torch.testing.assert_close(part(T), expected.float(), rtol=0, atol=2e-3)  # float32 angles up to 20,000


def test_no_time_is_zero() -> None:
    assert not time(NoTime())(T).any()
    assert time(NoTime())(T).shape == (3, 12)


@pytest.mark.parametrize(
    ("config", "names"),
    [(FourierTime(), ["frequencies"]), (MagnitudeTime(), ["fourier.frequencies", "fourier.phases"])],
    ids=["fourier", "magnitude_preserving"],
)
def test_frequencies_stay_in_float32(config: Any, names: list[str], tmp_path: Path) -> None:
    """Rounded to bfloat16 they would be other frequencies; a file keeps them as they are."""
    net = tiny(time=config)
    before = {name: net.conditioning.time.get_buffer(name).clone() for name in names}
    save(Denoiser(net.bfloat16(), Schedule.linear()), tmp_path / "w.safetensors")
    for other in (net, net.half().float().double(), load(tmp_path / "w.safetensors").network):
        for name, frequencies in before.items():
            assert torch.equal(other.conditioning.time.get_buffer(name), frequencies)
            assert other.conditioning.time.get_buffer(name).dtype == torch.float32


@pytest.mark.parametrize("config", [SinusoidalTime(), FourierTime(scale=1.0), LearnedTime(), MagnitudeTime()], ids=str)
def test_time_keeps_its_precision_in_a_half_precision_network(config: Any) -> None:
    part, t = time(config, 64, 128), torch.tensor([998.0, 999.0])
    full, half = part(t), part.bfloat16()(t)
    assert half.dtype == torch.bfloat16
    assert not torch.equal(half[0], half[1])
    # the features are rounded, but not the angles: those of neighbours would not be neighbours
    assert (half.float() - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize("config", [SinusoidalTime(), FourierTime(), LearnedTime(), MagnitudeTime(), NoTime()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [None, 3])
def test_times_of_any_kind_of_number_are_taken(config: Any, dtype: torch.dtype, classes: int | None) -> None:
    net, x = tiny(time=config, num_classes=classes).to(dtype), images(3, 3, 5, 4, dtype=dtype)
    told = {} if classes is None else {"class_labels": torch.tensor([0, 1, 2])}
    for t in (5, 5.0, torch.tensor([5, 6, 7]), T, T.double()):
        assert net(x, t, **told).dtype == dtype


# --- classes and vectors ---------------------------------------------------------------------------------------------


def one_hot(labels: Tensor) -> Tensor:
    """sqrt(N) at the class; zeros for none."""
    return math.sqrt(3) * torch.eye(4)[labels, :3]


def test_a_table_is_added_behind_the_mlp() -> None:
    told = tiny(num_classes=3, null_class=True).conditioning
    expected = told.time(T) + told.classes.weight[LABELS]
    torch.testing.assert_close(told(T, LABELS), expected)


def test_a_linear_class_is_added_before_the_mlp() -> None:
    """EDM, 2206.00364; no class is zeros, of which the bias stays."""
    told = tiny(num_classes=3, null_class=True, class_embedding=ClassLinear()).conditioning
    named = one_hot(LABELS) @ told.classes.linear.weight.T + told.classes.linear.bias
    torch.testing.assert_close(told(T, LABELS), by_mlp(told.time, told.time.features(T) + named))
    assert torch.equal(named[2], told.classes.linear.bias)


@pytest.mark.parametrize("t", [SinusoidalTime(), MagnitudeTime(), NoTime()], ids=str)
def test_a_balanced_class_is_a_balanced_sum(t: Any) -> None:
    """EDM2, 2312.02696."""
    config = ClassBalanced(balance=0.3)
    told = tiny(num_classes=3, null_class=True, class_embedding=config, time=t).conditioning
    w = told.classes.linear.weight
    rows = w / (1e-4 + w.norm(dim=1, keepdim=True) / math.sqrt(3)) / math.sqrt(3)
    torch.testing.assert_close(told(T, LABELS), mp_sum(told.time(T), one_hot(LABELS) @ rows.T, 0.3))


def test_a_vector_is_added_before_the_mlp() -> None:
    told = tiny(vector_channels=5).conditioning
    vector = images(3, 5)
    expected = by_mlp(told.time, told.time.features(T) + vector @ told.vector.weight.T)
    torch.testing.assert_close(told(T, None, vector), expected)
    assert torch.equal(told(T, None), told(T, None, torch.zeros(3, 5)))
    assert told.vector.bias is None


def test_vector_and_linear_class_are_added_to_each_other() -> None:
    told = tiny(num_classes=3, vector_channels=5, class_embedding=ClassLinear()).conditioning
    vector, labels = images(3, 5), torch.tensor([0, 1, 2])
    sum_of_both = told.time.features(T) + told.classes(labels) + told.vector(vector)
    torch.testing.assert_close(told(T, labels, vector), by_mlp(told.time, sum_of_both))


@pytest.mark.parametrize("kind", CLASSES)
def test_no_label_is_the_null_class(kind: Any) -> None:
    net, x = tiny(num_classes=4, null_class=True, class_embedding=kind), images(2, 3, 8, 8)
    assert net.null_label == 4
    assert torch.equal(net(x, 5), net(x, 5, torch.tensor([4, 4])))
    assert not torch.allclose(net(x, 5), net(x, 5, torch.tensor([0, 1])), atol=1e-4)


def test_a_table_has_a_row_for_each_class_and_one_for_none() -> None:
    rows = {null: tiny(num_classes=4, null_class=null).conditioning.classes.weight.shape[0] for null in (False, True)}
    assert rows == {False: 4, True: 5}
    assert tiny().null_label is None
    assert tiny(num_classes=4).null_label is None


@pytest.mark.parametrize("kind", CLASSES)
def test_labels_are_refused_without_classes_and_needed_with_them(kind: Any) -> None:
    x = images(2, 3, 8, 8)
    with pytest.raises(ValueError, match="the network has no classes"):
        tiny()(x, 5, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels are needed: the network has classes and no null class"):
        tiny(num_classes=4, class_embedding=kind)(x, 5)
    with pytest.raises(ValueError, match="vector was given but the network takes none"):
        tiny()(x, 5, vector=images(2, 5))


@pytest.mark.parametrize("kind", [SinusoidalTime, FourierTime, LearnedTime])
def test_time_has_the_right_gradients(kind: Any) -> None:
    told = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    part = time(kind(), 4, 4)
    part.table = torch.nn.Embedding(3, 4) if kind is LearnedTime else None
    part.forward = lambda told, forward=part.forward: forward(torch.tensor([1.25]), told)
    assert_right_gradients(part, told)


# --- uncertainty, and a network that is told sigma -------------------------------------------------------------------


def test_the_uncertainty_is_a_normalised_map_of_cosines() -> None:
    """EDM2, 2312.02696, eq. 16: u(t), which starts near zero for no time in particular."""
    net = tiny(uncertainty_channels=16)
    w = net.uncertainty.linear.weight
    expected = net.uncertainty.fourier(T) @ (w / (1e-4 + w.norm() / 4) / 4)[0]
    torch.testing.assert_close(net.log_variance(T), expected)
    assert net.log_variance(2.0).shape == (1,)
    assert torch.equal(net.log_variance(2), net.log_variance(torch.tensor([2.0])))
    with pytest.raises(ValueError, match="no learned log variance"):
        tiny().log_variance(T)


def test_the_uncertainty_leaves_the_answer_alone() -> None:
    net, other = tiny(uncertainty_channels=16), tiny()
    weights = {name: value for name, value in net.state_dict().items() if not name.startswith("uncertainty")}
    other.load_state_dict(weights)
    x = images(2, 3, 8, 8)
    assert torch.equal(net(x, 5), other(x, 5))


def test_a_score_network_divides_by_its_time() -> None:
    net, x, t = tiny(divide_by_time=True), images(3, 3, 5, 4), torch.tensor([0.5, 2.0, 80.0])
    plain = tiny()(x, t)
    torch.testing.assert_close(net(x, t), plain / t[:, None, None, None])
    assert net.bfloat16()(x.bfloat16(), t).dtype == torch.bfloat16


def test_every_block_hears_the_time() -> None:
    """Shift and scale from the embedding, in each block and in those that resample."""
    net = tiny(block=ResidualBlock(groups=2), down="in_block", up="in_block")
    linears = [name for name, _ in net.named_parameters() if name.endswith("embed.weight")]
    assert len(linears) == 3 + 2 + 2 + 6 + 2  # down, its operators, mid, up, its operators
