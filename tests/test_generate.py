"""generate(): an image depends on its seed alone; callbacks, shapes, labels and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffunet import Denoiser, Schedule, UNet, generate
from diffunet.errors import ConfigError, NumericError
from diffunet.generation import Progress
from diffunet.samplers import SAMPLERS
from diffunet.spec import DataInfo, ResidualBlock
from tests import tiny
from tests.oracles import Gaussian

LINEAR = Schedule.linear()
every_sampler = pytest.mark.parametrize("sampler", [*SAMPLERS, "DDPMScheduler", {"kind": "ddim", "eta": 1.0}])
# another batch size sums float32 in another order; a few steps of a network carry that on
ROUNDING: Any = {"rtol": 0.0, "atol": 1e-5}
# three stages of a step carry it further; an adaptive step that was nearly refused may be refused then, which moves the
# image by as much as its tolerance means (on exact denoisers it is held to the bit elsewhere)
CARRIED = {"dpm_solver_3": 1e-4, "rk45": 0.05}


def rounding(sampler: Any) -> Any:
    """Tolerances for images of one sampler that are the same but for the network's rounding."""
    return ROUNDING | {"atol": CARRIED.get(sampler, ROUNDING["atol"]) if isinstance(sampler, str) else ROUNDING["atol"]}


@pytest.fixture(scope="module")
def net() -> Denoiser:
    """An image network of two levels with attention, three classes and a null class."""
    block = ResidualBlock(groups=2, zero_init=False, dropout=0.5)
    fields: dict[str, Any] = {"dims": 2, "base_channels": 4, "channel_multipliers": (1, 2), "attention_levels": (1,)}
    den = tiny.denoiser(block=block, num_classes=3, null_class=True, **fields)
    den.data = DataInfo(shape=(1, 5, 6))
    return den


@every_sampler
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_an_image_never_depends_on_its_batch(net: Denoiser, sampler: Any, batch_size: int) -> None:
    together = generate(net, 7, sampler, 4, class_labels=1)
    batched = generate(net, 7, sampler, 4, class_labels=1, batch_size=batch_size)
    torch.testing.assert_close(batched, together, **rounding(sampler))


@every_sampler
def test_an_image_depends_on_its_seed_alone(net: Denoiser, sampler: Any) -> None:
    images = generate(net, 5, sampler, 4, seed=10, class_labels=1)
    order = [13, 10, 14, 10]
    shuffled = generate(net, 4, sampler, 4, seed=order, class_labels=1)
    torch.testing.assert_close(shuffled, images[[seed - 10 for seed in order]], **rounding(sampler))
    torch.testing.assert_close(generate(net, 2, sampler, 4, seed=12, class_labels=1), images[2:4], **rounding(sampler))
    assert len({image.sum().item() for image in images}) == 5


@every_sampler
def test_the_same_call_gives_the_same_bits_and_leaves_the_global_generator(sampler: Any, net: Denoiser) -> None:
    before = torch.get_rng_state()
    first, second = (generate(net, 3, sampler, 4, class_labels=0) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@every_sampler
def test_image_i_starts_as_the_noise_of_its_seed(sampler: Any) -> None:
    seen: list[Tensor] = []

    class Watch(Gaussian):
        def __call__(self, x_t: Tensor, t: Any, **cond: Any) -> Tensor:
            seen.append(x_t)
            return super().__call__(x_t, t, **cond)

    generate(Watch(LINEAR), (3, 2, 4), sampler, 2, seed=5)
    for i in range(3):
        noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(5 + i))
        # diffusers starts at noise itself, ours at sigma(1) = 0.99998 of it
        torch.testing.assert_close(seen[0][i], noise, rtol=3e-5, atol=0)
        if sampler in ("ddim", "ddpm"):
            assert torch.equal(seen[0][i], LINEAR.sigma(1.0) * noise)


def test_given_noise_replaces_the_start_and_not_the_steps() -> None:
    den, noise = Gaussian(LINEAR), torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(5))] * 2)
    assert torch.equal(
        generate(den, (2, 4), "ddpm", 5, seed=[5, 6], noise=noise)[0], generate(den, (1, 4), "ddpm", 5, seed=5)[0]
    )
    a, b = generate(den, (2, 4), "ddpm", 5, seed=0, noise=noise)
    assert not torch.equal(a, b)
    one_by_one = generate(den, (2, 4), "ddpm", 5, seed=0, noise=noise, batch_size=1)
    assert torch.equal(one_by_one, torch.stack([a, b]))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "rk45"])  # which passes some in one stride
@pytest.mark.parametrize("batch_size", [None, 2])
def test_on_step_sees_every_step(sampler: Any, batch_size: int | None) -> None:
    seen: list[Progress] = []
    images = generate(Gaussian(LINEAR), (3, 1, 4), sampler, 6, batch_size=batch_size, on_step=seen.append)
    batches = [(0, 3)] if batch_size is None else [(0, 2), (2, 1)]
    assert [(p.first, len(p.x), p.step, p.steps) for p in seen] == [
        (first, n, i + 1, 6) for first, n in batches for i in range(6)
    ]
    times = [p.t for p in seen[:6]]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert all(p.x.shape == p.x0.shape for p in seen)
    assert torch.equal(torch.cat([p.x for p in seen if p.step == 6]), images)


def test_on_step_stops_by_raising_and_the_mode_is_restored(net: Denoiser) -> None:
    class Stop(Exception):
        pass

    steps = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            raise Stop

    net.train()
    with pytest.raises(Stop):
        generate(net, 1, steps=5, on_step=stop, class_labels=0)
    assert steps == [1, 2]
    assert net.training
    net.eval()


def test_dropout_is_off_while_generating_and_the_mode_is_restored(net: Denoiser) -> None:
    expected = generate(net, 2, steps=3, class_labels=0)
    net.train()
    assert torch.equal(generate(net, 2, steps=3, class_labels=0), expected)
    assert net.training
    assert net.network.training
    net.eval()
    generate(net, 2, steps=3, class_labels=0)
    assert not net.training


def test_no_gradient_is_kept(net: Denoiser) -> None:
    assert not generate(net, 1, steps=2, class_labels=0).requires_grad


@every_sampler
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4), (2, 3, 4, 5), (2, 1, 3, 4, 5), (0, 1, 4), (0, 2)])
def test_any_number_of_sides_and_of_images(sampler: Any, shape: tuple[int, ...]) -> None:
    images = generate(Gaussian(LINEAR), shape, sampler, 3)
    assert (images.shape, images.dtype) == (shape, torch.float32)


def test_n_takes_the_shape_of_the_data(net: Denoiser) -> None:
    assert generate(net, 2, steps=2, class_labels=0).shape == (2, 1, 5, 6)
    assert generate(net, 0, steps=2).shape == (0, 1, 5, 6)
    with pytest.raises(ConfigError, match=r"give the whole shape \(N, C, \*S\)"):
        generate(tiny.denoiser(), 2)


def test_labels_are_one_for_all_or_one_each(net: Denoiser) -> None:
    expected = generate(net, 3, steps=3, class_labels=torch.tensor([2, 2, 2]))
    for labels in (2, [2], [2, 2, 2], torch.tensor(2), torch.tensor([2, 2, 2], dtype=torch.int32)):
        assert torch.equal(generate(net, 3, steps=3, class_labels=labels), expected)
    mixed = generate(net, 3, steps=3, class_labels=[0, 2, 1], batch_size=2)
    torch.testing.assert_close(mixed[1], expected[1], **ROUNDING)
    assert not torch.allclose(mixed[0], expected[0], atol=1e-3)


def test_no_label_means_the_null_class(net: Denoiser) -> None:
    assert torch.equal(generate(net, 2, steps=3), generate(net, 2, steps=3, class_labels=3))


def test_image_conditions_go_with_their_rows() -> None:
    den = tiny.denoiser(cond_channels=1)
    cond = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0))
    together = generate(den, (5, 1, 8), steps=3, cond=cond)
    torch.testing.assert_close(generate(den, (5, 1, 8), steps=3, cond=cond, batch_size=2), together, **ROUNDING)
    alone = generate(den, (1, 1, 8), steps=3, seed=4, cond=cond[4:])
    torch.testing.assert_close(alone, together[4:], **ROUNDING)


def test_images_keep_within_the_clip_and_no_other(net: Denoiser) -> None:
    assert generate(net, 4, steps=3, class_labels=0).abs().max() <= 1
    assert generate(Gaussian(LINEAR, mean=5.0), (4, 1, 8), steps=20).max() > 4


def test_float64_noise_gives_float64_images() -> None:
    noise = torch.ones(2, 1, 3, dtype=torch.float64)
    for sampler in SAMPLERS:
        assert generate(Gaussian(LINEAR), (2, 1, 3), sampler, 3, noise=noise).dtype == torch.float64


class Broken(nn.Module):
    """A network that fails on the images whose first value is positive."""

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.where(x[:, :, :1] > 0, torch.nan, x)


@every_sampler
def test_values_that_are_not_finite_are_refused(sampler: Any) -> None:
    starts = torch.stack([torch.randn(1, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)])
    broken = int((starts[:, 0, 0] > 0).sum())
    assert 0 < broken < 8
    with pytest.raises(NumericError, match=rf"{broken} of 8 images are not finite"):
        generate(Denoiser(Broken(), LINEAR), (8, 1, 3), sampler, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2]}, "2 seeds were given for 3 images"),
        ({"class_labels": [0, 1]}, r"\(2,\) class labels were given for 3 images"),
        ({"noise": torch.zeros(3, 1, 5)}, r"noise of shape \(3, 1, 5\) was given for images of shape \(3, 1, 4\)"),
        ({"noise": torch.zeros(2, 1, 4)}, r"noise of shape \(2, 1, 4\)"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"spacing": "trailin"}, "did you mean 'trailing'"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 1001}, "steps = 1001"),
    ],
)
def test_options_that_do_not_fit_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(Gaussian(LINEAR), (3, 1, 4), **options)


def test_a_network_from_the_public_names_generates() -> None:
    net = UNet(
        dims=1,
        in_channels=2,
        out_channels=2,
        base_channels=8,
        channel_multipliers=(1,),
        block={"kind": "residual", "groups": 4},
        attention_levels=(),
    )
    assert generate(Denoiser(net, Schedule.cosine(), "v"), (2, 2, 9), steps=3).shape == (2, 2, 9)
