"""What diffusers wrote, we open, or say why not; nothing is downloaded and nothing unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffunet import Schedule, generate
from diffunet.errors import CheckpointError, ConfigError, UnsafeError
from diffunet.interop import diffusers as hub
from diffunet.spec import DataInfo
from tests.interop.folders import SCHEDULES, WEIGHTS, denoiser, edit, their_model
from tests.nn.networks import tiny

# --- opened ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_exported_loads_the_same(name: str, tmp_path: Path) -> None:
    den = denoiser(SCHEDULES[name], "v", clip=(-0.5, 0.5), num_classes=4, null_class=True)
    hub.export(den, tmp_path)
    back = hub.load(tmp_path)
    assert (back.schedule, back.prediction, back.clip, back.null_label) == (den.schedule, "v", (-0.5, 0.5), 4)
    assert back.data == den.data
    assert not back.training
    options: dict[str, Any] = {"steps": 4, "class_labels": [0, 3, 2], "guidance": 1.5}
    assert torch.equal(generate(back, 3, **options), generate(den, 3, **options))


def test_a_pipeline_that_diffusers_saved_loads(tmp_path: Path) -> None:
    import diffusers

    model = hub.to_unet2d(tiny(), sample_size=16)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=1e-3, beta_end=0.01, clip_sample=False
    )
    diffusers.DDIMPipeline(model, scheduler).save_pretrained(tmp_path)
    den = hub.load(tmp_path)
    assert den.schedule == Schedule.scaled_linear(beta_start=1e-3, beta_end=0.01)
    assert (den.prediction, den.clip, den.data) == ("eps", None, DataInfo(shape=(3, 16, 16)))
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(den.network(x, 7), model(x, 7).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("marked", [True, False])
def test_a_learned_variance_loads(marked: bool, tmp_path: Path) -> None:
    import diffusers

    net = tiny(learned_variance=marked, **({} if marked else {"out_channels": 6}))
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    diffusers.DDPMPipeline(hub.to_unet2d(net, sample_size=16), scheduler).save_pretrained(tmp_path)
    den = hub.load(tmp_path)
    assert den.network.config.learned_variance
    assert den.data == DataInfo(shape=(3, 16, 16))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(den.network(x, 7), net(x, 7))
    if marked:  # the network's folder alone says it too
        assert hub.load(tmp_path / "unet").network.config.learned_variance


def test_a_table_of_betas_that_one_of_ours_made_is_known(exported: Path) -> None:
    for schedule in (Schedule.linear(T=200), Schedule.scaled_linear(T=200), Schedule.cosine(T=200), Schedule.sigmoid()):
        table = schedule.betas().float().tolist()
        change = {"trained_betas": table, "num_train_timesteps": len(table)}
        edit(exported / "scheduler/scheduler_config.json", lambda config, change=change: config.update(change))
        assert hub.load(exported).schedule == schedule


def test_a_bare_network_gets_the_schedule_of_ddpm(tmp_path: Path) -> None:
    hub.to_unet2d(tiny()).save_pretrained(tmp_path)
    den = hub.load(str(tmp_path))
    assert (den.schedule, den.prediction, den.clip, den.data) == (Schedule.linear(), "eps", None, None)
    x = torch.randn(1, 3, 9, 7)
    assert torch.equal(den.network(x, 7), tiny()(x, 7))


def test_weights_under_the_names_of_old_load(exported: Path) -> None:
    path = exported / WEIGHTS
    tensors = safetensors.torch.load_file(path)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    safetensors.torch.save_file(tensors, path)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(hub.load(exported).network(x, 7), tiny()(x, 7))


def test_half_precision_becomes_single(exported: Path) -> None:
    path = exported / WEIGHTS
    safetensors.torch.save_file({k: v.half() for k, v in safetensors.torch.load_file(path).items()}, path)
    assert hub.load(exported).network.head.weight.dtype == torch.float32


def test_options_that_a_file_leaves_out_are_those_of_diffusers(exported: Path) -> None:
    edit(exported / "scheduler/scheduler_config.json", lambda config: [config.pop(k) for k in list(config)])
    den = hub.load(exported)
    assert (den.schedule, den.prediction, den.clip) == (Schedule.linear(), "eps", (-1, 1))


# --- refused ---------------------------------------------------------------------------------------------------------

DAMAGED: list[tuple[str, dict[str, Any], str]] = [
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type = 'flow'"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "beta_schedule = 'laplace'"),
    ("scheduler/scheduler_config.json", {"beta_start": -1.0}, "beta_start: Input should be greater than 0"),
    ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding = True"),
    ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
    ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type = 'learned'"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 9}, r"trained_betas \(9 values for .* = 1000\)"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.3] * 500}, "is the table of no schedule of ours"),
    ("scheduler/scheduler_config.json", {"trained_betas": "much"}, "valid list"),
    ("scheduler/scheduler_config.json", {"clip_sample_range": "wide"}, "valid number"),
    ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "_class_name = 'StableDiffusionPipeline'"),
    ("model_index.json", {"_class_name": ["mine", "MyPipeline"]}, r"_class_name = \['mine', 'MyPipeline'\]"),
    ("model_index.json", {"unet": ["mine", "UNet2DModel"]}, r"unet = \['mine', 'UNet2DModel'\]"),
    ("model_index.json", {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "EulerDiscreteScheduler"),
    ("model_index.json", {"scheduler": None}, "scheduler = None"),
    ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "_class_name = 'UNet2DConditionModel'"),
    ("unet/config.json", {"act_fn": "mish"}, "act_fn = 'mish'"),
    ("unet/config.json", {"block_out_channels": []}, "block_out_channels has 0 levels"),
    ("unet/config.json", {"block_out_channels": "abc"}, "is malformed"),
    ("unet/config.json", {"down_block_types": [["DownBlock2D"]]}, r"down_block_types = \[\['DownBlock2D'\]\]"),
    ("unet/config.json", {"layers_per_block": 10**9}, "blocks_per_level must be 1 to 64"),
    ("unet/config.json", {"attention_head_dim": "all"}, "is malformed"),
    ("unet/config.json", {"num_class_embeds": 10**12}, "num_classes"),
    ("unet/config.json", {"sample_size": "small"}, "shape"),
    ("unet/config.json", {"surprise": 1}, "surprise = 1"),
]


@pytest.mark.parametrize(("name", "change", "message"), DAMAGED, ids=[m for *_, m in DAMAGED])
def test_what_we_do_not_have_is_refused_by_file_and_option(
    exported: Path, name: str, change: dict[str, Any], message: str
) -> None:
    edit(exported / name, lambda content: content.update(change))
    with pytest.raises(ConfigError, match=f"{name}.*{message}"):
        hub.load(exported)


def test_a_second_output_that_is_no_variance_has_no_place_in_a_denoiser(exported: Path) -> None:
    hub.to_unet2d(tiny(out_channels=6)).save_pretrained(exported / "unet")
    for folder in (exported, exported / "unet"):
        with pytest.raises(ConfigError, match=r"out_channels = 6 .* must equal in_channels = 3, or twice that where"):
            hub.load(folder)


def test_a_variance_that_the_network_does_not_have_is_missed(exported: Path) -> None:
    edit(exported / "scheduler/scheduler_config.json", lambda config: config.update(variance_type="learned_range"))
    with pytest.raises(
        ConfigError, match=r"unet/config.json: out_channels = 3 .* half of them must be a learned variance"
    ):
        hub.load(exported)


def test_a_score_network_is_no_denoiser_of_a_table(tmp_path: Path) -> None:
    their_model(time_embedding_type="fourier").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"config.json: time_embedding_type = 'fourier' .* told the noise itself"):
        hub.load(tmp_path)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", WEIGHTS])
def test_a_missing_file_is_named(exported: Path, name: str) -> None:
    (exported / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        hub.load(exported)


def test_a_name_of_the_hub_is_not_looked_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder google/ddpm-cifar10-32; only local folders"):
        hub.load("google/ddpm-cifar10-32")
    with pytest.raises(CheckpointError, match=r"holds neither model_index\.json"):
        hub.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000], ids=["empty", "half", "a list", "deep"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_broken_json_file_is_named(exported: Path, name: str, text: str) -> None:
    (exported / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        hub.load(exported)


def test_an_endless_json_file_is_not_read(exported: Path) -> None:
    with open(exported / "model_index.json", "wb") as file:
        file.truncate(hub.MAX_JSON + 1)
    with pytest.raises(UnsafeError, match=r"model_index.json has \d+ bytes"):
        hub.load(exported)


def test_a_pickle_is_not_loaded(exported: Path) -> None:
    (exported / WEIGHTS).unlink()
    torch.save({}, exported / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeError, match=r"diffusion_pytorch_model\.bin is a pickle, which can run code"):
        hub.load(exported)


def test_weights_of_another_network_are_refused(exported: Path) -> None:
    hub.to_unet2d(tiny(blocks_per_level=2)).save_pretrained(exported / "unet")
    edit(exported / "unet/config.json", lambda config: config.update(layers_per_block=1))
    with pytest.raises(CheckpointError, match=r"unet/config.json do not fit its options .*is not part of it"):
        hub.load(exported)
    edit(exported / "unet/config.json", lambda config: config.update(layers_per_block=2, in_channels=4, out_channels=4))
    with pytest.raises(CheckpointError, match=r"stem.weight: \(8, 3, 3, 3\) where \(8, 4, 3, 3\) is expected"):
        hub.load(exported)
