"""The four trainers of `reliability.py`, each as one would use it, around a network of a few thousand weights.

`train` saves after every step and goes on from what it finds; `open` gives a function that does to a folder what a
resume does first, and raises where that does not work. The peers' loops are written here from their documentation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAN_AT = 3  # the step that is spoilt, where one is
KEEP = 2  # checkpoints that stay, where a system can say so
SEED = 0


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """A number of the weights."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(tensors[name].detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def note(path: Path, line: str) -> None:
    """One line, handed to the system at once."""
    with open(path, "a") as file:
        file.write(line + "\n")


def images_of(folder: Path) -> list[Path]:
    """The pictures of the toy data set."""
    return sorted(folder.glob("*.png"))


class Pictures(torch.utils.data.Dataset):
    """PNG files as the documented examples read them: open, convert, to a tensor."""

    def __init__(self, folder: Path) -> None:
        self.paths = images_of(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        return torch.from_numpy(np.array(Image.open(self.paths[index]).convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


class Accelerate:
    """accelerate's save_state and load_state in a loop, as in its guide to checkpoints."""

    name, package = "accelerate save_state", "accelerate"

    def __init__(self) -> None:
        self.version = importlib.metadata.version(self.package)

    def accelerator(self, folder: Path) -> Any:
        """It names its folders by itself."""
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        plan = ProjectConfiguration(project_dir=str(folder), automatic_checkpoint_naming=True, total_limit=KEEP)
        return Accelerator(cpu=True, project_config=plan)

    def register(self, accelerator: Any, optimizer: torch.optim.Optimizer) -> None:
        """An object of one's own with state_dict and load_state_dict, as the guide shows."""
        accelerator.register_for_checkpointing(torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))

    def make(self, folder: Path, images: Path) -> dict[str, Any]:
        """Model, optimizer and loader, prepared."""
        from accelerate.utils import set_seed
        from diffusers import UNet2DModel

        set_seed(SEED)
        accelerator = self.accelerator(folder)
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
        model = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, dropout=0.1, **blocks)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loader = torch.utils.data.DataLoader(Pictures(images), batch_size=4, shuffle=True)
        parts = dict(zip(("model", "optimizer", "loader"), accelerator.prepare(model, optimizer, loader), strict=True))
        self.register(accelerator, optimizer)
        return parts | {"accelerator": accelerator, "folder": folder}

    def step_of(self, path: Path) -> int:
        return int(path.name.split("_")[-1])

    def checkpoints(self, folder: Path) -> list[Path]:
        """Oldest first."""
        return sorted((folder / "checkpoints").glob("checkpoint_*"), key=self.step_of)

    def save(self, parts: dict[str, Any], step: int) -> None:
        parts["accelerator"].project_configuration.iteration = step
        parts["accelerator"].save_state()

    def read(self, parts: dict[str, Any], path: Path) -> None:
        parts["accelerator"].load_state(str(path))

    def batches(self, parts: dict[str, Any], done: int) -> Any:
        """What the loop goes over; the guide skips what was seen."""
        per_epoch = len(parts["loader"])
        rest = parts["accelerator"].skip_first_batches(parts["loader"], done % per_epoch)
        yield from rest
        while True:
            yield from parts["loader"]

    def train(self, folder: Path, images: Path, steps: int, nan: bool = False) -> None:
        """Train to `steps`, saving after each."""
        from diffusers import DDPMScheduler

        parts, noise_schedule, done = self.make(folder, images), DDPMScheduler(100), 0
        if found := self.checkpoints(folder):
            self.read(parts, found[-1])
            done = self.step_of(found[-1])
        batches = self.batches(parts, done)
        while done < steps:
            x0 = next(batches)
            eps, t = torch.randn_like(x0), torch.randint(0, 100, (len(x0),))
            guess = parts["model"](noise_schedule.add_noise(x0, eps, t), t).sample
            loss = torch.nn.functional.mse_loss(guess, eps) * (float("nan") if nan and done + 1 == NAN_AT else 1)
            parts["accelerator"].backward(loss)
            parts["accelerator"].clip_grad_norm_(parts["model"].parameters(), 1.0)
            parts["optimizer"].step()
            parts["optimizer"].zero_grad()
            done += 1
            note(folder / "losses", f"{done} {loss.item().hex()}")
            note(folder / "digests", digest(parts["model"].state_dict()))
            self.save(parts, done)

    def open(self, folder: Path, images: Path) -> Callable[[Path], str]:
        """A function: a checkpoint -> the digest of the weights that a resume takes from it."""
        parts = self.make(folder, images)

        def load(path: Path) -> str:
            self.read(parts, path)
            return digest(parts["model"].state_dict())

        return load

    def digests(self, folder: Path, golden: Path) -> set[str]:
        """Those of all weights that were ever saved."""
        return set((folder / "digests").read_text().split())

    def finite(self, folder: Path, images: Path) -> bool:
        """Whether the weights of the newest checkpoint are."""
        parts = self.make(folder, images)
        self.read(parts, self.checkpoints(folder)[-1])
        return all(bool(value.isfinite().all()) for value in parts["model"].state_dict().values())

    def save_large(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        """One save of these weights."""
        from accelerate import Accelerator

        model = torch.nn.ParameterList(tensors.values())
        accelerator = Accelerator(cpu=True)
        accelerator.prepare_model(model)
        accelerator.save_state(str(folder))


class Diffusers(Accelerate):
    """The pattern of diffusers' train_unconditional example: rotate, save_state, and skip batches by drawing them."""

    name, package = "diffusers train_unconditional (pattern)", "diffusers"

    def accelerator(self, folder: Path) -> Any:
        from accelerate import Accelerator

        return Accelerator(cpu=True)

    def register(self, accelerator: Any, optimizer: torch.optim.Optimizer) -> None:
        """Nothing."""

    def step_of(self, path: Path) -> int:
        return int(path.name.split("-")[1])

    def checkpoints(self, folder: Path) -> list[Path]:
        return sorted((path for path in folder.iterdir() if path.name.startswith("checkpoint")), key=self.step_of)

    def save(self, parts: dict[str, Any], step: int) -> None:
        found = self.checkpoints(parts["folder"])
        for old in found[: max(0, len(found) - KEEP + 1)]:  # room is made before the new one is written
            shutil.rmtree(old)
        parts["accelerator"].save_state(str(parts["folder"] / f"checkpoint-{step}"))

    def batches(self, parts: dict[str, Any], done: int) -> Any:
        skip = done % len(parts["loader"])
        while True:
            for batch in parts["loader"]:
                if skip:
                    skip -= 1
                    continue
                yield batch


class Lucidrains:
    """denoising-diffusion-pytorch's own Trainer; `load` names the newest milestone, as its README does."""

    name, package = "lucidrains Trainer", "denoising-diffusion-pytorch"

    def __init__(self) -> None:
        self.version = importlib.metadata.version(self.package)
        import denoising_diffusion_pytorch  # noqa: F401 (an ImportError means: not installed)

    def make(self, folder: Path, images: Path, steps: int = 1, nan: bool = False) -> Any:
        import denoising_diffusion_pytorch as ddp

        torch.manual_seed(SEED)

        class Noted(ddp.GaussianDiffusion):
            def forward(self, *args: Any, **options: Any) -> torch.Tensor:
                step = trainer.step + 1
                loss = super().forward(*args, **options) * (float("nan") if nan and step == NAN_AT else 1)
                note(folder / "losses", f"{step} {loss.item().hex()}")
                return loss

        class Saved(ddp.Trainer):
            def save(self, milestone: int) -> None:
                note(folder / "digests", digest(self.accelerator.get_state_dict(self.model)))
                super().save(milestone)

        network = ddp.Unet(dim=8, dim_mults=(1, 2), dropout=0.1, flash_attn=False)
        diffusion = Noted(network, image_size=8, timesteps=20, sampling_timesteps=1)
        options = {"train_batch_size": 16, "save_and_sample_every": 1, "num_samples": 1, "calculate_fid": False}
        trainer = Saved(diffusion, str(images), train_num_steps=steps, results_folder=str(folder), **options)
        return trainer

    def checkpoints(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("model-*.pt"), key=lambda path: int(path.stem.split("-")[1]))

    def train(self, folder: Path, images: Path, steps: int, nan: bool = False) -> None:
        trainer = self.make(folder, images, steps, nan)
        if found := self.checkpoints(folder):
            trainer.load(int(found[-1].stem.split("-")[1]))
        trainer.train()

    def open(self, folder: Path, images: Path) -> Callable[[Path], str]:
        trainer = self.make(folder, images)

        def load(path: Path) -> str:
            trainer.load(path.stem.split("-")[1])
            return digest(trainer.accelerator.get_state_dict(trainer.model))

        return load

    def digests(self, folder: Path, golden: Path) -> set[str]:
        return set((folder / "digests").read_text().split())

    def finite(self, folder: Path, images: Path) -> bool:
        trainer = self.make(folder, images)
        trainer.load(self.checkpoints(folder)[-1].stem.split("-")[1])
        return all(bool(value.isfinite().all()) for value in trainer.model.state_dict().values())

    def save_large(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        folder.mkdir(parents=True)
        torch.save({"step": 0, "model": tensors}, folder / "model-1.pt")


def quiet() -> None:
    """A child's words go nowhere."""
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
