"""The preflight: every warning for a run that deserves it, and none for one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet import config as configs
from diffunet import data
from diffunet.drawing import to_uint8
from diffunet.nn import NETWORKS
from diffunet.preflight import cost, learning, model, process, sheet
from diffunet.preflight.bench import Bench, undisturbed
from diffunet.preflight.data import WARNINGS, of_images, section
from diffunet.preflight.kinds import KINDS
from diffunet.spec import DataConfig
from tests.training.runs import write_config


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cut the fit of a batch short."""
    monkeypatch.setattr(learning, "SECONDS", 300.0)


def bench(folder: Path, *flags: str) -> Bench:
    """The tiny run, with keys changed."""
    return Bench(configs.load(write_config(folder), flags))


def looked(array: np.ndarray, folder: Path, value_range: tuple[float, float] | None = None) -> list[str]:
    """The warnings about an array's values."""
    np.save(folder / "data.npy", array)
    config = DataConfig(name="array", path=str(folder / "data.npy"), value_range=value_range, layout="nchw")
    sample = of_images(data.load(config).train)
    return [line for check in WARNINGS if (line := check(sample))]


RANDOM = np.random.default_rng(0)
NOISE = RANDOM.random((40, 3, 6, 5), dtype=np.float32)
BYTES = RANDOM.integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)


# --- the data ---------------------------------------------------------------------------------------------------------


def with_flat(array: np.ndarray) -> np.ndarray:
    """Three images without content."""
    changed = array.copy()
    changed[[1, 5, 9]] = changed[0, 0, 0, 0]
    return changed


CASES: list[tuple[str, np.ndarray, tuple[float, float] | None, str]] = [
    ("flat", with_flat(BYTES), None, "hold a single value"),
    ("a tenth of the range", NOISE * 0.1, None, "values fill 10 % of the range 0 to 1"),
    (
        "0 and 1 as bytes",
        (BYTES > 99).astype(np.uint8),
        None,
        "stored values are 0 to 1 in data whose range is 0 to 255",
    ),
    (
        "black",
        np.where(RANDOM.random(BYTES.shape) < 0.005, BYTES, 0).astype(np.uint8),
        None,
        "% of all values are black",
    ),
    ("white", np.where(RANDOM.random(BYTES.shape) < 0.005, BYTES, 255).astype(np.uint8), None, "values are white"),
    ("bytes cut at 1", np.maximum(BYTES, 1) * (BYTES > 99), (0, 1), "every value lies at an end of the range 0 to 1"),
    ("grey in colour", np.repeat(BYTES[:, :1], 3, axis=1), None, "all 3 channels are the same"),
    ("copies", BYTES[np.arange(40) % 10], None, "images looked at are copies of another one"),
]


@pytest.mark.parametrize(("array", "value_range", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_values_that_look_wrong_are_named(
    tmp_path: Path, array: np.ndarray, value_range: tuple[float, float] | None, expected: str
) -> None:
    assert any(expected in line for line in looked(array, tmp_path, value_range))


@pytest.mark.parametrize("array", [NOISE, BYTES], ids=["floats", "bytes"])
def test_sound_values_are_let_pass(tmp_path: Path, array: np.ndarray) -> None:
    assert looked(array, tmp_path) == []


def test_figures_of_the_data_are_those_of_numpy(tmp_path: Path) -> None:
    tried = bench(tmp_path, "--data.held_out", "0.9")  # few enough that all are looked at
    images = tried.split.train
    kind = KINDS["diffusion"](tried)
    found = section(tried.config, tried.split, kind.sample(), kind.classes())
    everything = np.stack([images[i] for i in range(len(images))])
    scaled = found.values["scaled"]
    assert found.values["looked_at"] == len(images)
    assert scaled["mean"] == pytest.approx(everything.mean(), rel=1e-5)
    assert scaled["std"] == pytest.approx(everything.std(), rel=1e-5)
    assert (scaled["min"], scaled["max"]) == (everything.min(), everything.max())
    counts = {name: int((images.labels == i).sum()) for i, name in enumerate(images.classes)}
    assert found.values["classes"] == counts
    assert found.values["times_seen"] == pytest.approx(24 * 12 / len(images))


def test_bad_files_and_uneven_classes_are_told(tmp_path: Path) -> None:
    for name, count in (("many", 24), ("few", 2)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(RANDOM.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    broken = tmp_path / "data" / "many" / "broken.png"
    broken.write_bytes((tmp_path / "data" / "many" / "0.png").read_bytes()[:60])
    flags = ["--data.name", "folder", "--data.path", str(tmp_path / "data"), "--data.bad_files_cap", "0.5"]
    tried = bench(tmp_path, *flags, "--data.held_out", "0", "--model.num_classes", "2", "--train.batch_size", "64")
    kind = KINDS["diffusion"](tried)
    found = section(tried.config, tried.split, kind.sample(), kind.classes())
    assert [bad["path"] for bad in found.values["bad_files"]] == [str(broken)]
    assert str(broken) in found.text
    assert found.values["classes"] == {"few": 2, "many": 24}
    for expected in ("1 files cannot be read", "class many has 12 times the images of class few", "26 training images"):
        assert any(expected in line for line in found.warnings), expected


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--process.schedule", "cosine", "--process.prediction", "v"], None),
        (["--process.schedule", "karras", "--process.prediction", "edm"], None),
        (["--process.schedule", "flow", "--process.prediction", "flow"], None),
        (["--process.schedule", "scaled_linear"], "7 % of the signal is left at t = 1"),
        (["--process.schedule", "ve", "--process.prediction", "edm"], None),
    ],
)
def test_a_process_out_of_scale_is_named(tmp_path: Path, flags: list[str], expected: str | None) -> None:
    found = KINDS["diffusion"](bench(tmp_path, *flags)).process()
    assert any(expected in line for line in found.warnings) if expected else found.warnings == []


def test_a_target_that_is_nearly_nothing_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", arr_0=0.5 + 0.02 * (NOISE[:, :1] - 0.5), arr_1=np.arange(40) % 10)
    flags = ["--data.name", "array", "--data.path", str(tmp_path / "grey.npz"), "--data.layout", "nchw"]
    tried = bench(tmp_path, *flags, "--process.prediction", "x0")
    (warning,) = KINDS["diffusion"](tried).process().warnings
    assert "what the network should say has root mean square 0.01" in warning


def test_times_uniform_in_log_snr_fill_every_tenth_alike(tmp_path: Path) -> None:
    tried = bench(tmp_path, "--objective.times", "uniform_logsnr", "--process.schedule", "vp")
    found = KINDS["diffusion"](tried).process()
    edges, shares = found.values["logsnr_edges"], found.values["time_shares"]
    config = tried.task.objective.distribution
    inside = [
        (a, b, s) for a, b, s in zip(edges, edges[1:], shares, strict=False) if config.low <= a and b <= config.high
    ]
    assert sum(shares) == pytest.approx(1)
    assert len(inside) >= 3
    width = min(config.high, edges[-1]) - max(config.low, edges[0])
    for a, b, share in inside:
        assert share == pytest.approx((b - a) / width, abs=2e-3)


def test_the_picture_shows_the_batch_at_its_levels(tmp_path: Path) -> None:
    tried = bench(tmp_path)
    kind = KINDS["diffusion"](tried)
    page, batch = kind.picture(), tried.batch(6)
    den = tried.task.model(tried.skeleton)
    t = process.times(den, tried.task.objective)
    assert len(t) == 8
    assert torch.equal(t, t.sort().values)
    alpha, sigma = (value.reshape(-1, 1, 1, 1).float() for value in den.schedule.alpha_sigma(t[[2]].expand(6)))
    shown = (alpha * batch["x0"] + sigma * batch["eps"]) / (alpha + 2 * sigma)
    wanted = [sheet.enlarged(tile) for tile in to_uint8(shown)]
    side, top = wanted[0].shape[0], page.shape[0] - 6 * (wanted[0].shape[0] + sheet.GAP)
    for row, tile in enumerate(wanted):
        down, across = top + row * (side + sheet.GAP), sheet.LEFT + 3 * (side + sheet.GAP)
        assert np.array_equal(page[down : down + side, across : across + side], tile)


# --- the network ------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_by_part(tmp_path: Path) -> None:
    tried = bench(tmp_path)
    total = sum(p.numel() for p in NETWORKS.build(tried.config.model).parameters())
    assert sum(model.roles(tried.skeleton).values()) == total
    need = model.need_of(tried.config, 12, (8, 8), tried.device, "no")
    assert need.parameters == total
    assert need.parts["weights"] == 4 * total
    assert need.parts["moments"] == 8 * total


def test_a_step_or_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tried = bench(tmp_path, "--train.batch_size", "16777216", "--train.keep_checkpoints", "1000000",
                  "--train.checkpoint_every", "1", "--train.steps", "10000000")  # fmt: skip
    need = model.need_of(tried.config, tried.micro_batch, (8, 8), tried.device, "no")
    found = model.section(tried.skeleton, need, tried.micro_batch, tried.device, "no")
    assert any("a step needs about" in line and "TiB" in line for line in found.warnings)
    assert any("checkpoints need" in line for line in cost.disk(tried, need, tmp_path).warnings)


def test_averages_are_counted(tmp_path: Path) -> None:
    few, many = bench(tmp_path), bench(tmp_path, "--ema.sigma_rel", "0.05,0.1", "--ema.snapshot_every", "6")
    needs = [model.need_of(b.config, 4, (8, 8), b.device, "no") for b in (few, many)]
    assert needs[1].parts["averages"] == 3 * needs[0].parts["averages"]
    snapshots = cost.disk_bytes(many, needs[1]) - cost.disk_bytes(few, needs[1])
    assert snapshots == 2 * 5 * needs[0].parts["weights"]


# --- learning ---------------------------------------------------------------------------------------------------------


def broken_head(learner: learning.Learner) -> None:
    """A network that begins by saying something."""
    torch.nn.init.normal_(learner.network.head.weight, std=1.0)


@pytest.mark.parametrize(("spoil", "warns"), [(lambda learner: None, False), (broken_head, True)], ids=["zero", "loud"])
def test_the_first_loss_is_that_of_silence(
    tmp_path: Path, spoil: Callable[[learning.Learner], None], warns: bool
) -> None:
    tried = bench(tmp_path, "--process.prediction", "v", "--process.schedule", "cosine")
    with undisturbed(tried.config):
        learner, batch = tried.learner(), tried.batch(12)
        spoil(learner)
        found, expected = learning.first_loss(learner, batch)
    den = learner.model
    t = tried.task.objective.times(den, batch["u"])
    alpha, sigma = (value.reshape(-1, 1, 1, 1).float() for value in den.schedule.alpha_sigma(t))
    target = alpha * batch["eps"] - sigma * batch["x0"]
    assert expected == pytest.approx(float(target.square().mean()), rel=1e-5)
    assert (learning.first_warning(found, expected) is not None) == warns


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], None),
        (["--train.learning_rate", "1e-6"], "too low?"),
        (["--train.learning_rate", "3.0", "--train.betas", "0,0.999"], "looks too high"),
        (["--train.clip_norm", "1e-9"], "train.clip_norm (1e-09, where the gradient has norm"),
    ],
)
def test_a_batch_is_learnt_by_heart_or_the_cause_is_named(
    tmp_path: Path, flags: list[str], expected: str | None
) -> None:
    tried = bench(tmp_path, "--train.warmup_steps", "4", *flags)
    with undisturbed(tried.config):
        losses, norms = learning.fit(tried.learner(), tried.batch(4), tried.config)
        warning = learning.fit_warning(losses, norms, tried.config)
    assert len(losses) == learning.STEPS
    assert warning is None if expected is None else warning is not None and expected in warning
    assert (losses[-1] < 0.5 * losses[0]) == (expected is None)


def test_half_precision_that_overflows_is_named(tmp_path: Path) -> None:
    tried = bench(tmp_path)
    tried.precision = "fp16"
    with undisturbed(tried.config):
        learner, batch = tried.learner(), tried.batch(2)
        _, values, warning = learning.overflow(learner, batch, "fp16")
        assert warning is None
        assert 0 < values["largest"] < 1000
        with torch.no_grad():
            learner.network.stem.weight.mul_(1e6)
        _, values, warning = learning.overflow(learner, batch, "fp16")
    assert warning is not None
    assert warning.startswith("fp16 overflows in ")
    assert values["largest"] is None


def test_trying_leaves_random_state_and_threads_as_they_were(tmp_path: Path) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    tried = bench(tmp_path, "--train.threads", "2")
    with undisturbed(tried.config):
        assert torch.get_num_threads() == 2
        tried.learner()
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
