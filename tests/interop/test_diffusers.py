"""What we export, plain diffusers samples alike; and its training loop takes our network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffunet import ClassicUNet, Denoiser, Schedule, UNet, generate
from diffunet.errors import ConfigError
from diffunet.interop import diffusers as hub
from diffunet.spec import DataInfo, FourierTime, InBlock, LearnedTime, ResidualBlock, SelfAttention
from tests.interop.folders import NCSNPP, SCHEDULES, SHAPE, WEIGHTS, denoiser
from tests.nn.networks import tiny, tiny_config

SEEDS = [5, 6, 7]
# fields of UNetConfig, over those of `tiny_config`
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "adm": {
        "attention": SelfAttention(head_channels=8),
        "block": ResidualBlock(groups=4, condition="scale_shift"),
        "down": InBlock(),
        "up": InBlock(),
    },
    "ncsn++": NCSNPP,
}


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
for folder in sys.argv[1:]:
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    seeds = [torch.Generator().manual_seed(s) for s in (5, 6, 7)]
    images = pipe(batch_size=3, generator=seeds, num_inference_steps=50, output_type="np").images
    numpy.save(folder + "/images.npy", images)
assert not any(name.split(".")[0] == "diffunet" for name in sys.modules)
"""


def test_plain_diffusers_opens_the_folders_and_makes_the_same_images(tmp_path: Path) -> None:
    for name, changes in NETWORKS.items():
        hub.export(denoiser(**changes), tmp_path / name)
    command = [sys.executable, "-c", PLAIN, *(str(tmp_path / name) for name in NETWORKS)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300, capture_output=True)
    for name, changes in NETWORKS.items():
        theirs = torch.from_numpy(np.load(tmp_path / name / "images.npy")).permute(0, 3, 1, 2) * 2 - 1
        ours = generate(denoiser(**changes), 3, sampler="ddpm", steps=50, seed=5)
        assert ours.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


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


def test_the_folder_is_small_and_says_what_it_is(exported: Path) -> None:
    names = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    assert names == ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
    config = json.loads((exported / "scheduler/scheduler_config.json").read_text())
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


def test_a_network_with_classes_samples_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    import diffusers

    den = denoiser(num_classes=3, null_class=True)
    hub.export(den, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipe(num_inference_steps=2)
    x, labels = torch.randn(2, *SHAPE), torch.tensor([1, 3])
    torch.testing.assert_close(pipe.unet(x, 9, labels).sample, den.network(x, 9, labels), rtol=0, atol=1e-5)


def test_a_learned_variance_is_what_their_scheduler_samples_with(tmp_path: Path) -> None:
    import diffusers

    den = denoiser(learned_variance=True)
    hub.export(den, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert pipe.scheduler.config.variance_type == "learned_range"
    learned = their_samples(pipe.unet, pipe.scheduler, 10)
    fixed = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_small")
    plain = their_samples(lambda x, t: SimpleNamespace(sample=pipe.unet(x, t).sample[:, :3]), fixed, 10)
    assert learned.shape == plain.shape == (3, *SHAPE)
    assert (learned - plain).abs().max() > 1e-3


REFUSED: list[tuple[Callable[[], Denoiser], str]] = [
    (lambda: denoiser(Schedule.karras(), "edm"), r"needs a table of betas, which Schedule.karras\(.*\) is not"),
    (lambda: denoiser(Schedule.flow(), "flow"), r"needs a table of betas, which Schedule.flow\(.*\) is not"),
    (lambda: denoiser(clip=(0, 1)), r"cannot say clip = \[0, 1\]; only \[-r, r\]"),
    (lambda: denoiser(Schedule.sigmoid(T=10)), "last beta is 1 in diffusers' float32"),
    (lambda: denoiser(cond_channels=1), "cannot say cond_channels = 1"),
    (lambda: Denoiser(ClassicUNet(base_channels=2), Schedule.linear()), "not a ClassicUNet"),
    (lambda: Denoiser(tiny(), Schedule.linear(), data=DataInfo(shape=(3, 10, 8))), "multiples of 4 only"),
    (lambda: denoiser(time=FourierTime(features=2, log=True), divide_by_time=True), "divide_by_time: .* begins at 0"),
    (lambda: denoiser(time=LearnedTime(steps=500)), "time.steps = 500: .* fewer times than the 1000 of the schedule"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_diffusers_cannot_say_is_refused_and_nothing_written(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        hub.export(make(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


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


def test_a_grid_that_diffusers_rounds_out_of_its_table_is_refused() -> None:
    # np.arange(1000, 0, -1000 / 61) has 62 values there, the last of them index -1
    with pytest.raises(ConfigError, match="trailing grid of 61 steps leaves the table"):
        generate(denoiser(), 1, sampler="DDIMScheduler", steps=61)
    assert generate(denoiser(), 1, sampler="DDIMScheduler", steps=61, spacing="leading").isfinite().all()
