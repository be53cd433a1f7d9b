import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffunet.errors import ConfigError, DataError, NumericError
from diffunet.metrics import Evaluation, Extractor, RealImages, Row, compare, frechet_distance, image_count
from diffunet.spec import EvaluateConfig

METRICS = ["frechet_distance", "kernel_distance", "precision", "recall", "nearest_training_image"]


def judge(samples: Tensor, real: RealImages, extractor: Extractor | None = None, **config: object) -> Evaluation:
    return compare(
        samples,
        real.held_out,
        real.train,
        real.train_labels,
        real.held_out_labels,
        EvaluateConfig(**config),
        sampler="ddim, 50 steps",
        extractor=extractor,
    )


@pytest.fixture(scope="module")
def of_noise(digits, noise, classifier) -> Evaluation:
    return judge(noise, digits, classifier)


def test_noise_is_far_worse_than_the_floor(of_noise):
    rows = of_noise.rows
    assert list(rows) == METRICS
    assert rows["frechet_distance"].ratio > 10
    assert rows["kernel_distance"].samples > 1 > abs(rows["kernel_distance"].floor)
    assert rows["precision"].ratio < 0.3
    assert rows["recall"].ratio < 0.3
    assert rows["nearest_training_image"].ratio > 2


def test_copied_training_images_score_like_the_floor_and_are_found_out(digits, classifier):
    evaluation = judge(digits.train[:700], digits, classifier)
    assert 0.8 < evaluation.rows["frechet_distance"].ratio < 1.25
    assert evaluation.rows["nearest_training_image"].samples == 0
    assert evaluation.rows["nearest_training_image"].ratio == 0


def test_held_out_images_as_samples_are_perfect(digits, classifier):
    rows = judge(digits.held_out, digits, classifier).rows
    assert abs(rows["frechet_distance"].ratio) < 1e-6
    assert (rows["precision"].samples, rows["recall"].samples) == (1, 1)
    assert rows["nearest_training_image"].ratio == 1


def test_the_floor_is_as_many_distinct_training_images(digits, classifier):
    real = replace(digits, train=digits.train[:700])  # 700 distinct ones of 700 are all of them
    floor = judge(digits.held_out, real, classifier).rows["frechet_distance"].floor
    train, held_out = (classifier.features(images, 256) for images in (real.train, real.held_out))
    assert floor == pytest.approx(frechet_distance(train, held_out), rel=1e-6)


def test_the_same_seed_gives_the_same_numbers(digits, noise, classifier):
    first, again, other = (judge(noise, digits, classifier, n=100, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.rows["frechet_distance"].floor != other.rows["frechet_distance"].floor
    assert (first.n, first.seed, other.seed) == (100, 5, 6)


def test_only_the_first_n_samples_count_and_they_are_clamped(digits, noise, classifier):
    spoilt = torch.cat([noise[:50] * 9, torch.zeros(20, 1, 8, 8)])
    plain = (noise[:50] * 9).clamp(-1, 1)
    assert judge(spoilt, digits, classifier, n=50) == judge(plain, digits, classifier, n=50)


def test_without_labels_the_features_are_random_convolutions(digits, noise):
    unlabelled = replace(digits, train_labels=None, held_out_labels=None)
    evaluation = judge(noise, unlabelled, seed=4)
    assert evaluation.extractor == "random_conv (64 features, seed 4)"
    assert evaluation.rows["frechet_distance"].ratio > 20


def test_the_table_holds_every_number_in_80_columns(of_noise):
    table = replace(of_noise, sampler="ddim, 50 steps, guidance 2, " + "averaged weights, " * 5).table()
    for row in of_noise.rows.values():
        cells = [f"{value:.4g}" for value in (row.samples, row.floor)]
        cells.append("-" if row.ratio is None else f"{row.ratio:.4g}")
        assert any(line.split()[-3:] == cells for line in table.splitlines())
    for text in (
        of_noise.extractor,
        "seed 0",
        "700 samples against 700 held-out",
        "sampler: ddim, 50 steps, guidance 2",
    ):
        assert text in table
    assert max(map(len, table.splitlines())) <= 80
    assert table.isascii()


def test_json_holds_every_number(of_noise):
    found = json.loads(json.dumps(of_noise.to_json(), allow_nan=False))
    assert list(found["metrics"]) == METRICS
    for name, row in of_noise.rows.items():
        assert found["metrics"][name] == {"samples": row.samples, "floor": row.floor, "ratio": row.ratio}
    assert found["extractor"] == of_noise.extractor
    assert (found["n"], found["seed"], found["sampler"]) == (700, 0, "ddim, 50 steps")


@pytest.mark.parametrize("floor", [0.0, -0.001])
def test_there_is_no_ratio_to_a_floor_that_is_not_positive(floor):
    evaluation = Evaluation({"kernel_distance": Row(0.5, floor)}, "random_conv", 10, 0, "ddim")
    assert evaluation.rows["kernel_distance"].ratio is None
    assert evaluation.to_json()["metrics"]["kernel_distance"]["ratio"] is None
    assert any(line.endswith(" -") for line in evaluation.table().splitlines())


def test_n_is_all_the_held_out_images_where_it_is_unset():
    assert image_count(EvaluateConfig(), train=1097, held_out=700) == 700
    assert image_count(EvaluateConfig(n=64), train=1097, held_out=700) == 64


@pytest.mark.parametrize(
    ("n", "train", "held_out", "error", "message"),
    [
        (None, 100, 1, DataError, "at least 2 held-out images, found 1; add images or set data.held_out"),
        (None, 100, 0, DataError, "at least 2 held-out images, found 0"),
        (None, 1, 100, DataError, "at least 2 training images, found 1"),
        (None, 60, 100, ConfigError, "n = 100 needs 100 training images, found 60; set evaluate.n = 60"),
        (80, 60, 100, ConfigError, "n = 80 needs 80 training images, found 60; set evaluate.n = 60"),
        (80, 100, 60, ConfigError, "n = 80 needs 80 held-out images, found 60; set evaluate.n = 60"),
    ],
)
def test_too_few_images_are_an_error_that_says_what_to_set(n, train, held_out, error, message):
    with pytest.raises(error, match=message):
        image_count(EvaluateConfig(n=n), train, held_out)


def test_too_few_samples_are_an_error(digits, noise, classifier):
    with pytest.raises(ConfigError, match=r"n = 700 but there are 64 samples; draw 700 or lower evaluate\.n"):
        judge(noise[:64], digits, classifier)


@pytest.mark.parametrize("shape", [(700, 1, 8, 9), (700, 3, 8, 8), (700, 1, 8)])
def test_samples_of_another_shape_are_an_error(digits, classifier, shape):
    with pytest.raises(DataError, match="of one shape"):
        judge(torch.zeros(shape), digits, classifier)


def test_samples_that_are_not_finite_are_an_error(digits, noise, classifier):
    broken = noise.clone()
    broken[3, 0, 2, 2] = torch.nan
    broken[9, 0, 0, 0] = torch.inf
    with pytest.raises(NumericError, match="2 of 700 samples hold values that are not finite"):
        judge(broken, digits, classifier)
