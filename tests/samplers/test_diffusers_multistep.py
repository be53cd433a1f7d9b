"""Multistep samplers against diffusers' schedulers, step by step, on the levels of their own float32 tables.

Their schedulers compute in float32; ours in float64 on the same levels. So x agrees to 1e-6 of its largest value. The
estimates come from an exact denoiser at the levels themselves, so that rounding of their timesteps plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor

from diffunet.samplers import Noise, build
from diffunet.schedules import Discrete
from diffunet.spec import LinearSchedule
from tests.oracles import Mixture

diffusers = pytest.importorskip("diffusers")


class Levels:
    """The variance preserving process whose time is t = r / (1 + r), r = sigma / alpha: any level has a time."""

    def alpha(self, t: float) -> float:
        return 1 / math.hypot(1, t / (1 - t))

    def sigma(self, t: float) -> float:
        return t / (1 - t) * self.alpha(t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = 1 / (1 + (t / (1 - t)) ** 2).sqrt()
        return alpha, t / (1 - t) * alpha

    def times(self, r: Sequence[float]) -> list[float]:
        return [v / (1 + v) for v in r]


class Loaded(Discrete):
    """A table of alpha^2 that another library made."""

    def __init__(self, alphas_bar: Tensor) -> None:
        super().__init__(LinearSchedule(T=len(alphas_bar)))
        self.table = alphas_bar.double()

    def _plain_alphas_bar(self) -> Tensor:
        return self.table.clone()


class Tape(Noise):
    """Noise that was written down before."""

    def __init__(self, noises: Sequence[Tensor]) -> None:
        self.noises = iter(noises)

    def like(self, x: Tensor) -> Tensor:
        return next(self.noises)


LEVELS = Levels()
DEN = Mixture(LEVELS)  # type: ignore[arg-type]
X_1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, None]


def theirs(scheduler: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> list[Tensor]:
    """x after each of their steps, from x (1, 1, L) at the first level; levels are scheduler.sigmas."""
    trajectory, frame = [], scheduler.init_noise_sigma > 1  # x / alpha in LMS
    x = x * scheduler.init_noise_sigma if frame else x
    for i, k in enumerate(scheduler.timesteps):
        (t,) = LEVELS.times([float(scheduler.sigmas[i])])
        scheduler.scale_model_input(x, k)
        x_t = x * LEVELS.alpha(t) if frame else x
        eps = (x_t - LEVELS.alpha(t) * DEN(x_t, t)) / LEVELS.sigma(t)
        options = {"variance_noise": noises[i]} if noises else {}
        x = scheduler.step(eps, k, x, **options).prev_sample.double()
        (s,) = LEVELS.times([float(scheduler.sigmas[i + 1])])
        trajectory.append(x * LEVELS.alpha(s) if frame else x)
    return trajectory


def ours(sampler: Any, scheduler: Any, x: Tensor, noises: Sequence[Tensor] = ()) -> list[Tensor]:
    times = LEVELS.times([float(r) for r in scheduler.sigmas])
    scale = LEVELS.alpha(times[0]) * scheduler.init_noise_sigma if scheduler.init_noise_sigma > 1 else 1
    return [state.x for state in build(sampler).walk(DEN, LEVELS, x * scale, times, Tape(noises))]


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert float((x - y).abs().max()) <= 1e-6 * float(y.abs().max()), f"step {i}"


def scheduler(name: str, steps: int, **options: Any) -> Any:
    made = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, **options)
    made.set_timesteps(steps)
    made.sigmas = made.sigmas.double()  # the same float32 values; DEIS' own logarithms cancel too much in float32
    return made


GRIDS: list[dict[str, Any]] = [
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"use_karras_sigmas": True},
]
PAIRS: list[tuple[Any, str, dict[str, Any]]] = [
    ({"kind": "dpmpp_2m"}, "DPMSolverMultistepScheduler", {"solver_order": 2}),
    ({"kind": "dpmpp_2m", "solver_type": "heun"}, "DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ({"kind": "ddim"}, "DPMSolverMultistepScheduler", {"solver_order": 1}),
    ({"kind": "unipc"}, "UniPCMultistepScheduler", {}),
    ({"kind": "unipc", "order": 3}, "UniPCMultistepScheduler", {"solver_order": 3}),
    ({"kind": "unipc", "order": 1}, "UniPCMultistepScheduler", {"solver_order": 1}),
    ({"kind": "unipc", "corrector": False}, "UniPCMultistepScheduler", {"disable_corrector": list(range(20))}),
    ({"kind": "deis", "variable": "log_rho", "order": 2}, "DEISMultistepScheduler", {"lower_order_final": False}),
    (
        {"kind": "deis", "variable": "log_rho", "order": 3},
        "DEISMultistepScheduler",
        {"solver_order": 3, "lower_order_final": False},
    ),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "-".join(map(str, g.values())))
@pytest.mark.parametrize(("sampler", "name", "options"), PAIRS, ids=str)
def test_trajectory_is_theirs(sampler: Any, name: str, options: dict[str, Any], grid: dict[str, Any]) -> None:
    their = scheduler(name, 12, **options, **grid)
    assert_same(ours(sampler, their, X_1), theirs(their, X_1))


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_sde_with_the_same_noise_is_theirs(solver_type: str) -> None:
    noises = list(torch.randn(12, 1, 1, 9, dtype=torch.float64))
    options = {"algorithm_type": "sde-dpmsolver++", "solver_type": solver_type, "timestep_spacing": "trailing"}
    their = scheduler("DPMSolverMultistepScheduler", 12, **options)
    sampler = {"kind": "dpmpp_2m_sde", "solver_type": solver_type}
    assert_same(ours(sampler, their, X_1, noises), theirs(their, X_1, noises))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "-".join(map(str, g.values())))
def test_lms_is_theirs_up_to_the_last_step(grid: dict[str, Any]) -> None:
    """They extrapolate the noise down to the clean image; ours ends in the estimate. The quadrature errs by 1e-8."""
    their = scheduler("LMSDiscreteScheduler", 12, **grid)
    a, b = ours("lms", their, X_1), theirs(their, X_1)
    assert_same(a[:-1], b[:-1])
    assert not torch.allclose(a[-1], b[-1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["dpmpp_2m", "unipc"])
def test_a_schedule_of_their_table_walks_as_they_do(kind: str) -> None:
    """The same through our own discrete schedule and its times (k + 1) / T."""
    name = {"dpmpp_2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}[kind]
    their = scheduler(name, 10, timestep_spacing="trailing")
    schedule = Loaded(their.alphas_cumprod)
    times = [*((float(k) + 1) / 1000 for k in their.timesteps), 0.0]
    assert times == schedule.grid(10, "trailing").tolist()
    walk = build(kind).walk(Mixture(schedule), schedule, X_1, times, Noise([]))
    assert_same([state.x for state in walk], theirs(their, X_1))


def test_ipndm_is_theirs_on_the_process_of_its_own() -> None:
    """Theirs is written for alpha = cos(pi t / 2), sigma = sin(pi t / 2) and a network that predicts v."""

    class Circle(Levels):
        def alpha(self, t: float) -> float:
            return math.cos(math.pi / 2 * t)

        def sigma(self, t: float) -> float:
            return math.sin(math.pi / 2 * t)

        def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()

    circle = Circle()
    den, their, x, b = Mixture(circle), diffusers.IPNDMScheduler(), X_1, []  # type: ignore[arg-type]
    their.set_timesteps(12)
    times = torch.linspace(1, 0, 13, dtype=torch.float64).tolist()
    their.betas, their.alphas = (torch.tensor([f(t) for t in times]) for f in (circle.sigma, circle.alpha))
    # from their second time: in the first alpha is 0, and they lose the estimate
    for t, k in list(zip(times, their.timesteps, strict=False))[1:]:
        x_0 = den(x, t)
        eps = (x - circle.alpha(t) * x_0) / circle.sigma(t)
        # they make eps = sigma x + alpha v of it
        v = (eps - circle.sigma(t) * x) / circle.alpha(t)
        x = their.step(v, k, x).prev_sample
        b.append(x)
    a = [state.x for state in build("ipndm").walk(den, circle, X_1, times[1:], Noise([]))]
    assert_same(a[:-1], b[:-1])  # their last extrapolates the noise


def test_their_third_order_lacks_half_of_the_curvature() -> None:
    """D = lambda^2 has a closed form: x_s = (sigma_s / sigma_t) x + sigma_s [e^l (l^2 - 2 l + 2)] from t to s.

    Our third step meets it, theirs does not; with the missing half of the quadratic's share added, theirs does too.
    """
    their = scheduler("DPMSolverMultistepScheduler", 8, solver_order=3, lower_order_final=False, use_karras_sigmas=True)
    times, lam = LEVELS.times(their.sigmas.tolist()), [-math.log(float(r)) for r in their.sigmas[:-1]]

    class Parabola:
        schedule = LEVELS

        def __call__(self, x_t: Tensor, t: float) -> Tensor:
            return torch.full_like(x_t, math.log(LEVELS.alpha(t) / LEVELS.sigma(t)) ** 2)

    den, x, walked = Parabola(), X_1, []
    for i in range(4):
        x = their.step((x - LEVELS.alpha(times[i]) * den(x, times[i])) / LEVELS.sigma(times[i]), their.timesteps[i], x)
        walked.append(x := x.prev_sample.double())
    mine = [state.x for state in build("dpmpp_3m").walk(den, LEVELS, X_1, times, Noise([]))]

    def increment(trajectory: Sequence[Tensor]) -> float:
        """What the fourth step adds to (sigma_s / sigma_t) x, over sigma_s."""
        ratio = LEVELS.sigma(times[4]) / LEVELS.sigma(times[3])
        return float((trajectory[3] - ratio * trajectory[2]).mean()) / LEVELS.sigma(times[4])

    exact, _ = integrate.quad(lambda v: math.exp(v) * v**2, lam[3], lam[4], epsabs=0, epsrel=1e-13)
    square, _ = integrate.quad(lambda v: math.exp(v) * (v - lam[3]) ** 2, lam[3], lam[4], epsabs=0, epsrel=1e-13)
    assert increment(mine) == pytest.approx(exact, rel=1e-11)
    assert increment(walked) != pytest.approx(exact, rel=1e-3)
    # D2 is half the second derivative in units of the step; D1's own share of it is right
    assert increment(walked) + square / 2 == pytest.approx(exact, rel=1e-4)


def test_they_end_in_nan_where_ours_is_finite() -> None:
    """A thousand steps: two of their indices coincide. bh1: infinity times zero in the last step."""
    table = scheduler("UniPCMultistepScheduler", 12, solver_type="bh1")
    a, b = ours({"kind": "unipc", "variant": "bh1"}, table, X_1), theirs(table, X_1)
    assert_same(a[:-1], b[:-1])
    assert bool(b[-1].isnan().all())
    assert bool(a[-1].isfinite().all())
    repeated = scheduler("DPMSolverMultistepScheduler", 1000)
    assert bool(theirs(repeated, X_1)[-1].isnan().all())
    schedule = Loaded(repeated.alphas_cumprod)
    times = schedule.grid(1000, "trailing").tolist()
    *_, last = build("dpmpp_2m").walk(Mixture(schedule), schedule, X_1, times, Noise([]))
    assert bool(last.x.isfinite().all())
