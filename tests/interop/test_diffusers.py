"""Folders: what we export, plain diffusers samples alike; what diffusers wrote, we open, or say why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import ClassicUNet, Denoiser, Schedule, UNet, generate
from diffunet.errors import CheckpointError, ConfigError, UnsafeError
from diffunet.interop import diffusers as hub
from diffunet.spec import DataInfo
from tests.nn.networks import tiny, tiny_config

SHAPE = (3, 16, 12)
SEEDS = [5, 6, 7]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

SCHEDULES = {
    "linear": Schedule.linear(),
    "linear, short": Schedule.linear(T=100, beta_start=1e-3, beta_end=0.2),
    "scaled_linear": Schedule.scaled_linear(),
    "cosine": Schedule.cosine(),
    "cosine, other s": Schedule.cosine(T=500, s=0.02),
    "sigmoid": Schedule.sigmoid(),
    "sigmoid, other ends": Schedule.sigmoid(start=-2.0, end=2.5, tau=0.7),
}


def denoiser(
    schedule: Schedule = SCHEDULES["linear"], prediction: str = "eps", clip: Any = (-1, 1), **changes: Any
) -> Denoiser:
    return Denoiser(tiny(**changes), schedule, prediction, clip, DataInfo(shape=SHAPE)).eval()


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@torch.no_grad()
def their_samples(model: Any, scheduler: Any, steps: int, **options: Any) -> Tensor:
    """The loop of diffusers' documentation, from unit noise."""
    sources = generators()
    x = torch.stack([torch.randn(SHAPE, generator=source) for source in sources])
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x, generator=sources, **options).prev_sample
    return x


def our_samples(den: Denoiser, sampler: str, steps: int) -> Tensor:
    """The same from exactly their start: ours is sigma(1) of unit noise, which is 1 but for 2e-5 on `linear`."""
    noise = torch.stack([torch.randn(SHAPE, generator=source) for source in generators()])
    return generate(den, 3, sampler=sampler, steps=steps, seed=SEEDS, noise=noise / den.schedule.sigma(1.0))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    hub.export(denoiser(), tmp_path / "folder")
    return tmp_path / "folder"


# --- export ----------------------------------------------------------------------------------------------------------

PLAIN = """
import sys, torch
try:
    import torchvision
except RuntimeError:  # a CPU build of torch beside a CUDA build of torchvision: diffusers fails, with us or without
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
import numpy, diffusers
pipe = diffusers.DDPMPipeline.from_pretrained(sys.argv[1])
seeds = [torch.Generator().manual_seed(s) for s in (5, 6, 7)]
numpy.save(sys.argv[2], pipe(batch_size=3, generator=seeds, num_inference_steps=50, output_type="np").images)
assert not any(name.split(".")[0] == "diffunet" for name in sys.modules)
"""


def test_plain_diffusers_opens_the_folder_and_makes_the_same_images(exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PLAIN, str(exported), str(tmp_path / "images.npy")]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300, capture_output=True)
    theirs = torch.from_numpy(np.load(tmp_path / "images.npy")).permute(0, 3, 1, 2) * 2 - 1
    ours = generate(denoiser(), 3, sampler="ddpm", steps=50, seed=5)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_their_ddpm_makes_our_samples(name: str, prediction: str, tmp_path: Path) -> None:
    import diffusers

    den = denoiser(SCHEDULES[name], prediction, clip=(-0.8, 0.8))
    hub.export(den, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    ours, theirs = our_samples(den, "ddpm", 10), their_samples(pipe.unet, pipe.scheduler, 10)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_their_ddim_makes_our_samples(name: str, tmp_path: Path) -> None:
    import diffusers

    den = denoiser(SCHEDULES[name])
    hub.export(den, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = their_samples(pipe.unet, scheduler, 10, use_clipped_model_output=True)
    torch.testing.assert_close(our_samples(den, "ddim", 10), theirs, rtol=0, atol=1e-4)


def test_a_denoiser_without_clip_stays_without(tmp_path: Path) -> None:
    import diffusers

    den = denoiser(prediction="v", clip=None)
    hub.export(den, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert pipe.scheduler.config.clip_sample is False
    ours = our_samples(den, "ddpm", 10)
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, their_samples(pipe.unet, pipe.scheduler, 10), rtol=0, atol=1e-4)


def test_betas_are_named_where_diffusers_computes_the_same_ones(tmp_path: Path) -> None:
    said = {}
    for name, schedule in SCHEDULES.items():
        hub.export(denoiser(schedule), tmp_path)
        config = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
        said[name] = config["beta_schedule"] if config["trained_betas"] is None else "table"
    assert list(said.values()) == ["linear", "linear", "scaled_linear", "squaredcos_cap_v2", "table", "table", "table"]


@pytest.mark.parametrize("den", [denoiser(), denoiser(num_classes=3, null_class=True)], ids=["plain", "classes"])
def test_the_folder_is_small_and_says_what_it_is(den: Denoiser, tmp_path: Path) -> None:
    hub.export(den, tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
    config = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    expected = {"_class_name": "DDPMScheduler", "clip_sample_range": 1, "timestep_spacing": "trailing"}
    assert config.items() >= (expected | {"variance_type": "fixed_small", "prediction_type": "epsilon"}).items()


def test_a_folder_can_be_written_twice(exported: Path) -> None:
    hub.export(denoiser(prediction="v"), exported)
    assert hub.load(exported).prediction == "v"


def test_unknown_sides_are_told_to_the_pipeline(tmp_path: Path) -> None:
    import diffusers

    hub.export(Denoiser(tiny(), Schedule.linear()), tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert pipe.unet.config.sample_size is None
    pipe.unet.register_to_config(sample_size=8)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)
    assert hub.load(tmp_path).data is None


REFUSED: list[tuple[Callable[[], Denoiser], str]] = [
    (lambda: denoiser(Schedule.karras(), "edm"), r"needs a table of betas, which Schedule.karras\(.*\) is not"),
    (lambda: denoiser(Schedule.flow(), "flow"), r"needs a table of betas, which Schedule.flow\(.*\) is not"),
    (lambda: denoiser(prediction="flow"), "cannot say prediction 'flow'; only eps, x0, v"),
    (lambda: denoiser(clip=(0, 1)), r"cannot say clip = \[0, 1\]; only \[-r, r\]"),
    (lambda: denoiser(Schedule.sigmoid(T=10)), "last beta is 1 in diffusers' float32"),
    (lambda: denoiser(cond_channels=1), "cannot say cond_channels = 1"),
    (lambda: Denoiser(ClassicUNet(base_channels=2), Schedule.linear()), "not a ClassicUNet"),
    (lambda: Denoiser(tiny(), Schedule.linear(), data=DataInfo(shape=(3, 10, 8))), "multiples of 4 only"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_diffusers_cannot_say_is_refused_and_nothing_written(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        hub.export(make(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --- load ------------------------------------------------------------------------------------------------------------


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


DAMAGED: list[tuple[str, dict[str, Any], str]] = [
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type = 'flow'"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "beta_schedule = 'laplace'"),
    ("scheduler/scheduler_config.json", {"beta_start": -1.0}, "beta_start: Input should be greater than 0"),
    ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding = True"),
    ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
    ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "variance_type = 'learned_range'"),
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
    ("unet/config.json", {"block_out_channels": []}, "is malformed"),
    ("unet/config.json", {"block_out_channels": "wide"}, "is malformed"),
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


def test_a_second_output_has_no_place_in_a_denoiser(tmp_path: Path) -> None:
    hub.to_unet2d(tiny(out_channels=6)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"out_channels = 6 .* must equal in_channels = 3"):
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


# --- the plain loop --------------------------------------------------------------------------------------------------


def test_their_three_lines_train_our_network() -> None:
    import diffusers

    net, scheduler = UNet(tiny_config()), diffusers.DDPMScheduler()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    images = torch.tanh(3 * torch.randn(16, 3, 1, 1)).expand(16, 3, 8, 8)
    losses = []
    for _ in range(30):
        noise, t = torch.randn(images.shape), torch.randint(0, 1000, (16,))
        x = scheduler.add_noise(images, noise, t)
        loss = F.mse_loss(net(x, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]
