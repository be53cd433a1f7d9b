"""From images to noise and back by DDIM."""

from __future__ import annotations

import math

import pytest
import torch

from diffunet import Schedule, generate
from diffunet.errors import ConfigError
from diffunet.samplers.inversion import decode, encode
from tests.oracles import Gaussian, Mixture

KINDS = ["linear", "cosine", "karras", "flow"]
X0 = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(3, 4)


def miss(den: object, steps: int, iterations: int = 1) -> float:
    """The largest error of an image that went up and down again."""
    return (decode(den, encode(den, X0, steps, iterations=iterations), steps) - X0).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_images_return_and_their_error_falls_with_the_steps(kind: str) -> None:
    den = Gaussian(getattr(Schedule, kind)(), mean=0.3)
    few, many = miss(den, 25), miss(den, 200)
    # both ways share their first-order errors, so that the way round is of second order: 3 from 25 to 200 steps is 512
    assert math.log(few / many) / math.log(8) == pytest.approx(2, abs=0.35)
    assert many < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_take_the_error_to_nothing(kind: str) -> None:
    den = Mixture(getattr(Schedule, kind)())
    errors = [miss(den, 80, iterations) for iterations in (1, 4, 25)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_an_image_is_that_of_the_probability_flow(kind: str) -> None:
    den = Gaussian(getattr(Schedule, kind)(), mean=0.3)
    exact = (X0 - 0.3) / 0.5 * den.spread(1.0) + den.schedule.alpha(1.0) * 0.3
    few, many = ((encode(den, X0, steps) - exact).abs().max().item() / den.spread(1.0) for steps in (50, 400))
    assert math.log(few / many) / math.log(8) == pytest.approx(1, abs=0.15)


def test_decode_is_what_generate_makes_of_that_noise() -> None:
    den = Mixture(Schedule.linear())
    noise = torch.randn(3, 4, dtype=torch.float64)
    images = generate(den, (3, 4), "ddim", 10, noise=noise)
    assert torch.equal(decode(den, den.schedule.sigma(1.0) * noise, 10), images)


def test_a_round_costs_a_call_a_step() -> None:
    asked: list[float] = []

    class Counting(Gaussian):
        def __call__(self, x_t: torch.Tensor, t: float, **cond: object) -> torch.Tensor:
            asked.append(t)
            return super().__call__(x_t, t)

    encode(Counting(Schedule.linear()), X0, 10)
    assert len(asked) == 10
    assert min(asked) > 0
    with pytest.raises(ConfigError, match="iterations = 0"):
        encode(Gaussian(Schedule.linear()), X0, 10, iterations=0)
