"""Which prediction is possible on which schedule, and what the refusals say."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from diffunet import Schedule
from diffunet.errors import ConfigError
from diffunet.predictions import PREDICTIONS
from diffunet.schedules import SCHEDULES
from diffunet.spec import ProcessConfig
from diffunet.spec.process import mismatch

PRESERVING, EXPLODING = ("linear", "scaled_linear", "cosine", "sigmoid", "vp", "laplace"), ("ve", "karras")
FITS = {
    **{name: {"eps", "x0", "v"} for name in PRESERVING},
    **{name: {"eps", "x0", "edm"} for name in EXPLODING},
    "flow": {"x0", "flow"},
}


@pytest.mark.parametrize(("schedule", "prediction"), [*product(SCHEDULES, PREDICTIONS)])
def test_a_prediction_is_refused_exactly_where_its_formula_fails(schedule: str, prediction: str) -> None:
    problems = mismatch(schedule, prediction)
    assert bool(problems) == (prediction not in FITS[schedule])
    assert all(f"prediction '{prediction}' needs" in problem and f"'{schedule}'" in problem for problem in problems)
    assert mismatch(getattr(Schedule, schedule)().config, prediction) == problems


@pytest.mark.parametrize("schedule", PRESERVING[:4])
def test_eps_is_refused_where_the_last_index_is_noise(schedule: str) -> None:
    """2305.08891: eps of pure noise says nothing of the image."""
    config = getattr(Schedule, schedule)(zero_terminal_snr=True).config
    assert "alpha(1) > 0" in mismatch(config, "eps")[0]
    assert "use 'v'" in mismatch(config, "eps")[0]
    assert mismatch(config, "v") == mismatch(config, "x0") == []
    with pytest.raises(ValidationError, match="prediction 'eps' needs signal"):
        ProcessConfig(schedule=config)


@pytest.mark.parametrize("schedule", EXPLODING)
def test_a_recipe_does_not_feed_a_network_unscaled_noise(schedule: str) -> None:
    for prediction in ("eps", "x0"):
        with pytest.raises(ValidationError, match=f"use 'edm' with '{schedule}'"):
            ProcessConfig(schedule=schedule, prediction=prediction)  # type: ignore[arg-type]
    assert ProcessConfig(schedule=schedule, prediction="edm").schedule.kind == schedule  # type: ignore[arg-type]


@pytest.mark.parametrize(("schedule", "prediction"), [(s, p) for s in FITS for p in sorted(FITS[s])])
def test_what_fits_gives_a_finite_image_at_every_time(schedule: str, prediction: str) -> None:
    rule: Any = PREDICTIONS[prediction]()
    process = getattr(Schedule, schedule)()
    alpha, sigma = process.alpha_sigma(torch.linspace(process.t_min, 1, 7, dtype=torch.float64))
    x0, eps = torch.full_like(alpha, 0.5), torch.full_like(alpha, -1.3)
    back = rule.x0(alpha * x0 + sigma * eps, rule.target(x0, eps, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-9)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ConfigError, match="schedule 'linaer'"):
        mismatch("linaer", "eps")
