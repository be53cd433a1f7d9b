"""CFG++: the sampler that renoises with the estimate that guidance leads away from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, generate
from diffunet.guidance import Autoguidance
from tests import tiny
from tests.oracles import Gaussian
from tests.test_guidance import LINEAR, SHAPE, classes

COSINE = Schedule.cosine()


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.6, 1.0])
def test_a_step_guides_the_image_and_puts_back_the_unguided_noise(noise: Tensor, scale: float) -> None:
    """The paper's recursion written out, on class means 0.8 and -0.1 of equal variance."""
    x, mixed, free = noise, Gaussian(LINEAR, mean=-0.1 + scale * 0.9), Gaussian(LINEAR, mean=-0.1)
    x = LINEAR.sigma(1.0) * x
    for t, s in pairwise(LINEAR.grid(8).tolist()):
        eps_u = (x - LINEAR.alpha(t) * free(x, t)) / LINEAR.sigma(t)
        x = LINEAR.alpha(s) * mixed(x, t) + LINEAR.sigma(s) * eps_u
    den = classes(0.8, -0.1)
    found = generate(den, SHAPE, "cfg++", 8, noise=noise, guidance=scale, class_labels=0)
    # float64, but the network is told a float32 index
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)
    assert den.network.calls == [8] * 8, "one call a step, of both estimates"


def test_scale_0_is_ddim_on_the_unconditional_model(noise: Tensor) -> None:
    net = tiny.denoiser(num_classes=3, null_class=True)  # with a threshold
    free = generate(net, SHAPE, "ddim", 8, noise=noise.float())
    found = generate(net, SHAPE, "cfg++", 8, noise=noise.float(), guidance=0.0, class_labels=1)
    # twice the batch may sum float32 in another order
    torch.testing.assert_close(found, free, rtol=0, atol=2e-4)
    other = generate(net, SHAPE, "cfg++", 8, noise=noise.float(), guidance=0.6, class_labels=1)
    assert not torch.allclose(other, free, atol=1e-2)


def test_scale_1_guides_the_image_alone(noise: Tensor) -> None:
    """Not the conditional sampler: the noise is still the unconditional model's."""
    den = classes(0.8, -0.1)
    found = generate(den, SHAPE, "cfg++", 8, noise=noise, guidance=1.0, class_labels=0)
    assert (found - generate(den, SHAPE, "ddim", 8, noise=noise, class_labels=0)).abs().min() > 1e-3


def test_outside_the_interval_it_is_ddim_on_the_conditional_model(noise: Tensor) -> None:
    den = classes(0.8, -0.1)
    plain = generate(den, SHAPE, "ddim", 8, noise=noise, class_labels=0)
    options = {"guidance": 0.6, "class_labels": 0}
    found = generate(den, SHAPE, "cfg++", 8, noise=noise, guidance_interval=(0.5, 0.5), **options)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)  # float64, other order of sums
    part = generate(den, SHAPE, "cfg++", 8, noise=noise, guidance_interval=(0.3, 0.6), **options)
    assert not torch.allclose(part, plain, atol=1e-3)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, Schedule.karras()])
def test_without_guidance_it_is_ddim(noise: Tensor, schedule: Schedule) -> None:
    den = Gaussian(schedule)
    found, ddim = (generate(den, SHAPE, name, 8, noise=noise) for name in ("cfg++", "ddim"))
    torch.testing.assert_close(found, ddim, rtol=0, atol=1e-12)  # float64, other order of sums


def test_a_weaker_guide_may_be_what_it_leads_away_from(noise: Tensor) -> None:
    """Autoguidance of 1 leaves the image as it is, so that only the noise is the guide's."""
    strong, weak = Gaussian(LINEAR, mean=0.5), Gaussian(LINEAR, mean=0.2)
    found = generate(strong, SHAPE, "cfg++", 8, noise=noise, guidance=lambda den: Autoguidance(den, weak, 1.0))
    classes_of_these = classes(0.5, 0.2)
    expected = generate(classes_of_these, SHAPE, "cfg++", 8, noise=noise, guidance=1.0, class_labels=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
