"""Memory by arithmetic against what processes really take."""

from __future__ import annotations

import pytest
from torch import nn

from diffunet.analysis.memory import as_json, estimate, forward, measure
from diffunet.analysis.weightless import inputs
from diffunet.errors import MemoryLimitError
from diffunet.nn import NETWORKS
from tests.analysis.networks import CONFIGS, sides_of, unet


@pytest.mark.parametrize(
    "name", ["2d", "1d", "3d", "classic-2d", "told-much", "pyramids", "block-magnitude_preserving"]
)
def test_an_estimate_adds_up(name: str) -> None:
    config = CONFIGS[name]
    found = estimate(config, 2, sides_of(config))
    weights = 4 * sum(p.numel() for p in NETWORKS.build(config).parameters())
    assert (found.weights, found.average, found.moments) == (weights, weights, 2 * weights)
    assert 0 <= found.gradients <= weights
    assert 0 < found.inference_working < found.working
    assert found.training == 4 * weights + found.gradients + found.working
    assert found.inference == weights + found.inference_working


def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    one, four = (estimate(unet(), batch, (32, 32)) for batch in (1, 4))
    assert one.weights == four.weights
    assert four.kept == pytest.approx(4 * one.kept, rel=0.02)


@pytest.mark.parametrize("name", ["2d", "attention-self", "attention-cosine", "block-magnitude_preserving"])
def test_recomputed_levels_keep_less(name: str) -> None:
    config = CONFIGS[name]
    every = config.model_copy(update={"checkpoint_levels": (0, 1)})
    plain, less = (estimate(c, 4, (16, 16)) for c in (config, every))
    assert less.kept < 0.6 * plain.kept
    assert less.training < plain.training
    assert less.inference == plain.inference


def test_the_estimate_is_near_the_measured_peak() -> None:
    """Hundreds of megabytes of activations, so that what any process has besides does not count."""
    config = unet(base_channels=32, channel_multipliers=(1,), attention_levels=(), attention_in_mid=False)
    found, peaks = as_json(estimate(config, 1, (320, 320))), measure(config, 1, (320, 320))
    assert found["training"] > 2e8
    assert {task: found[task] for task in peaks} == pytest.approx(peaks, rel=0.15)


def test_a_process_that_fails_is_reported() -> None:
    with pytest.raises(MemoryLimitError, match=r"the measured process failed .*; measure a smaller --size"):
        measure(unet(), 1, (0, 0))


def test_the_measured_step_is_the_estimated_one() -> None:
    """Every weight gets a gradient from the loss that both use."""
    net: nn.Module = NETWORKS.build(unet())
    forward(net, inputs(unet(), 1, (8, 8))).backward()
    assert all(p.grad is not None for p in net.parameters())
