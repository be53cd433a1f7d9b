"""Every scheduler that diffusers exports: it samples what it should, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffunet import Schedule, compat, generate
from diffunet.errors import ConfigError
from diffunet.samplers import build
from tests.oracles import Gaussian

DENOISERS = {kind: Gaussian(getattr(Schedule, kind)(), mean=0.3) for kind in ("linear", "karras", "flow")}
# schedule and steps of each that runs, and how far from N(0.3, 0.5^2) its deviation may end: its order, its noise and
# its steps decide (measured: 0.6 to 0.9 of these)
RUNS: dict[str, tuple[str, int, float]] = {
    "CogVideoXDDIMScheduler": ("linear", 50, 0.03),
    "DDIMParallelScheduler": ("linear", 50, 0.03),
    "DDIMScheduler": ("linear", 50, 0.03),
    "DDPMParallelScheduler": ("linear", 50, 0.065),
    "DDPMScheduler": ("linear", 50, 0.065),
    "DEISMultistepScheduler": ("linear", 50, 0.01),
    "DPMSolverMultistepScheduler": ("linear", 50, 0.01),
    "DPMSolverSinglestepScheduler": ("linear", 50, 0.01),
    "EDMDPMSolverMultistepScheduler": ("karras", 50, 0.01),
    "EDMEulerScheduler": ("karras", 50, 0.03),
    "EulerAncestralDiscreteScheduler": ("linear", 50, 0.065),
    "EulerDiscreteScheduler": ("linear", 50, 0.03),
    "FlowMapEulerDiscreteScheduler": ("flow", 50, 0.02),
    "FlowMatchEulerDiscreteScheduler": ("flow", 50, 0.02),
    "FlowMatchHeunDiscreteScheduler": ("flow", 50, 0.01),
    "HeunDiscreteScheduler": ("linear", 50, 0.01),
    "KDPM2AncestralDiscreteScheduler": ("linear", 20, 0.05),
    "KDPM2DiscreteScheduler": ("linear", 20, 0.02),
    "LMSDiscreteScheduler": ("linear", 20, 0.02),
    "PNDMScheduler": ("linear", 50, 0.01),
    "SASolverScheduler": ("linear", 30, 0.03),
    "UniPCMultistepScheduler": ("linear", 50, 0.01),
}
STOCHASTIC = {name for name in RUNS if any(word in name for word in ("DDPM", "Ancestral", "SASolver"))}
# what lacks a way to be told of a model, by what it needs
OTHER = "takes no|steps from more than|cannot sample|needs torchsde"


def exported() -> list[str]:
    module = compat.diffusers()
    return [n for n in dir(module) if n.endswith("Scheduler") and not n.startswith(("Flax", "Scheduler"))]


@pytest.mark.parametrize("scheduler", RUNS)
def test_a_scheduler_reaches_the_data(scheduler: str) -> None:
    schedule, steps, tolerance = RUNS[scheduler]
    images = generate(DENOISERS[schedule], (2, 1, 4096), scheduler, steps)
    # deviation and mean of n draws err by 0.5 / sqrt(2 n) = 0.004 and 0.5 / sqrt(n) = 0.0055; four of the second
    assert images.std().item() == pytest.approx(0.5, abs=tolerance + 0.012)
    assert images.mean().item() == pytest.approx(0.3, abs=0.022)


def test_every_other_scheduler_says_why_it_cannot_run() -> None:
    for scheduler in set(exported()) - set(RUNS):
        for den in DENOISERS.values():
            with pytest.raises(ConfigError, match=OTHER) as caught:
                generate(den, (1, 1, 4), scheduler, 3)
            assert scheduler in str(caught.value)


def test_the_wrong_schedule_is_answered_with_the_right_one() -> None:
    for scheduler, (right, *_) in RUNS.items():
        name = "discrete" if right == "linear" else right
        for kind in DENOISERS.keys() - {right}:
            with pytest.raises(ConfigError, match=f"{scheduler} takes no .*needs a {name} schedule, not '{kind}'"):
                generate(DENOISERS[kind], (1, 1, 4), scheduler, 3)


def test_distilled_and_upward_schedulers_are_refused_when_they_are_built() -> None:
    with pytest.raises(ConfigError, match="LCMScheduler cannot sample: it is made for networks distilled"):
        build("LCMScheduler")
    with pytest.raises(ConfigError, match=r"DDIMInverseScheduler cannot sample.*inversion\.encode"):
        build("DDIMInverseScheduler")


@pytest.mark.parametrize("scheduler", sorted(STOCHASTIC))
def test_noise_comes_from_each_images_own_generator(scheduler: str) -> None:
    schedule = RUNS[scheduler][0]
    together = generate(DENOISERS[schedule], (3, 1, 4), scheduler, 4)
    assert torch.equal(generate(DENOISERS[schedule], (3, 1, 4), scheduler, 4, batch_size=1), together)
    assert torch.equal(generate(DENOISERS[schedule], (1, 1, 4), scheduler, 4, seed=2), together[2:])
    start = torch.zeros(3, 1, 4)
    one, other = (generate(DENOISERS[schedule], (3, 1, 4), scheduler, 4, seed=s, noise=start) for s in (0, 9))
    assert not torch.equal(one, other)


class Asked(Gaussian):
    """Remembers what it was asked about."""

    def __call__(self, x_t: Any, t: Any, **cond: Any) -> Any:
        self.asked.append((t, x_t.std().item()))
        return super().__call__(x_t, t)

    def __init__(self, schedule: Any) -> None:
        super().__init__(schedule)
        self.asked: list[Any] = []


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_the_input_has_the_noise_that_the_network_is_told(scheduler: str) -> None:
    """linspace times are no integers, Heun asks twice at each, KDPM2 between: x_in must be alpha x0 + sigma eps."""
    den = Asked(Schedule.linear())
    generate(den, (1, 1, 8192), scheduler, 12, "linspace")
    assert any(abs(t * 1000 - round(t * 1000)) > 0.05 for t, _ in den.asked)
    # the flow keeps the deviation of p(x_t) but for the steps' errors; 8192 draws err by 0.8 %
    for t, std in den.asked[: len(den.asked) // 2]:
        assert std == pytest.approx(den.spread(t), rel=0.05)
    assert len(den.asked) == {"EulerDiscreteScheduler": 12}.get(scheduler, 23)


def test_a_scheduler_visits_its_own_times_only() -> None:
    with pytest.raises(ConfigError, match="give spacing by name"):
        generate(DENOISERS["linear"], (1, 1), "DDIMScheduler", 2, (1.0, 0.5))
    with pytest.raises(ConfigError, match="starts from noise"):
        build("DDIMScheduler").legs(Schedule.linear(), [0.5, 0.0])


def test_a_level_that_is_no_number_is_named() -> None:
    """KDPM2's ancestral levels on the cosine schedule: the logarithm of a negative rounding error."""
    with pytest.raises(ConfigError, match="KDPM2AncestralDiscreteScheduler works out a noise level that is no number"):
        generate(Gaussian(Schedule.cosine()), (1, 1, 4), "KDPM2AncestralDiscreteScheduler", 3, "trailing")
