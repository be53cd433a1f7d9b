"""What the other side cannot say is refused by its name, in both directions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from diffunet import ClassicUNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import diffusers as hub
from diffunet.spec import (
    AddSkip,
    ClassLinear,
    DilatedBlock,
    DoubleConvBlock,
    FourierTime,
    InBlock,
    LinearAttention,
    MaxPool,
    Nearest,
    NoResample,
    NoTime,
    ResidualBlock,
    SelfAttention,
    SinusoidalTime,
    SkipPyramid,
    StridedConv,
)
from tests.interop.folders import NCSNPP, their_model
from tests.nn.networks import tiny

# options of UNet, over those of `tiny_config`
UNSAYABLE: list[tuple[dict[str, Any], str]] = [
    ({"dims": 1}, "dims = 1"),
    ({"dims": 3}, "dims = 3"),
    ({"cond_channels": 2}, "cond_channels = 2"),
    ({"base_channels": 16, "channels": (8, 16, 24)}, "base_channels = 16"),
    ({"blocks_per_level": (1, 2, 1)}, r"blocks_per_level = \(1, 2, 1\)"),
    ({"attention": SelfAttention(heads=2)}, r"attention.heads = \[2, 2\] at the widths \[16, 24\]"),
    ({"base_channels": 2, "channel_multipliers": (1, 2, 4)}, "time.shift = 1 with base_channels = 2"),
    ({"channels": (8, 16, 24), "stem_channels": 4}, "stem_channels = 4"),
    ({"self_conditioning": True}, "self_conditioning = True"),
    ({"vector_channels": 9}, "vector_channels = 9"),
    ({"uncertainty_channels": 8}, "uncertainty_channels = 8"),
    ({"padding": "circular"}, "padding = circular"),
    ({"attention_up": "last"}, "attention_up = last"),
    ({"mid_attention_norm": False}, "mid_attention_norm = False"),
    ({"block": ResidualBlock(groups=4, group_channels=4)}, "block.groups = {8: 2, 16: 4"),
    ({"block": ResidualBlock(groups=2, rescale=True)}, "block.rescale = True$"),
    ({"time": SinusoidalTime(features=2)}, "time.features = 2"),
    ({"time": FourierTime(features=2, log=True)}, "divide_by_time = False"),
    ({"time": FourierTime(), "divide_by_time": True}, "time.features = 1, time.log = False"),
    ({"divide_by_time": True}, "divide_by_time = True"),
    ({"down": InBlock(taps=4)}, "down = .*'taps': 4"),
    ({"attention_levels": (0, 1), "downs": (InBlock(), StridedConv())}, "down = .*'in_block'"),
    ({"input_pyramid": SkipPyramid()}, "input_pyramid.kind = skip"),
    (
        {"attention_levels": (1,), "attentions": (SelfAttention(),) * 2 + (SelfAttention(heads=2),)},
        r"attention.heads = \[1, 2\] at the widths \[16, 24\]",
    ),
    (NCSNPP | {"in_channels": 1, "out_channels": 1}, "the pyramids of the Skip types have 3 channels"),
    (NCSNPP | {"attention_levels": (1,), "attention_up": "last"}, "at 16 channels the attention has 32 groups"),
    (
        NCSNPP | {"base_channels": 30, "channel_multipliers": (1, 2)},
        "diffusers cannot make a UNet2DModel of the widths",
    ),
]
# parts of kinds that have no counterpart, over those of `tiny_config`
KINDS: list[tuple[dict[str, Any], str]] = [
    ({"time": NoTime()}, "time = 'none'"),
    ({"num_classes": 2, "class_embedding": ClassLinear()}, "class_embedding = 'linear'"),
    ({"block": DilatedBlock(groups=2)}, "block = 'dilated'"),
    ({"block": DoubleConvBlock()}, "block = 'double_conv'"),
    ({"attention": LinearAttention()}, "attention = 'linear'"),
    ({"down": MaxPool(), "up": Nearest(), "skip": AddSkip()}, "skip = 'add', down = 'max_pool', up = 'nearest'"),
    ({"down": NoResample(), "up": NoResample()}, "down = 'none', up = 'none'"),
]


@pytest.mark.parametrize(("changes", "message"), UNSAYABLE, ids=[m for _, m in UNSAYABLE])
def test_what_diffusers_cannot_say_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hub.to_unet2d(tiny(**changes))


def test_all_that_diffusers_cannot_say_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"dims = 1, cond_channels = 2$"):
        hub.to_unet2d(tiny(dims=1, cond_channels=2))


@pytest.mark.parametrize(("changes", "message"), KINDS, ids=[m for _, m in KINDS])
def test_parts_of_other_kinds_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"UNet2DModel cannot say {message}$"):
        hub.to_unet2d(tiny(**changes))


def test_parts_that_are_not_there_are_not_refused() -> None:
    net = tiny(attention_levels=(), attention_in_mid=False, attention=LinearAttention(), class_embedding=ClassLinear())
    assert "attentions" not in "".join(hub.to_unet2d(net).state_dict())


SKIP: dict[str, Any] = {
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("SkipDownBlock2D",) * 3,
    "up_block_types": ("SkipUpBlock2D",) * 3,
    "norm_num_groups": None,
    "mid_block_scale_factor": math.sqrt(2),
}
# options of UNet2DModel, over those of `their_model`
UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"center_input_sample": True}, "center_input_sample = True"),
    ({"mid_block_type": None}, "mid_block_type = None"),
    ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4 .* of these down_block_types have 1"),
    ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
    ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
    ({"class_embed_type": "identity"}, "class_embed_type = 'identity'"),
    ({"freq_shift": 2}, "freq_shift = 2"),
    ({"downsample_padding": 2}, "downsample_padding = 2 .*: 2 is none of 1, 0"),
    ({"downsample_type": "pool"}, "downsample_type = 'pool'"),
    ({"time_embedding_dim": 60}, "time_embedding_dim = 60"),
    ({"attention_head_dim": 5}, "attention_head_dim = 5 has no counterpart in diffunet: it does not divide"),
    ({"attn_norm_num_groups": 4}, "attn_norm_num_groups = 4"),
    ({"up_block_types": ("UpBlock2D",) * 3}, "up_block_types = .* has attention on other levels"),
    ({"down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D", "DownBlock2D")}, "down_block_types = .* or none"),
    ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D")}, "down_block_types = .* or none"),
    ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D")}, "down_block_types = .* or none"),
    (SKIP | {"mid_block_scale_factor": 1}, "mid_block_scale_factor = 1 .* have 1.41421"),
    (SKIP | {"norm_num_groups": 2}, "norm_num_groups = 2 .*: the Skip types have 4 at 16 channels"),
    (SKIP | {"in_channels": 1}, "in_channels = 1"),
    (
        SKIP
        | {
            "block_out_channels": (32, 64),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
        "down_block_types = .* at 64 channels the attention has 32 groups, the blocks beside it 16",
    ),
]
# options that no UNet2DModel can be made with, or none that runs
ODD: list[tuple[dict[str, Any], str]] = [
    ({"down_block_types": ("KDownBlock2D",) * 3}, "down_block_types = .*: 'KDownBlock2D' is none of 'DownBlock2D', "),
    ({"up_block_types": ("KUpBlock2D",) * 3}, "up_block_types = .*: 'KUpBlock2D' is none of 'UpBlock2D', "),
    ({"down_block_types": ("CrossAttnDownBlock2D",) * 3}, "down_block_types = .*'CrossAttnDownBlock2D' is none of"),
    ({"down_block_types": ("DownBlock2D",) * 2}, "down_block_types = .*: block_out_channels has 3 levels"),
    ({"norm_num_groups": None}, "norm_num_groups = None"),
    ({"time_embedding_type": "rope"}, "time_embedding_type = 'rope'"),
    ({"time_embedding_type": "learned"}, "steps: Input should be a valid integer"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = 'spatial'"),
    ({"_diffunet_learned_variance": True}, "out_channels = 3 .* half of them must be a learned variance"),
    ({"rope": True}, "rope = True"),  # of a later version
]


@pytest.mark.parametrize(("options", "message"), UNKNOWN, ids=[m for _, m in UNKNOWN])
def test_what_our_unet_cannot_say_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"the UNet2DModel: {message}"):
        hub.from_unet2d(their_model(**options))


@pytest.mark.parametrize(("options", "message"), ODD, ids=[m for _, m in ODD])
def test_what_no_network_of_theirs_is_made_with_is_refused(options: dict[str, Any], message: str) -> None:
    model = their_model()
    model.register_to_config(**options)
    with pytest.raises(ConfigError, match=f"the UNet2DModel: {message}"):
        hub.from_unet2d(model)


def test_weights_that_do_not_belong_to_the_options_are_refused() -> None:
    model = their_model()
    model.down_blocks[0].extra = torch.nn.Linear(2, 2)
    del model.conv_in
    with pytest.raises(CheckpointError, match=r"4 differences\): conv_in.bias is missing; conv_in.weight is missing"):
        hub.from_unet2d(model)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a ClassicUNet"):
        hub.to_unet2d(ClassicUNet(base_channels=2, levels=2))
    with pytest.raises(ConfigError, match=r"not a UNet$"):
        hub.from_unet2d(tiny())
