"""Kinds of guidance against closed forms: composition, a weaker guide, a classifier, rescaling, intervals in sigma."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffunet import Denoiser, Schedule, generate
from diffunet.errors import ConfigError
from diffunet.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Composition,
    Interval,
    Rescale,
    SigmaInterval,
    build,
)
from diffunet.spec import DataInfo
from tests import tiny
from tests.oracles import Gaussian
from tests.test_guidance import LINEAR, SHAPE, classes

KARRAS = Schedule.karras()
TIMES = (0.05, 0.4, 0.9, 1.0)


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    """float64, but a network is told a float32 index."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# --- composition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_composed_gaussians_are_the_gaussian_with_the_composed_mean(x_t: Tensor, t: float) -> None:
    """Equal variances: p_u prod_i (p_i / p_u)^(w_i) has mean m_u + sum_i w_i (m_i - m_u), for and against classes."""
    den, scales = classes(1.0, -0.5, 0.3, 0.1), (2.0, 1.5, -0.7)
    labels = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 2, 2], [0, 0, 1]])
    found = Composition(den, scales)(x_t, t, class_labels=labels)
    assert den.network.calls == [4 * 4]
    for i, row in enumerate(labels.tolist()):
        mean = 0.1 + sum(w * ((1.0, -0.5, 0.3)[label] - 0.1) for w, label in zip(scales, row, strict=True))
        close(found[i], Gaussian(LINEAR, mean=mean)(x_t[i : i + 1], t)[0])


def test_the_last_classes_may_be_the_same_for_all(x_t: Tensor) -> None:
    den, first = classes(1.0, -0.5, 0.3, 0.1), torch.tensor([0, 1, 2, 0])
    each = torch.stack([first, torch.full_like(first, 2), torch.full_like(first, 1)], dim=1)
    expected = Composition(den, (2.0, 1.5, -0.7))(x_t, 0.5, class_labels=each)
    assert torch.equal(Composition(den, (2.0, 1.5, -0.7), (2, 1))(x_t, 0.5, class_labels=first), expected)
    spec = {"kind": "composition", "scales": [2.0, 1.5, -0.7], "classes": [2, 1]}
    assert torch.equal(build(den, spec)(x_t, 0.5, class_labels=first), expected)


def test_composition_of_one_class_is_classifier_free_guidance(x_t: Tensor) -> None:
    den, labels = tiny.denoiser(num_classes=3, null_class=True), torch.tensor([0, 1, 2, 1])
    one = Composition(den, (2.5,))(x_t.float(), 0.5, class_labels=labels)
    assert torch.equal(one, ClassifierFree(den, 2.5)(x_t.float(), 0.5, class_labels=labels))


def test_generate_takes_several_classes_for_each_image() -> None:
    den, labels = classes(1.0, -0.5, 0.1), torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    spec = {"kind": "composition", "scales": (1.5, 1.0)}
    images = generate(den, SHAPE, steps=5, guidance=spec, class_labels=labels, batch_size=3)
    alone = generate(den, (1, *SHAPE[1:]), steps=5, guidance=spec, class_labels=labels[3:], seed=3)
    torch.testing.assert_close(images[3:], alone, rtol=0, atol=1e-5)
    assert den.network.calls[0] == 3 * 3
    with pytest.raises(ConfigError, match="2 scales, but an image has 1 classes"):
        generate(den, SHAPE, steps=5, guidance=spec, class_labels=0)
    with pytest.raises(ConfigError, match="the model has 0 to 1"):
        Composition(den, (1.0, 1.0), classes=(2,))


# --- a weaker guide ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_a_weak_gaussian_guides_to_the_gaussian_with_the_extrapolated_mean(x_t: Tensor, t: float) -> None:
    strong, weak = Gaussian(LINEAR, mean=0.8), Gaussian(LINEAR, mean=0.3)
    close(Autoguidance(strong, weak, 2.0)(x_t, t), Gaussian(LINEAR, mean=1.3)(x_t, t))
    assert torch.equal(Autoguidance(strong, weak, 1.0)(x_t, t), strong(x_t, t))
    close(Autoguidance(strong, weak, 0.0)(x_t, t), weak(x_t, t))


def test_each_network_is_called_once_a_step(x_t: Tensor) -> None:
    strong, weak = classes(1.0, 0.1), classes(0.6, 0.2)
    guided = Autoguidance(ClassifierFree(strong, 2.0), ClassifierFree(weak, 1.5), 3.0)
    labels = torch.zeros(4, dtype=torch.long)
    m_1, m_0 = 0.1 + 2 * 0.9, 0.2 + 1.5 * 0.4
    close(guided(x_t, 0.5, class_labels=labels), Gaussian(LINEAR, mean=m_0 + 3 * (m_1 - m_0))(x_t, 0.5))
    assert strong.network.calls == weak.network.calls == [8]
    Autoguidance(strong, weak, 1.0)(x_t, 0.5, class_labels=labels)
    assert (len(strong.network.calls), len(weak.network.calls)) == (2, 1), "w = 1 does not ask the guide"


def test_autoguidance_comes_from_a_callable_in_generate() -> None:
    strong, weak = Gaussian(LINEAR, mean=0.8), Gaussian(LINEAR, mean=0.3)
    guided = generate(strong, SHAPE, steps=8, guidance=lambda den: Autoguidance(den, weak, 2.0))
    torch.testing.assert_close(guided, generate(Gaussian(LINEAR, mean=1.3), SHAPE, steps=8), rtol=0, atol=1e-5)


def test_a_guide_must_fit() -> None:
    with pytest.raises(ConfigError, match="take one of the same"):
        Autoguidance(Gaussian(LINEAR), Gaussian(Schedule.cosine()), 2.0)
    strong, weak = tiny.denoiser(), tiny.denoiser()
    strong.data, weak.data = DataInfo(shape=(1, 8)), DataInfo(shape=(1, 9))
    with pytest.raises(ConfigError, match=r"shape \(1, 9\), the denoiser \(1, 8\)"):
        Autoguidance(strong, weak, 2.0)


# --- a classifier -----------------------------------------------------------------------------------------------------


class LinearGaussian:
    """p(y | x_t) of y = x_0 + noise of variance r, x_0 ~ N(0, 0.25): Gaussian around E[x_0 | x_t]."""

    def __init__(self, schedule: Any, r: float) -> None:
        self.prior, self.r = Gaussian(schedule), r

    def __call__(self, x_t: Tensor, t: float, y: Tensor) -> Tensor:
        alpha, sigma = self.prior.schedule.alpha(t), self.prior.schedule.sigma(t)
        variance = self.r + 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
        return -((y - self.prior(x_t, t)) ** 2 / (2 * variance)).flatten(1).sum(dim=1)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("schedule", [LINEAR, KARRAS])
def test_an_exact_classifier_guides_to_the_posterior(x_t: Tensor, schedule: Schedule, t: float) -> None:
    """s = 1 is Bayes' rule: x_0 | y is Gaussian with precision 4 + 1/r and mean y / r over that."""
    r, y = 0.1, torch.full(SHAPE, 0.7, dtype=torch.float64)
    precision = 4 + 1 / r
    posterior = Gaussian(schedule, mean=0.7 / r / precision, std=precision**-0.5)
    guided = ClassifierGuidance(Gaussian(schedule), LinearGaussian(schedule, r))
    with torch.no_grad():
        torch.testing.assert_close(guided(x_t, t, y=y), posterior(x_t, t), rtol=1e-9, atol=1e-9)
    assert torch.equal(
        ClassifierGuidance(Gaussian(schedule), LinearGaussian(schedule, r), 0.0)(x_t, t), Gaussian(schedule)(x_t, t)
    )


def test_a_classifier_guides_generate_with_each_images_own_condition() -> None:
    """A network of logits: two classes told apart by the sign of a sum."""

    def log_prob(x: Tensor, t: float, class_labels: Tensor) -> Tensor:
        logits = 3 * torch.stack([-x.flatten(1).mean(dim=1), x.flatten(1).mean(dim=1)], dim=1)
        return logits.log_softmax(dim=1).gather(1, class_labels[:, None])[:, 0]

    den = tiny.denoiser(clip=None)
    options: dict[str, Any] = {"steps": 6, "class_labels": torch.tensor([0, 1, 0, 1])}
    guided = generate(
        den, SHAPE, guidance=lambda d: ClassifierGuidance(d, log_prob, 4.0, private=["class_labels"]), **options
    )
    moved = (guided - generate(den, SHAPE, steps=6)).flatten(1).mean(dim=1)
    assert (moved.sign() == torch.tensor([-1, 1, -1, 1])).all()
    assert not guided.requires_grad


def test_pure_noise_tells_a_classifier_nothing(x_t: Tensor) -> None:
    """alpha = 0 at t = 1: sigma^2 / alpha is infinite there, but log p(y | x_1) does not depend on x_1."""
    flow = Schedule.flow()
    guided = ClassifierGuidance(Gaussian(flow), LinearGaussian(flow, 0.1))
    assert torch.equal(guided(x_t, 1.0, y=x_t), Gaussian(flow)(x_t, 1.0))


# --- rescaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescaling_gives_each_image_the_contrast_of_the_conditional_one(phi: float) -> None:
    net, x = tiny.denoiser(clip=None, num_classes=3, null_class=True), torch.randn(SHAPE, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    guided, base, _ = ClassifierFree(net, 7.0).estimates(x, 0.6, class_labels=labels)
    found = Rescale(ClassifierFree(net, 7.0), phi)(x, 0.6, class_labels=labels)
    deviations = [v.flatten(1).std(dim=1) for v in (guided, base, found)]
    torch.testing.assert_close(deviations[2], phi * deviations[1] + (1 - phi) * deviations[0], rtol=1e-6, atol=0)
    ratio = found / guided  # one number for each image: no pattern is changed
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand(SHAPE), rtol=1e-6, atol=0)
    assert (deviations[0] - deviations[1]).abs().min() > 1e-3, "else nothing would be restored"


def test_a_flat_estimate_stays_finite() -> None:
    flat = Gaussian(LINEAR, mean=0.3, std=0.0)
    assert torch.equal(Rescale(Autoguidance(flat, flat, 3.0), 1.0)(torch.randn(SHAPE), 0.5), torch.full(SHAPE, 0.3))


# --- where guidance acts, and how kinds combine -----------------------------------------------------------------------


def test_an_interval_in_sigma_is_where_sigma_over_alpha_lies(x_t: Tensor) -> None:
    """Karras at 18 steps (EDM, eq 5): 12.91 .. 1.088 are the sigmas in (0.6, 20)."""
    strong, weak, asked = Gaussian(KARRAS, mean=0.8), Gaussian(KARRAS, mean=0.3), []

    class Counted:
        schedule = KARRAS

        def __call__(self, x: Tensor, t: float) -> Tensor:
            asked.append(round(float(KARRAS.sigma(t)), 3))
            return weak(x, t)

    generate(strong, SHAPE, "ddim", 18, guidance=lambda d: SigmaInterval(Autoguidance(d, Counted(), 2.0), 0.6, 20.0))
    assert asked == [19.352, 12.91, 8.401, 5.315, 3.257, 1.923, 1.088]


def test_times_of_their_own_put_each_image_in_or_out(x_t: Tensor) -> None:
    strong, weak = Gaussian(LINEAR, mean=0.8), Gaussian(LINEAR, mean=0.3)
    guided, t = Autoguidance(strong, weak, 2.0), torch.tensor([0.2, 0.3, 0.7, 0.71], dtype=torch.float64)
    found = Interval(guided, 0.2, 0.7)(x_t, t)
    inside = torch.tensor([False, True, True, False]).reshape(-1, 1, 1)
    assert torch.equal(found, torch.where(inside, guided(x_t, t), strong(x_t, t)))


def test_kinds_combine_by_wrapping_and_a_spec_says_the_same(x_t: Tensor) -> None:
    den, labels = classes(1.0, 0.1), torch.zeros(4, dtype=torch.long)
    spec = {"kind": "classifier_free", "scale": 4.0, "rescale": 0.7, "interval": [0.2, 0.8], "sigmas": [0.5, 3.0]}
    wrapped = Interval(SigmaInterval(Rescale(ClassifierFree(den, 4.0), 0.7), 0.5, 3.0), 0.2, 0.8)
    acting = 0
    for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9):
        found = build(den, spec)(x_t, t, class_labels=labels)
        assert torch.equal(found, wrapped(x_t, t, class_labels=labels))
        acting += not torch.equal(found, den(x_t, t, class_labels=labels))
    assert acting == 2, "sigma / alpha of the linear schedule is 1.23 at 0.3, 2.03 at 0.4 and 3.42 at 0.5"


def test_what_guidance_is_not_is_the_denoisers_own() -> None:
    net = tiny.denoiser(num_classes=3, null_class=True)
    net.data = DataInfo(shape=(1, 8))
    guided = Rescale(ClassifierFree(net, 2.0), 0.5)
    assert (guided.schedule, guided.data, guided.num_classes, guided.null_label) == (net.schedule, net.data, 3, 3)
    assert {id(p) for p in guided.parameters()} == {id(p) for p in net.parameters()}
    whole = generate(
        net, 2, steps=3, guidance={"kind": "classifier_free", "scale": 2.0, "rescale": 0.5}, class_labels=1
    )
    assert torch.equal(generate(guided, 2, steps=3, class_labels=1), whole)


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        ({"kind": "classifier_fre", "scale": 2.0}, "classifier_fre"),
        ({"kind": "classifier_free", "scale": 2.0, "rescale": 1.5}, "rescale"),
        ({"kind": "classifier_free", "scale": 2.0, "sigmas": [3.0, 1.0]}, "sigmas = .* must be"),
        ({"kind": "composition", "scales": []}, "scales"),
        ("two", "guidance 'two'"),
    ],
)
def test_a_wrong_guidance_is_refused(guidance: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(classes(1.0, 0.0), guidance)


def test_an_interval_needs_a_guidance_that_acts_in_it() -> None:
    with pytest.raises(ConfigError, match="no guidance that could act in it"):
        generate(Gaussian(LINEAR), SHAPE, guidance_interval=(0.2, 0.8))


def test_a_learned_variance_is_not_guided() -> None:
    class Split(nn.Module):
        """Guess and variance that depend on the class."""

        null_label = 2
        config = type("Config", (), {"learned_variance": True, "num_classes": 2})

        def forward(self, x: Tensor, k: Tensor, class_labels: Tensor) -> Tensor:
            value = class_labels.reshape(-1, 1, 1).to(x)
            return torch.cat([x + value, value.expand_as(x) / 4], dim=1)

    den, x, label = Denoiser(Split(), LINEAR, "x0"), torch.zeros(1, 1, 2), torch.zeros(1, dtype=torch.long)
    x0, v = ClassifierFree(den, 3.0).with_variance(x, 0.5, class_labels=label)
    assert torch.equal(x0, torch.full_like(x, 2 + 3 * (0 - 2)))
    assert torch.equal(v, torch.full_like(x, 0.5))
