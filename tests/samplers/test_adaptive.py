"""Dormand and Prince's method: its error follows the tolerance, and no image depends on its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, generate
from diffunet.errors import ConfigError, NumericError
from diffunet.samplers import Noise, build
from tests.oracles import Gaussian, Mixture

KINDS = ["linear", "cosine", "karras", "flow"]
NOISE = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)


def rk45(tolerance: float) -> dict[str, Any]:
    return {"kind": "rk45", "tolerance": tolerance}


class Counting(Gaussian):
    """Counts its calls."""

    calls = 0

    def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
        self.calls += 1
        return super().__call__(x_t, t)


def errors(kind: str, tolerance: float) -> tuple[float, int]:
    """Largest error against the exact flow down to t_min and the estimate there, and the calls that it took."""
    den = Counting(getattr(Schedule, kind)(), mean=0.3)
    start = den.schedule.sigma(1.0) * NOISE
    exact = den(den.flow(start, 1.0, den.schedule.t_min), den.schedule.t_min)
    den.calls = 0
    got = generate(den, (3, 4), rk45(tolerance), 10, noise=NOISE)
    return (got - exact).abs().max().item(), den.calls


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_follows_the_tolerance(kind: str) -> None:
    found = {tolerance: errors(kind, tolerance) for tolerance in (1e-3, 1e-5, 1e-7)}
    assert all(error < 20 * tolerance for tolerance, (error, _) in found.items())
    calls = [calls for _, calls in found.values()]
    assert calls[0] < calls[1] < calls[2] < 150


@pytest.mark.parametrize("kind", ["linear", "flow"])
def test_an_image_never_depends_on_its_batch(kind: str) -> None:
    den = Mixture(getattr(Schedule, kind)())
    together = generate(den, (5, 1, 7), rk45(1e-4), 10)
    for batch_size in (1, 2):
        assert torch.equal(generate(den, (5, 1, 7), rk45(1e-4), 10, batch_size=batch_size), together)


def test_steps_change_how_often_one_looks_and_nothing_else() -> None:
    den, seen = Gaussian(Schedule.linear()), []
    once = generate(den, (3, 4), rk45(1e-4), 1, noise=NOISE)
    often = generate(den, (3, 4), rk45(1e-4), 200, noise=NOISE, on_step=seen.append)
    assert torch.equal(once, often)
    steps = [progress.step for progress in seen]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200
    assert seen[-1].t == 0
    assert len(steps) > 3


def test_a_walk_may_begin_and_end_anywhere() -> None:
    den, rule = Gaussian(Schedule.linear(), mean=0.3), build(rk45(1e-6))
    *_, down = rule.walk(den, den.schedule, NOISE, [0.8, 0.2], Noise([]))
    torch.testing.assert_close(down.x, den.flow(NOISE, 0.8, 0.2), rtol=0, atol=1e-5)
    *_, up = rule.walk(den, den.schedule, down.x, [0.2, 0.8], Noise([]))
    torch.testing.assert_close(up.x, NOISE, rtol=0, atol=1e-4)


def test_what_cannot_end_is_an_error() -> None:
    class Broken(Gaussian):
        def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
            return super().__call__(x_t, t) * float("nan")

    class Rough(Gaussian):
        def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
            return torch.randn_like(x_t)

    with pytest.raises(NumericError, match="3 of 3 images are not finite"):
        generate(Broken(Schedule.linear()), (3, 4), rk45(1e-3), 1)
    with pytest.raises(NumericError, match=r"without reaching the end: raise `tolerance`"):
        generate(Rough(Schedule.linear()), (3, 4), {"kind": "rk45", "tolerance": 1e-6, "max_calls": 100}, 1)


def test_a_schedule_without_the_time_of_a_noise_is_named() -> None:
    class Plain:
        def alpha(self, t: float) -> float:
            return 1 - t

        def sigma(self, t: float) -> float:
            return t

    den: Any = lambda x, t: x  # noqa: E731
    for kind in ("rk45", "restart", "dpm_solver_2"):
        with pytest.raises(ConfigError, match="Plain has no t_of_"):
            list(build(kind).walk(den, Plain(), NOISE, [0.9, 0.2, 0.05, 0.0], Noise([0, 1, 2])))
