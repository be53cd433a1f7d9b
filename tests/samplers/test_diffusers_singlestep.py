"""Single-step samplers, step by step beside diffusers' schedulers on a network, with their float32 tables."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, compat, generate
from diffunet.samplers import Noise, build
from tests.oracles import Gaussian, Mixture

SHAPE = (2, 1, 8)
# our sampler, diffusers' scheduler, its options; EulerAncestral draws the same noise from the same generators
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}


def theirs(scheduler: Any, den: Any, steps: int) -> list[Tensor]:
    """x / alpha after each step, in float64, of a scheduler that steps in x / alpha."""
    schedule = den.schedule
    scheduler.set_timesteps(steps)
    noise = Noise([0, 1])
    x = noise(SHAPE[1:]).double() * scheduler.init_noise_sigma.double()
    options = {"generator": noise.generators} if "Ancestral" in type(scheduler).__name__ else {}
    trajectory = []
    for k in scheduler.timesteps:
        x_in, t = scheduler.scale_model_input(x, k), (float(k) + 1) / 1000
        eps = (x_in - schedule.alpha(t) * den(x_in, t)) / schedule.sigma(t)
        x = scheduler.step(eps, k, x, **options).prev_sample.double()
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("sampler", PAIRS)
def test_every_step_is_that_of_diffusers(sampler: str, spacing: str) -> None:
    name, options = PAIRS[sampler]
    schedule: Any = Schedule.linear()
    den, rule = Mixture(schedule), build(sampler)
    made = getattr(compat.diffusers(), name)
    betas = schedule.betas().float().numpy()
    scheduler = made(num_train_timesteps=1000, trained_betas=betas, timestep_spacing=spacing, **options)
    expected = theirs(scheduler, den, 10)[rule.calls - 1 :: rule.calls]
    if sampler == "heun":
        expected.append(theirs(scheduler, den, 10)[-1])  # the last step is Euler's: one call
    times = rule.times(schedule, 10, spacing)
    source = Noise([0, 1])
    start = source(SHAPE[1:]).double() * float(scheduler.init_noise_sigma) * schedule.alpha(times[0])
    ours = [s.x / schedule.alpha(s.t) for s in rule.walk(den, schedule, start, times, source)]
    assert len(ours) == len(expected) == 10
    largest = max(float(x.abs().max()) for x in expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * largest)


def test_every_step_is_that_of_edms_euler() -> None:
    schedule: Any = Schedule.karras()
    den, seen = Mixture(schedule), {}
    noise = torch.randn(SHAPE, dtype=torch.float64)
    for sampler in ("euler", "EDMEulerScheduler"):
        states = seen[sampler] = []
        start = noise / (1 if sampler == "euler" else (80**2 + 1) ** 0.5 / 80)  # theirs begins at sqrt(sigma^2 + 1)
        generate(den, SHAPE, sampler, 18, noise=start, on_step=lambda p, states=states: states.append(p.x))
    for a, b in zip(*seen.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * 300)


@pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_single_step_dpm_solver_is_that_of_diffusers_where_steps_are_even_in_lambda(order: int) -> None:
    """diffusers takes its inner points from the grid: of `order` even steps of theirs one of ours is made.

    Its rule named heun is the paper's u_2 of order 3, that named midpoint the rest of the paper.
    """
    schedule: Any = Schedule.linear()
    den, rule, n = Mixture(schedule), build(f"dpm_solver_{order}"), 12
    made = compat.diffusers().DPMSolverSinglestepScheduler
    betas = schedule.betas().float().numpy()
    scheduler = made(
        trained_betas=betas,
        algorithm_type="dpmsolver",
        solver_order=order,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    scheduler.set_timesteps(n)
    lam = torch.linspace(-3, 2, n + 1, dtype=torch.float64)
    scheduler.sigmas = (-lam).exp()
    scheduler.set_begin_index(0)
    scheduler.order_list = scheduler.get_order_list(n)
    times = [float(schedule.t_of_logsnr(2 * float(value))) for value in lam]
    x = torch.randn(SHAPE, dtype=torch.float64)
    start, theirs = x, []
    for i, (t, k) in enumerate(zip(times, list(scheduler.timesteps), strict=False)):
        scheduler.register_to_config(solver_type="heun" if i % order == 1 and order == 3 else "midpoint")
        eps = (x - schedule.alpha(t) * den(x, t)) / schedule.sigma(t)
        x = scheduler.step(eps, k, x).prev_sample.double()
        theirs.append(x)
    ours = [state.x for state in rule.walk(den, schedule, start, times[::order], Noise([]))]
    for a, b in zip(ours, theirs[order - 1 :: order], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * max(1.0, float(start.abs().max())))


def test_linspace_of_diffusers_ddim_is_wrong_and_ours_is_the_closed_form() -> None:
    """It steps to k - T // n, which its own linspace times do not visit."""
    den = Gaussian(Schedule.linear())
    one = torch.ones(1, 1, dtype=torch.float64)
    ours = generate(den, (1, 1), "euler", 10, "linspace", noise=one).item() / den.schedule.sigma(1.0)
    gain = 1.0
    times = den.schedule.grid(10, "linspace").tolist()
    for t, s in itertools.pairwise(times):
        a_t, s_t, a_s, s_s = (f(v) for v in (t, s) for f in (den.schedule.alpha, den.schedule.sigma))
        D = a_t * 0.25 / (a_t**2 * 0.25 + s_t**2)
        gain *= a_s * D + s_s * (1 - a_t * D) / s_t
    assert ours == pytest.approx(gain, abs=1e-12)
    assert ours == pytest.approx(0.36161172, abs=5e-9)
    assert abs(generate(den, (1, 1), "DDIMScheduler", 10, "linspace", noise=one).item() - gain) > 0.03
