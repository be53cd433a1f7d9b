"""Presets: each builds and runs, takes changes, and has what its name claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffunet import ClassicUNet, UNet, presets
from diffunet.errors import ConfigError
from diffunet.nn import NETWORKS, PRESETS
from diffunet.nn.layers import GroupNorm
from tests.nn.networks import images


@pytest.mark.parametrize("name", presets())
def test_every_preset_builds_and_runs(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        net = NETWORKS.build(config)
        told: dict[str, Any] = {"t": torch.empty(1)} if config.time.kind != "none" else {}
        if getattr(config, "num_classes", None):
            told["class_labels"] = torch.zeros(1, dtype=torch.long)
        if getattr(config, "cond_channels", 0):
            told["cond"] = torch.empty(1, config.cond_channels, 188, 188)
        channels = getattr(config, "head_channels", config.out_channels)
        assert net(torch.empty(1, config.in_channels, 188, 188), **told).shape[:2] == (1, channels)


def test_a_preset_takes_changes_and_leaves_the_rest() -> None:
    with torch.device("meta"):
        net = UNet.from_preset("ddpm-cifar10", num_classes=10, in_channels=1)
    assert (net.config.num_classes, net.config.in_channels, net.config.block.dropout) == (10, 1, 0.1)
    assert UNet.from_preset("small", base_channels=32).config.widths == (32, 64, 64)


def test_unknown_presets_are_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'ddpm-cifar'; did you mean 'ddpm-cifar10'"):
        UNet.from_preset("ddpm-cifar")
    with pytest.raises(ConfigError, match="'unet-2015' is a 'classic' network, not a 'unet' one"):
        UNet.from_preset("unet-2015")
    with pytest.raises(ConfigError, match="'unet-plain' is a 'unet' network, not a 'classic' one"):
        ClassicUNet.from_preset("unet-plain")


# --- segmentation ----------------------------------------------------------------------------------------------------

SEGMENTATION = ("unet-2015", "unet-2015-same", "unet-dilated", "unet-plain")


def made(name: str, **changes: Any) -> Any:
    config = type(PRESETS[name])(**dict(PRESETS[name]) | {"base_channels": 8} | changes)
    torch.manual_seed(0)
    return NETWORKS.build(config)


def operators(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules()}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_network_for_segmentation_knows_no_time_and_has_two_classes(name: str) -> None:
    net = made(name)
    assert (net.config.in_channels, net.config.out_channels, net.config.time.kind) == (1, 2, "none")
    assert not any("embed" in key or "time" in key for key in net.state_dict())
    size = net.smallest if name == "unet-2015" else 33
    assert net(images(1, 1, size, size)).shape[:2] == (1, 2)


@pytest.mark.parametrize("name", SEGMENTATION[1:])
def test_these_keep_the_size(name: str) -> None:
    assert made(name)(images(2, 1, 33, 20)).shape == (2, 2, 33, 20)


def test_the_network_of_2015_with_same_padding_has_group_norms() -> None:
    norms = [module for module in made("unet-2015-same").modules() if isinstance(module, GroupNorm)]
    assert len(norms) == 2 * (5 + 4)
    assert all(norm.num_groups == 8 for norm in norms)
    assert not any(isinstance(module, GroupNorm) for module in made("unet-2015").modules())


def test_the_dilated_network_is_at_full_resolution_throughout() -> None:
    net, sizes = made("unet-dilated"), []
    for level in [*net.down, *net.up]:
        for block in level.blocks:
            block.register_forward_hook(lambda _, inputs, y: sizes.append(tuple(y.shape[2:])))
    net(images(1, 1, 40, 37))
    assert len(sizes) == 5 + 6  # one more at the top, where the stem left a skip
    assert set(sizes) == {(40, 37)}
    assert [level.blocks[0].parts[0].conv_in.dilation[0] for level in net.down] == [1, 2, 4, 8, 16]
    assert all(level.resample is None for level in [*net.down, *net.up])


def test_the_dilated_network_sees_as_far_as_one_with_levels() -> None:
    """Without means over the whole image, in one dimension: how far the answer's middle looks."""
    reach = {}
    for name in ("unet-dilated", "unet-plain"):
        net = made(name, dims=1).eval()
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x
            if isinstance(module, nn.Conv1d):
                nn.init.constant_(module.weight, 0.1)
        x = images(1, 1, 401).requires_grad_()
        (gradient,) = torch.autograd.grad(net(x)[0, 0, 200], x)
        reach[name] = int((gradient[0, 0] != 0).sum())
    assert reach["unet-dilated"] >= reach["unet-plain"] > 40


def test_the_plain_network_is_the_one_of_diffusion_without_time() -> None:
    plain = made("unet-plain")
    told = UNet(plain.config, time="sinusoidal")
    extra = {key for key in told.state_dict() if ".embed." in key or key.startswith("conditioning")}
    assert told.state_dict().keys() - extra == plain.state_dict().keys()
    assert extra
