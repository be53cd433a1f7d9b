"""The denoiser: thresholds against NumPy and diffusers, a learned variance, and the fast way of a single time."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffunet import Denoiser, Schedule, load, save
from diffunet import config as configs
from diffunet.denoiser import percentile, threshold_of
from diffunet.errors import ConfigError
from diffunet.predictions import PREDICTIONS
from diffunet.spec import DynamicClip
from tests import tiny
from tests.tiny import PROCESSES


class Says(nn.Module):
    """A network that always says the same, and records what it was told."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.x, self.t = x, t
        return self.output


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(share=st.floats(0.01, 1), n=st.integers(1, 40))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_percentile_is_numpys(share: float, n: int) -> None:
    x = noise(3, n)
    np.testing.assert_allclose(percentile(x, share), np.quantile(x.numpy(), share, axis=1), rtol=1e-12)


@pytest.mark.parametrize("limit", [1.5, 100.0])
def test_a_dynamic_threshold_is_that_of_diffusers(limit: float) -> None:
    theirs = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=limit)
    x0 = torch.cat([0.2 * noise(1, 2, 5, 7), 3 * noise(2, 2, 5, 7, seed=1)]).float()  # the first stays as it is
    ours = threshold_of(DynamicClip(percentile=0.9, limit=limit))(x0)
    torch.testing.assert_close(ours, theirs._threshold_sample(x0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[0], x0[0].clamp(-1, 1))
    if limit == 100:  # without a limit nothing leaves [-1, 1], and each image has its own cut
        assert torch.equal(ours, threshold_of(DynamicClip(percentile=0.9))(x0))
        assert ours.abs().max() <= 1


@pytest.mark.parametrize(("clip", "expected"), [(None, [-3, 0.5, 2]), ((-1, 1.5), [-1, 0.5, 1.5])])
def test_a_static_threshold_cuts_and_none_leaves(clip: Any, expected: list[float]) -> None:
    x0 = torch.tensor([[-3, 0.5, 2]])
    den = Denoiser(Says(x0), Schedule.linear(), "x0", clip)
    assert torch.equal(den.threshold(x0), torch.tensor([expected]))
    assert torch.equal(den(x0, 0.5), torch.tensor([expected]))
    assert torch.equal(den.estimate(x0, 0.5), x0)


@pytest.mark.parametrize("clip", [None, (-1.0, 0.5), DynamicClip(limit=4.0)])
def test_a_threshold_travels_with_the_weights(clip: Any, tmp_path: Path) -> None:
    den = tiny.denoiser(clip=clip)
    save(den, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").clip == clip
    for again in (copy.deepcopy(den), pickle.loads(pickle.dumps(den))):
        assert torch.equal(again.threshold(noise(1, 1, 9)), den.threshold(noise(1, 1, 9)))


@pytest.mark.parametrize(
    ("clip", "meant"),
    [
        (False, None),
        ([-2, 2], (-2.0, 2.0)),
        ("dynamic", DynamicClip()),
        ({"percentile": 0.9}, DynamicClip(percentile=0.9)),
        ({"kind": "dynamic", "limit": 2.0}, DynamicClip(limit=2.0)),
    ],
)
def test_a_config_says_the_threshold(clip: Any, meant: Any) -> None:
    config = configs.resolve({"process": {"clip": clip}})
    assert config.process.clip == meant
    assert configs.resolve({"process": config.process.model_dump(mode="json")}).process.clip == meant


@pytest.mark.parametrize("clip", [[1], "static", {"kind": "dynamic", "percentil": 1}, {"limit": 0.5}, True])
def test_a_wrong_threshold_is_refused(clip: Any) -> None:
    with pytest.raises(ConfigError, match=r"process\.clip"):
        configs.resolve({"process": {"clip": clip}})
    with pytest.raises(ConfigError, match="clip"):
        Denoiser(nn.Identity(), Schedule.linear(), clip=clip)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.002, 0.5, 1.0])
def test_one_time_as_a_float_is_the_same_as_a_time_for_each(prediction: str, t: float) -> None:
    den = Denoiser(Says(noise(3, 2, 5)), PROCESSES[prediction], prediction, clip=(-2, 2))
    x_t = noise(3, 2, 5, seed=1)
    fast = den(x_t, t), den.network.x, den.network.t
    slow = den(x_t, torch.full((3,), t, dtype=torch.float64)), den.network.x, den.network.t
    torch.testing.assert_close(fast, slow, rtol=1e-13, atol=1e-13)
    assert (fast[2].shape, fast[2].dtype) == ((3,), torch.float32)


def test_a_learned_variance_stands_behind_the_guess() -> None:
    network = tiny.unet(learned_variance=True)
    den, x_t = Denoiser(network, Schedule.linear(), clip=(-0.5, 0.5)), noise(2, 1, 8)
    x0, v = den.with_variance(x_t, 0.3)
    raw = network(x_t.float(), den.schedule.network_time(0.3)).double()
    torch.testing.assert_close(v, (raw[:, 1:] + 1) / 2)
    torch.testing.assert_close(x0, den(x_t, 0.3))
    torch.testing.assert_close(den.guess(x_t, 0.3).double(), raw[:, :1])


def test_without_a_learned_variance_there_is_none_to_ask_for() -> None:
    with pytest.raises(ConfigError, match="no learned variance"):
        tiny.denoiser().with_variance(noise(1, 1, 8), 0.5)


def test_what_is_known_of_a_network_is_seen_through_a_parallel_wrapper_and_follows_a_new_one() -> None:
    """DistributedDataParallel keeps the network as `module`."""
    inner = tiny.unet(num_classes=3, null_class=True, learned_variance=True, self_conditioning=True)
    wrapper = nn.Module()
    wrapper.module = inner
    den = Denoiser(wrapper, Schedule.linear())
    assert (den.null_label, den.num_classes, den.learned_variance, den.self_conditioning) == (3, 3, True, True)
    den.network = tiny.unet()
    assert (den.null_label, den.num_classes, den.learned_variance, den.self_conditioning) == (None, None, False, False)


def test_the_network_is_fed_its_own_kind_of_number() -> None:
    den = tiny.denoiser()
    assert den(noise(1, 1, 8), 0.5).dtype == torch.float64
    den.network.to(torch.bfloat16)  # also after the first call
    assert den(noise(1, 1, 8), 0.5).dtype == torch.float64
