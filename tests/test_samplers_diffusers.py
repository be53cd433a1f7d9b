"""diffusers as a second opinion: our steps equal its, and through the adapter its schedulers drive our denoisers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import Schedule, compat, generate
from diffunet.errors import ConfigError
from diffunet.samplers import Noise, build
from tests import tiny
from tests.oracles import Gaussian, Mixture
from tests.test_samplers import final_std, gain

# diffusers makes arrays of tensors in ways that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
LINEAR: Any = Schedule.linear()
SHAPE = (2, 1, 8)
# our sampler, diffusers' scheduler, its options, options of its step
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "ddim": ({"kind": "ddim"}, "DDIMScheduler", {}, {"use_clipped_model_output": True}),
    "ddim eta=1": (
        {"kind": "ddim", "eta": 1.0},
        "DDIMScheduler",
        {},
        {"use_clipped_model_output": True, "eta": 1.0},
    ),
    "ddpm fixed_small": ({"kind": "ddpm"}, "DDPMScheduler", {"variance_type": "fixed_small"}, {}),
    "ddpm fixed_large": (
        {"kind": "ddpm", "variance": "fixed_large"},
        "DDPMScheduler",
        {"variance_type": "fixed_large"},
        {},
    ),
}
# what each scheduler makes of N(0, 0.5^2) in 50 steps may err by this much: its order and its start decide (measured:
# 0.029 for the first-order ones, at most 0.005 for the others)
DEVIATION = {
    "DDIMScheduler": 0.03,
    "EulerDiscreteScheduler": 0.03,
    "DEISMultistepScheduler": 0.006,
    "DPMSolverMultistepScheduler": 0.006,
    "HeunDiscreteScheduler": 0.006,
    "LMSDiscreteScheduler": 0.006,
    "PNDMScheduler": 0.006,
    "UniPCMultistepScheduler": 0.006,
}


def _theirs(pair: str, net: Any, clip: float | None, steps: int, spacing: str, exact: bool = True) -> Tensor:
    """x after each step of the diffusers scheduler, started and stepped with the noise of seeds 0 and 1."""
    _, name, options, step_options = PAIRS[pair]
    made = getattr(compat.diffusers(), name)
    options = options | {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0, "timestep_spacing": spacing}
    scheduler = made(num_train_timesteps=1000, **options)
    if exact:
        # in float32 its 1 - abar_t / abar_s is wrong in the 4th digit near t = 0; a float64 table has it computed right
        scheduler.alphas_cumprod = LINEAR.alphas_bar()
    scheduler.set_timesteps(steps)
    source, trajectory = Noise([0, 1]), []
    x = LINEAR.sigma(1.0) * source(SHAPE[1:])
    for k in scheduler.timesteps:
        eps = net(x, k)
        x = scheduler.step(eps, k, x, generator=source.generators, **step_options).prev_sample
        trajectory.append(x)
    return torch.stack(trajectory)


GRIDS = [(10, "leading"), (10, "trailing"), (50, "leading"), (50, "trailing"), (100, "leading"), (100, "trailing")]
# 1000 steps cost 2 s, and both spacings visit every index
CASES = [(pair, clip, *grid) for pair in PAIRS for clip in (None, 1.0) for grid in GRIDS]
CASES += [("ddim", 1.0, 1000, "trailing"), ("ddpm fixed_small", None, 1000, "leading")]


@pytest.mark.parametrize(("pair", "clip", "steps", "spacing"), CASES)
@torch.no_grad()
def test_every_step_is_that_of_diffusers(pair: str, clip: float | None, steps: int, spacing: str) -> None:
    den = tiny.denoiser(clip=None if clip is None else (-clip, clip))
    theirs, ours = _theirs(pair, den.network, clip, steps, spacing), []
    generate(den, SHAPE, PAIRS[pair][0], steps, spacing, on_step=lambda progress: ours.append(progress.x))
    assert len(ours) == steps
    if pair == "ddpm fixed_large" and spacing == "trailing":
        # diffusers adds noise to the clean image there, since its last index is not 0
        theirs, ours = theirs[:-1], ours[:-1]
    largest = theirs.abs().max().item()
    torch.testing.assert_close(torch.stack(ours), theirs, rtol=0, atol=1e-5 * largest)  # float32 over 1000 steps


# As shipped, in float32: DDIM at every count; DDPM only while its coefficients are far from t = 0. Measured beyond,
# without clip: 1.1e-5 of the largest value at 100 leading steps, 2e-5 at 250, 6.9e-5 at 1000. Its own table in our
# schedule changes that little: it is its arithmetic, so the test above gives it numbers in which that is exact.
STOCK = [(pair, *grid) for pair in ("ddim", "ddim eta=1") for grid in (*GRIDS, (1000, "leading"), (1000, "trailing"))]
STOCK += [(p, *grid) for p in PAIRS if p.startswith("ddpm") for grid in (*GRIDS[:4], (100, "trailing"))]


@pytest.mark.parametrize(("pair", "steps", "spacing"), STOCK)
@torch.no_grad()
def test_every_step_is_that_of_diffusers_as_shipped(pair: str, steps: int, spacing: str) -> None:
    den, ours = tiny.denoiser(clip=None), []
    theirs = _theirs(pair, den.network, None, steps, spacing, exact=False)
    generate(den, SHAPE, PAIRS[pair][0], steps, spacing, on_step=lambda progress: ours.append(progress.x))
    if pair == "ddpm fixed_large" and spacing == "trailing":
        theirs, ours = theirs[:-1], ours[:-1]
    torch.testing.assert_close(torch.stack(ours), theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("scheduler", DEVIATION)
def test_deterministic_schedulers_reach_the_deviation_of_the_data(scheduler: str) -> None:
    den = Gaussian(LINEAR)
    assert gain(den, scheduler, 50) == pytest.approx(0.5, abs=DEVIATION[scheduler])


def test_ddpm_scheduler_reaches_the_deviation_of_our_ddpm() -> None:
    den = Gaussian(LINEAR)
    images = generate(den, (8, 1, 2048), "DDPMScheduler", 50)
    # the deviation of n draws errs by 1 / sqrt(2 n) = 0.55 %; four of them
    assert images.std().item() == pytest.approx(final_std(den, "ddpm", 50), rel=0.022)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 10, 50, 200])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_adapted_ddim_is_our_ddim(schedule: str, steps: int, spacing: str) -> None:
    """Where the steps divide T: elsewhere diffusers' DDIM steps to an index that it does not visit next."""
    den = Gaussian(getattr(Schedule, schedule)(), mean=0.3)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = noise / den.schedule.sigma(1.0)
    # theirs starts from unit noise, ours from sigma(1) of it; 1e-3: float32 tables where 1 / alpha reaches 2e4
    torch.testing.assert_close(
        generate(den, SHAPE, "DDIMScheduler", steps, spacing, noise=noise),
        generate(den, SHAPE, "ddim", steps, spacing, noise=start),
        rtol=0,
        atol=1e-3,
    )


def test_adapted_ddim_is_our_ddim_on_a_network_with_clip() -> None:
    den = tiny.denoiser()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    theirs = generate(den, SHAPE, "DDIMScheduler", 20, noise=noise)
    torch.testing.assert_close(theirs, generate(den, SHAPE, "ddim", 20, noise=noise), rtol=0, atol=1e-4)
    assert theirs.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "DEISMultistepScheduler"])
def test_an_image_never_depends_on_its_batch(scheduler: str) -> None:
    den = Gaussian(LINEAR)
    together = generate(den, (5, 1, 4), scheduler, 10)
    for batch_size in (1, 2):
        assert torch.equal(generate(den, (5, 1, 4), scheduler, 10, batch_size=batch_size), together)
    assert torch.equal(generate(den, (2, 1, 4), scheduler, 10, seed=3), together[3:])


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_parallel_requests_do_not_share_a_scheduler(scheduler: str) -> None:
    """diffusers' schedulers keep state: shared by threads they crash or give wrong images silently."""
    den, rule = Mixture(LINEAR), build(scheduler)
    serial = [generate(den, SHAPE, rule, 20, seed=2 * i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda i: generate(den, SHAPE, rule, 20, seed=2 * i), range(8)))
    assert len({image.sum().item() for image in serial}) == 8
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


def test_unknown_scheduler_is_an_error_that_names_the_nearest() -> None:
    for ask in (lambda: build("UniPCMultistpScheduler"), lambda: build({"kind": "diffusers", "scheduler": "UniPC"})):
        with pytest.raises(ConfigError, match=r"unknown diffusers scheduler 'UniPC.*one of: .*UniPCMultistepScheduler"):
            ask()
    with pytest.raises(ConfigError, match="did you mean 'UniPCMultistepScheduler'"):
        build("UniPCMultistpScheduler")


@pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_a_scheduler_that_takes_no_betas_is_refused(scheduler: str) -> None:
    with pytest.raises(ConfigError, match=f"{scheduler} takes no trained_betas"):
        generate(Gaussian(LINEAR), (1, 1), scheduler, 5)


@pytest.mark.parametrize(
    ("steps", "spacing", "message"), [(0, None, "steps = 0"), (1001, None, "steps = 1001"), (5, "karras", "'karras'")]
)
def test_wrong_steps_and_spacings_are_errors(steps: int, spacing: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(Gaussian(LINEAR), (1, 1), "DDIMScheduler", steps, spacing)
