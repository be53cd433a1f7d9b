"""A network that no machine holds is refused by arithmetic, before anything is allocated."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch

from diffunet import config as configs
from diffunet.errors import ConfigError
from diffunet.nn import NETWORKS
from diffunet.spec import ClassicUNetConfig, MultiScaleBlock, ResidualBlock, UNetConfig
from diffunet.zoo import PRESETS


@pytest.mark.parametrize(
    ("model", "need"),
    [
        ({"base_channels": 16384, "channel_multipliers": [1000], "attention_levels": [0]}, "96,636,764 GB"),
        ({"channels": [2**20], "attention_levels": []}, "GB"),
        ({"dims": 3, "channels": [4096], "blocks_per_level": 64, "attention_levels": []}, "GB"),
        ({"base_channels": 4096, "channels": [32], "num_classes": 10_000_000, "attention_levels": []}, "655 GB"),
    ],
)
def test_a_network_that_no_machine_holds_is_refused_by_arithmetic(model: dict[str, Any], need: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match="the weights would need") as caught:
        configs.resolve({"model": model | {"in_channels": 1, "out_channels": 1}}, "x.toml")
    assert time.perf_counter() - begun < 0.2
    assert need in str(caught.value)
    assert "at most 69 are allowed; lower" in str(caught.value)


def test_the_arithmetic_never_counts_more_than_there_is() -> None:
    """The bound is below the true count on random networks, and within a factor of three on the presets."""
    chance = random.Random(0)
    drawn = [
        UNetConfig(
            dims=chance.choice([1, 2, 3]),
            channels=tuple(chance.randint(1, 40) for _ in range(levels)),
            base_channels=chance.randint(1, 40),
            blocks_per_level=tuple(chance.randint(1, 3) for _ in range(levels)),
            attention_levels=(),
            num_classes=chance.choice([None, 1000]),
            class_embedding=chance.choice(["table", "linear"]),
            skip=chance.choice(["concat", "add", {"kind": "bottleneck", "ratio": 0.01}]),
            block=chance.choice([ResidualBlock(groups=1), MultiScaleBlock(groups=1), "double_conv"]),
            **chance.choice([{}, {"down": "none", "up": "none"}, {"down": "max_pool", "up": "nearest"}]),
        )
        for levels in (1, 2, 3, 4)
        for _ in range(20)
    ]
    presets = [c for c in PRESETS.values() if isinstance(c, UNetConfig)]
    for config in [*drawn, *presets]:
        with torch.device("meta"):
            count = sum(p.numel() for p in NETWORKS.build(config).parameters())
        assert config._least_parameters() <= count
        assert config not in presets or count <= 3 * config._least_parameters()


def test_the_classic_network_has_the_same_limit() -> None:
    with pytest.raises(ValueError, match="the weights would need 52,773 GB"):
        ClassicUNetConfig(base_channels=16384, levels=7)
