"""UNet and diffusers' UNet2DModel compute the same with the same weights, whichever was first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet.interop import diffusers as hub
from diffunet.interop.unet2d_write import essence
from diffunet.nn import UNet
from diffunet.spec import (
    FourierTime,
    InBlock,
    LearnedTime,
    NearestConv,
    ResidualBlock,
    SelfAttention,
    SinusoidalTime,
    StridedConv,
)
from tests.interop import folders
from tests.interop.folders import their_model
from tests.nn.networks import perturbed, tiny

SIZES = [(32, 32), (64, 48)]

# NCSN++ of score SDE as diffusers has it, small, and with attention
NCSNPP: dict[str, Any] = {
    "block_out_channels": (16, 24, 32),
    "layers_per_block": 2,
    "down_block_types": ("SkipDownBlock2D",) * 3,
    "up_block_types": ("SkipUpBlock2D",) * 3,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2),
    "time_embedding_type": "fourier",
    "attention_head_dim": None,
}
ATTENDED: dict[str, Any] = {
    "block_out_channels": (32, 128),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
# options of UNet2DModel, over those of `their_model`
THEIRS: dict[str, dict[str, Any]] = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None},
    "defaults": {},
    "head size": {"attention_head_dim": 4},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "no attention in mid": {"add_attention": False},
    "attention in mid only": {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "attention everywhere": {
        "down_block_types": ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3,
        "layers_per_block": 2,
    },
    "equal widths": {"block_out_channels": (16, 16, 16)},
    "narrowing": {"block_out_channels": (24, 8, 16)},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    },
    "classes": {"num_class_embeds": 5},
    "wide time": {"time_embedding_dim": 56},
    "norms": {"norm_eps": 1e-3, "norm_num_groups": 4, "dropout": 0.2},
    "channels": {"in_channels": 1, "out_channels": 6, "layers_per_block": 3},
    "scale and shift without attention in mid": {"resnet_time_scale_shift": "scale_shift", "add_attention": False},
    "no norm in mid": {"resnet_time_scale_shift": "scale_shift"},
    "consistency model": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 2,
        "attention_head_dim": 4,
        "num_class_embeds": 5,
        "num_train_timesteps": 40,
    },
    "resampling of many kinds": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "resnets beside attention only": {"downsample_type": "resnet", "downsample_padding": 0},
    "resnets beside attention on the way up": {"upsample_type": "resnet"},
    "old names": {
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D", "UNetResDownBlock2D"),
        "up_block_types": ("UNetResUpBlock2D", "UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
    },
    "random frequencies": {"time_embedding_type": "fourier"},
    "trained times": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "ncsn++": NCSNPP,
    "ncsn++ with attention": NCSNPP | ATTENDED,
    "ncsn++ with attention everywhere": NCSNPP
    | {
        "block_out_channels": (128, 160),
        "down_block_types": ("AttnSkipDownBlock2D",) * 2,
        "up_block_types": ("AttnSkipUpBlock2D",) * 2,
        "attention_head_dim": 32,
        "layers_per_block": 1,
    },
    "ncsn++ told an index": NCSNPP
    | {"time_embedding_type": "positional", "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 5},
    "ncsn++ with groups": NCSNPP | ATTENDED | {"block_out_channels": (128, 128), "norm_num_groups": 32},
    "ncsn++ of one level": NCSNPP
    | {
        "block_out_channels": (16,),
        "down_block_types": ("SkipDownBlock2D",),
        "up_block_types": ("SkipUpBlock2D",),
        "in_channels": 1,
    },
}
# options of UNet, over those of `tiny_config`
OURS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "adm": {
        "block": ResidualBlock(groups=4, condition="scale_shift", eps=1e-5, dropout=0.1),
        "time": SinusoidalTime(order="cos_sin", shift=0),
        "attention": SelfAttention(head_channels=8),
        "attention_levels": (1, 2),
    },
    "asymmetric pad": {"down": StridedConv(pad="asymmetric")},
    "null class": {"num_classes": 4, "null_class": True},
    "classes": {"num_classes": 4},
    "heads of one size": {"channels": (8, 16, 16), "attention": SelfAttention(heads=4)},
    "heads at one level": {"attention_in_mid": False, "attention": SelfAttention(heads=4)},
    "no attention": {"attention_levels": (), "attention_in_mid": False, "attention": SelfAttention(heads=8)},
    "levels out of order": {"attention_levels": (2, 0, 2)},
    "equal depths": {"blocks_per_level": (2, 2, 2)},
    "narrow time": {"time": SinusoidalTime(width=1)},
    "checkpointed": {"checkpoint_levels": (0, 1)},
    "resampling in the blocks": {"down": InBlock(), "up": InBlock()},
    "resampling of each level": {
        "downs": (InBlock(), StridedConv(pad="asymmetric")),
        "ups": (InBlock(), NearestConv()),
    },
    "attention of each level": {
        "attention_levels": (0, 1),
        "attentions": (SelfAttention(heads=1), SelfAttention(heads=2), SelfAttention(head_channels=8)),
    },
    "no norm in mid": {"mid_attention_norm": False, "block": ResidualBlock(groups=2, condition="scale_shift")},
    "learned variance": {"learned_variance": True},
    "trained times": {"time": LearnedTime(steps=1000, width=2)},
    "random frequencies": {"time": FourierTime(features=2, log=True, trained=True, scale=4.0), "divide_by_time": True},
    "ncsn++": {
        "base_channels": 16,
        "time": FourierTime(features=2, log=True),
        "divide_by_time": True,
        **folders.NCSNPP,
    },
}


@torch.no_grad()
def outputs(net: UNet, model: Any, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What both say of the same images at the same times."""
    x = torch.randn(2, net.config.in_channels, *sides, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.02, 900.0] if net.config.divide_by_time else [3, 700])
    rows = (net.config.num_classes or 0) + net.config.null_class
    labels = torch.tensor([0, rows - 1]) if rows else None
    return net(x, t, labels), model(x, t, labels).sample


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of each image's largest value, and not for want of one."""
    largest = theirs.flatten(1).abs().amax(dim=1)
    assert (theirs.flatten(1).std(dim=1) > 0.1 * largest).all()
    assert ((ours - theirs).flatten(1).abs().amax(dim=1) / largest).max() <= 1e-5


@pytest.mark.parametrize("sides", SIZES, ids=str)
@pytest.mark.parametrize("name", THEIRS)
def test_a_network_of_theirs_computes_the_same_here(name: str, sides: tuple[int, int]) -> None:
    model = their_model(**THEIRS[name])
    net = hub.from_unet2d(model)
    ours, theirs = outputs(net, model, sides)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", THEIRS)
def test_a_network_of_theirs_returns_unchanged(name: str) -> None:
    model = their_model(**THEIRS[name])
    back = hub.to_unet2d(hub.from_unet2d(model))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("sides", SIZES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_network_of_ours_computes_the_same_there(name: str, sides: tuple[int, int]) -> None:
    net = tiny(**OURS[name])
    ours, theirs = outputs(net, hub.to_unet2d(net), sides)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", OURS)
def test_a_network_of_ours_returns_unchanged(name: str) -> None:
    net = tiny(**OURS[name])
    back = hub.from_unet2d(hub.to_unet2d(net))
    assert essence(back.config) == essence(net.config)
    assert back.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in net.state_dict().items())


def test_weights_are_copied_not_shared() -> None:
    net = tiny()
    model = hub.to_unet2d(net)
    again = hub.from_unet2d(model)
    perturbed(model, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_mode_dtype_and_gradients_are_kept(training: bool) -> None:
    net = tiny().double().train(training)
    model = hub.to_unet2d(net)
    assert (model.training, model.dtype) == (training, torch.float64)
    back = hub.from_unet2d(model)
    assert (back.training, back.head.weight.dtype) == (training, torch.float64)
    assert all(p.requires_grad for p in [*model.parameters(), *back.parameters()])


def test_random_frequencies_stay_fixed_there() -> None:
    model = hub.to_unet2d(tiny(**OURS["random frequencies"]))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["time_proj.weight"]


def test_no_random_numbers_are_drawn() -> None:
    net = tiny()
    state = torch.get_rng_state()
    hub.from_unet2d(hub.to_unet2d(net))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_null_class_survives_their_files(tmp_path: Any) -> None:
    import diffusers

    hub.to_unet2d(tiny(num_classes=4, null_class=True)).save_pretrained(tmp_path)
    net = hub.from_unet2d(diffusers.UNet2DModel.from_pretrained(tmp_path))
    assert (net.config.num_classes, net.null_label) == (4, 4)
