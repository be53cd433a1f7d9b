"""Every option of an objective trains from the command line and goes on bit for bit; and what the trainer gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from diffunet import Denoiser, Schedule
from diffunet import config as configs
from diffunet.data import Images, Split
from diffunet.errors import ConfigError
from diffunet.spec import objective_config
from diffunet.training.diffusion import Diffusion
from diffunet.training.indexstream import Noises
from diffunet.training.pairing import PAIRINGS
from tests.training.conftest import Zygote
from tests.training.runs import assert_same_run, write_config

# of four steps each; together they name every option of the section
RUNS = {
    "improved": [
        "--model.learned_variance true --objective.variance hybrid --objective.times.kind importance",
        "--objective.times.history 1 --process.schedule.T 4 --objective.offset_noise 0.1",
        "--process.schedule.kind cosine --objective.weight min_snr --objective.input_perturbation 0.1",
        "--train.accumulation 2",
    ],
    "edm": [
        "--process.schedule karras --process.prediction edm --process.clip dynamic --objective.weight edm",
        "--model.uncertainty_channels 8 --objective.uncertainty true --objective.times.kind log_normal",
        "--objective.times.stratified true --objective.error huber --objective.pairing optimal",
    ],
    "recalling": [
        "--model.self_conditioning true --objective.self_conditioning 0.6 --objective.error multi_scale",
        "--objective.weight.kind p2 --objective.weight.k 0.5 --objective.times uniform",
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_options_train_and_go_on_bit_for_bit(name: str, zygote: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path, checkpoint_every="2", preview_every="2", held_out_every="2", steps="4")
    flags = [*" ".join(RUNS[name]).split(), "--train.lr_schedule", "constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def train(folder: Path, *more: str) -> None:
        log = tmp_path / "log"
        assert zygote.run(["train", config, *flags, *more, "--out", folder], log) == 0, log.read_text()

    train(whole)
    train(parts, "--train.steps", "2")
    train(parts)
    assert_same_run(whole, parts, 4)
    kept = [run / "checkpoints" / "step-00000004" / "task.safetensors" for run in (whole, parts)]
    assert [path.exists() for path in kept] == [name == "improved"] * 2
    if name == "improved":
        seen, again = (safetensors.torch.load_file(path) for path in kept)
        assert all(torch.equal(seen[key], again[key]) for key in seen)
        assert seen["counts"].sum() == 4 * 12, "all micro-steps are remembered"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"objective": {"variance": "hybrid"}}, "'hybrid' needs model.learned_variance = true"),
        ({"model": {"learned_variance": True}}, "model.learned_variance needs objective.variance = 'hybrid'"),
        (
            {"model": {"learned_variance": True}, "objective": {"variance": "hybrid", "times": "log_normal"}},
            "'hybrid' needs objective.times of indices: schedule, uniform, importance",
        ),
        (
            {
                "model": {"learned_variance": True},
                "objective": {"variance": "hybrid"},
                "process": {"schedule": "flow", "prediction": "flow"},
            },
            "'hybrid' needs a process.schedule of T steps, not 'flow'",
        ),
        (
            {"objective": {"times": "importance"}, "process": {"schedule": "flow", "prediction": "flow"}},
            "'importance' needs a process.schedule of T steps, not 'flow'",
        ),
        ({"objective": {"uncertainty": True}}, "objective.uncertainty needs model.uncertainty_channels > 0"),
        ({"model": {"uncertainty_channels": 8}}, "needs objective.uncertainty = true"),
        ({"objective": {"self_conditioning": 0.9}}, "needs model.self_conditioning = true"),
        (
            {"objective": {"pairing": "optimal"}, "train": {"batch_size": 4, "accumulation": 4}},
            "'optimal' needs micro-batches of 2 images or more",
        ),
        ({"model": {"divide_by_time": True}}, "model.divide_by_time: no schedule here tells the network sigma itself"),
    ],
)
def test_what_cannot_go_together_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.resolve(table)
    assert message in str(caught.value)


class Wise(nn.Module):
    """A network that knows the images, and so tells the noise that its input has."""

    def __init__(self, clean: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.clean, self.schedule = clean, schedule

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma((t.double() + 1) / 1000)
        told = (x.double() - alpha[:, None, None, None] * self.clean) / sigma[:, None, None, None]
        self.told = told.float()
        return self.told


def task(**objective: Any) -> tuple[Diffusion, dict[str, Tensor]]:
    """A task on eight tiny pictures, and a batch of all of them."""
    pictures = Images.from_array(np.random.default_rng(0).random((8, 1, 4, 4)), (0.0, 1.0))
    table = {"model": {"in_channels": 1, "out_channels": 1}, "objective": objective, "train": {"batch_size": 8}}
    made = Diffusion(configs.resolve(table), Split(pictures))
    noises = Noises(0, made.config.objective, 8)
    items = [noises(i, (1, 4, 4)) for i in range(8)]
    x0 = torch.from_numpy(np.stack([pictures[i] for i in range(8)]))
    return made, {"x0": x0} | {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}


def test_the_target_is_the_paired_noise() -> None:
    """Who tells the noise of the input makes no error, and that noise is the permuted one."""
    made, batch = task(pairing="optimal")
    den = Denoiser(Wise(batch["x0"].double(), Schedule.linear()), Schedule.linear())
    assert made.loss(den, batch).item() < 1e-8
    order = PAIRINGS["optimal"](batch["x0"], batch["eps"])
    assert order.tolist() != list(range(8))
    network: Any = den.network
    torch.testing.assert_close(network.told, batch["eps"][order], rtol=0, atol=2e-4)  # float32 over sigma >= 0.04


def test_perturbed_noise_is_shown_and_the_plain_one_is_the_target() -> None:
    made, batch = task(input_perturbation=0.1)
    den = Denoiser(Wise(batch["x0"].double(), Schedule.linear()), Schedule.linear())
    loss = made.loss(den, batch).item()
    assert loss == pytest.approx(((batch["shown"] - batch["eps"]) ** 2).mean().item(), rel=1e-3)
    assert loss == pytest.approx(0.01, rel=0.5)  # 128 draws of deviation 0.1


def test_importance_learns_from_every_rank_in_the_order_of_the_samples() -> None:
    """Two ranks of two micro-steps of two samples; a step that was skipped teaches nothing."""
    made, _ = task(times={"kind": "importance", "history": 1})
    den = Denoiser(nn.Identity(), Schedule.linear(T=8))
    rows = torch.tensor([[(k + 1) / 8, float(k)] for k in range(8)]).reshape(2, 2, 2, 2)  # micro, world, batch
    other = rows[:, 1][None]
    made.seen = [*rows[:, 0]]
    made.after_step(den, False, lambda mine: torch.cat([mine, other]))
    assert (made.seen, len(made.state()["counts"])) == ([], 0)
    made.seen = [*rows[:, 0]]
    made.after_step(den, True, lambda mine: torch.cat([mine, other]))
    assert made.state()["losses"][:, 0].tolist() == list(range(8))
    again, _ = task(times={"kind": "importance", "history": 1})
    again.restore(made.state())
    assert torch.equal(again.state()["counts"], torch.ones(8, dtype=torch.long))


def test_offset_noise_moves_a_whole_channel() -> None:
    """Deviation s of one normal a channel beside the plain noise, which stays what it was."""
    plain, moved = Noises(1), Noises(1, objective_config(offset_noise=0.5))
    shifts = []
    for position in range(200):
        shift = moved(position, (2, 3, 4))["eps"] - plain(position, (2, 3, 4))["eps"]
        np.testing.assert_allclose(shift, shift[:, :1, :1] + 0 * shift, atol=1e-6)
        shifts.append(shift[:, 0, 0])
    # 400 normals have their deviation within 4 / sqrt(800) = 14 %
    assert np.std(shifts) == pytest.approx(0.5, rel=0.14)


def test_the_coin_of_self_conditioning_is_drawn_for_those_networks_only() -> None:
    config = objective_config(self_conditioning=0.25)
    coins = [Noises(0, config, recalls=True)(p, (1, 1))["recall"] for p in range(400)]
    assert np.mean(coins) == pytest.approx(0.25, abs=4 * 0.0217)
    assert "recall" not in Noises(0, config)(0, (1, 1))
