import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.metrics import distances, frechet_distance, kernel_distance, precision_recall, register
from diffunet.metrics.extractors import RandomConv
from diffunet.metrics.fidelity import fidelity


def gaussian(n: int, mean: Tensor, deviation: Tensor, seed: int) -> Tensor:
    """Exactly this mean and these deviations, whatever n: whitened, then scaled."""
    z = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T
    return mean + deviation * z


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def closed_form(a: Tensor, b: Tensor) -> float:
    """The same distance by another way: symmetric roots, tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)."""
    (m1, s1), (m2, s2) = ((f.numpy().mean(0), np.cov(f.numpy(), rowvar=False)) for f in (a.double(), b.double()))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root(root(s1) @ s2 @ root(s1))))


@pytest.fixture(scope="module")
def features(digits, noise) -> dict[str, Tensor]:
    extractor = RandomConv(digits, seed=0)
    images = {"train": digits.train[:700], "held_out": digits.held_out, "noise": noise}
    return {name: extractor.features(part, 256) for name, part in images.items()}


def test_frechet_distance_of_gaussians_is_the_formula():
    # diagonal covariances: |m1 - m2|^2 + sum (d1 - d2)^2
    m1, m2 = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 1.0, 0.5]).double()
    d1, d2 = torch.tensor([1.0, 0.5, 3.0]).double(), torch.tensor([2.0, 0.5, 1.0]).double()
    expected = ((m1 - m2) ** 2).sum() + ((d1 - d2) ** 2).sum()
    measured = frechet_distance(gaussian(200, m1, d1, seed=0), gaussian(300, m2, d2, seed=1))
    assert measured == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("other", ["train", "noise"])
def test_frechet_distance_equals_a_symmetric_eigendecomposition(features, other):
    measured = frechet_distance(features[other], features["held_out"])
    assert measured == pytest.approx(closed_form(features[other], features["held_out"]), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself(features):
    real = features["held_out"]
    variance = real.double().var(0).sum().item()
    assert abs(frechet_distance(real, real)) < 1e-6 * variance
    assert precision_recall(real, real) == (1.0, 1.0)


def test_sets_that_do_not_touch_have_no_precision_or_recall(features):
    real = features["held_out"]
    assert precision_recall(real + 1000, real) == (0.0, 0.0)


def test_collapse_costs_recall_and_not_precision(features):
    real = features["held_out"]
    collapsed = real[:20].repeat(35, 1)  # 20 perfect images, 35 times each
    precision, recall = precision_recall(collapsed, real)
    assert precision == 1.0
    assert recall < 0.1


def test_noise_is_farther_than_real_images_by_every_measure(features):
    floor, noise = (distances(features[name], features["held_out"], seed=0) for name in ("train", "noise"))
    assert noise["frechet_distance"] > 20 * floor["frechet_distance"]
    assert noise["kernel_distance"] > 0.01 > abs(floor["kernel_distance"])
    assert noise["precision"] < 0.05 < 0.8 < floor["precision"]
    assert noise["recall"] < 0.4 < 0.8 < floor["recall"]


class Pictures(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def as_files(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("form", [lambda images: images, as_files], ids=["float", "uint8"])
def test_the_distances_are_those_of_calculate_metrics_with_our_extractor(digits, noise, form, request):
    name = request.node.name
    extractor = RandomConv(digits, seed=0)
    register(name, extractor)
    samples, real = form(noise), form(digits.held_out)
    theirs = fidelity().calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(real),
        feature_extractor=name,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=350,
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    a, b = (x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x for x in (samples, real))
    ours = distances(extractor.features(a, 64), extractor.features(b, 64), seed=3)
    assert ours["frechet_distance"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["kernel_distance"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


def test_kernel_distance_is_its_seed_and_leaves_numpys_generator_alone(features):
    before = np.random.get_state()[1].copy()
    first, again, other = (kernel_distance(features["train"], features["held_out"], seed) for seed in (7, 7, 2**40))
    assert first == again != other
    assert np.array_equal(np.random.get_state()[1], before)


def test_two_images_on_each_side_are_enough():
    first, second = (torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert all(np.isfinite(value) for value in distances(first, second, seed=0).values())


def test_nothing_is_printed(features, capfd):
    distances(features["train"], features["held_out"], seed=0)
    assert capfd.readouterr() == ("", "")


def test_without_torch_fidelity_the_error_says_what_to_install(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffunet\[eval\]'"):
        frechet_distance(features["train"], features["held_out"])
