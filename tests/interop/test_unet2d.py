"""UNet and diffusers' UNet2DModel compute the same with the same weights, whichever was first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffunet import ClassicUNet, UNet
from diffunet.errors import CheckpointError, ConfigError
from diffunet.interop import diffusers as hub
from diffunet.interop.unet2d import essence
from diffunet.spec import ResidualBlock, SelfAttention, SinusoidalTime, StridedConv
from tests.nn.networks import perturbed, tiny, tiny_config

SIZES = [(32, 32), (64, 48)]

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
}


def their_model(**options: Any) -> Any:
    import diffusers

    small: dict[str, Any] = {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    return perturbed(diffusers.UNet2DModel(**(small | options))).eval()


@torch.no_grad()
def outputs(net: UNet, model: Any, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What both say of the same images at the same times."""
    x = torch.randn(2, net.config.in_channels, *sides, generator=torch.Generator().manual_seed(1))
    t, rows = torch.tensor([3, 700]), (net.config.num_classes or 0) + net.config.null_class
    labels = torch.tensor([0, rows - 1]) if rows else None
    return net(x, t, labels), model(x, t, labels).sample


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value, and not for want of one."""
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


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


@pytest.mark.parametrize("preset", ["ddpm-cifar10", "ddpm-256", "small"])
def test_a_preset_has_as_many_parameters_there(preset: str) -> None:
    with torch.device("meta"):
        net = UNet.from_preset(preset)
    model = hub.to_unet2d(net)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in net.parameters())


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


UNSAYABLE: list[tuple[dict[str, Any], str]] = [
    ({"dims": 1}, "dims = 1"),
    ({"dims": 3}, "dims = 3"),
    ({"cond_channels": 2}, "cond_channels = 2"),
    ({"base_channels": 16, "channels": (8, 16, 24)}, "base_channels = 16"),
    ({"blocks_per_level": (1, 2, 1)}, r"blocks_per_level = \(1, 2, 1\)"),
    ({"attention": SelfAttention(heads=2)}, r"attention.heads = 2 at the widths \[16, 24\]"),
    ({"base_channels": 2, "channel_multipliers": (1, 2, 4)}, "time.shift = 1 with base_channels = 2"),
]


@pytest.mark.parametrize(("changes", "message"), UNSAYABLE, ids=[m for _, m in UNSAYABLE])
def test_what_diffusers_cannot_say_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hub.to_unet2d(tiny(**changes))


def test_all_that_diffusers_cannot_say_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"dims = 1, cond_channels = 2$"):
        hub.to_unet2d(tiny(dims=1, cond_channels=2))


def test_a_part_of_another_kind_is_refused() -> None:
    net = tiny()
    net.config = tiny_config().model_copy(update={"down": tiny_config().up})
    with pytest.raises(ConfigError, match="cannot say down = 'nearest_conv'"):
        hub.to_unet2d(net)


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"center_input_sample": True}, "center_input_sample = True"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
    ({"time_embedding_type": "learned", "num_train_timesteps": 100}, "time_embedding_type = 'learned'"),
    ({"mid_block_type": None}, "mid_block_type = None"),
    ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4"),
    ({"downsample_type": "resnet"}, "downsample_type = 'resnet'"),
    ({"upsample_type": "resnet"}, "upsample_type = 'resnet'"),
    ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
    ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
    ({"freq_shift": 2}, "freq_shift = 2"),
    ({"downsample_padding": 2}, "downsample_padding = 2"),
    ({"time_embedding_dim": 60}, "time_embedding_dim = 60"),
    ({"attention_head_dim": 5}, "attention_head_dim = 5 has no counterpart in diffunet: it does not divide"),
    ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups = None"),
    ({"attn_norm_num_groups": 4}, "attn_norm_num_groups = 4"),
    ({"up_block_types": ("UpBlock2D",) * 3}, "up_block_types = .* has attention on other levels"),
    ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D")}, "down_block_types = .*SkipDownBlock2D"),
    ({"up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D")}, "up_block_types = .*ResnetUpsample"),
]


@pytest.mark.parametrize(("options", "message"), UNKNOWN, ids=[m for _, m in UNKNOWN])
def test_what_our_unet_cannot_say_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"the UNet2DModel: {message}"):
        hub.from_unet2d(their_model(**options))


def test_an_option_of_a_later_version_is_refused() -> None:
    model = their_model()
    model.register_to_config(rope=True)
    with pytest.raises(ConfigError, match="rope = True"):
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
