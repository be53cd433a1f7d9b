import hashlib
import io
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from diffunet.errors import CheckpointError, ConfigError
from diffunet.metrics import EXTRACTORS, RealImages, build, choose, extractors
from diffunet.metrics.extractors import Inception, RandomConv, _body
from diffunet.metrics.fidelity import fidelity
from diffunet.spec import EvaluateConfig


def unlabelled(*shape: int) -> RealImages:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return RealImages(images, None, images, None)


def test_the_table_holds_the_names_of_the_spec():
    names = get_args(EvaluateConfig.model_fields["extractor"].annotation)
    assert set(EXTRACTORS) == set(names) - {"auto"}


@pytest.mark.parametrize(
    ("name", "has_labels", "chosen"),
    [
        ("auto", True, "classifier"),
        ("auto", False, "random_conv"),
        ("random_conv", True, "random_conv"),
        ("inception", False, "inception"),
    ],
)
def test_auto_is_the_classifier_where_there_are_classes(name, has_labels, chosen):
    assert choose(EvaluateConfig(extractor=name), has_labels) == chosen


def test_labels_count_only_with_two_classes_on_both_sides(digits):
    assert digits.has_labels
    assert not replace(digits, train_labels=None).has_labels
    assert not replace(digits, held_out_labels=None).has_labels
    assert not replace(digits, train_labels=torch.full_like(digits.train_labels, 3)).has_labels


def test_the_classifier_reads_digits_and_says_how_well(digits, classifier):
    assert classifier.accuracy >= 0.97
    assert classifier.name == f"classifier (64 features, seed 0, held-out accuracy {classifier.accuracy:.3f})"
    features = classifier.features(digits.held_out, 256)
    assert (features.shape, features.dtype) == ((700, 64), torch.float32)
    assert not features.requires_grad


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_global_generators_alone(digits, classifier):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    again = build(EvaluateConfig(), digits)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert torch.equal(again.features(digits.held_out, 256), classifier.features(digits.held_out, 256))
    assert again.name == classifier.name


@pytest.mark.parametrize("labels", [None, torch.zeros(4, dtype=torch.long)])
def test_a_classifier_without_classes_is_an_error_that_names_the_way_out(labels):
    real = replace(unlabelled(4, 1, 8, 8), train_labels=labels, held_out_labels=labels)
    with pytest.raises(ConfigError, match=r"'classifier' needs labels.*--evaluate\.extractor random_conv"):
        build(EvaluateConfig(extractor="classifier"), real)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (3, 5, 9), (2, 64, 48), (3, 33, 17), (2, 300), (1, 9, 5, 17)])
def test_the_classifier_has_64_features_at_any_size(shape):
    assert _body(*shape)(torch.zeros(2, *shape)).shape == (2, 64)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 9), (2, 33, 20), (1, 1), (2, 50), (1, 3, 9, 6)])
def test_random_conv_has_64_features_for_any_channels_and_size(shape):
    real = unlabelled(6, *shape)
    extractor = build(EvaluateConfig(), real)
    features = extractor.features(real.train, 4)
    assert (features.shape, features.dtype) == ((6, 64), torch.float32)
    assert features.isfinite().all()
    assert features.std(0).max() > 0.01
    torch.testing.assert_close(features, extractor.features(real.train, 6))  # the batch size does not matter


def test_random_conv_is_its_seed():
    real = unlabelled(3, 1, 8, 8)
    first, again, other = (RandomConv(real, seed).features(real.train, 3) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub would have the weights of the Inception, in an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    return path


def test_inception_without_weights_says_what_to_save_where(weights_file):
    with pytest.raises(ConfigError) as caught:
        build(EvaluateConfig(extractor="inception"), unlabelled(2, 3, 8, 8))
    message = str(caught.value)
    assert str(weights_file) in message
    assert f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{weights_file.name}" in message
    assert "--evaluate.extractor random_conv" in message


def test_the_classifier_tells_signals_apart():
    """Sines of two frequencies and any phase: easy to learn, and impossible from the mean or the deviation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (600,), generator=generator)
    phase = torch.rand(600, 1, 1, generator=generator) * 6.3
    signals = torch.sin(torch.linspace(0, 20, 48) * (1 + labels[:, None, None]) + phase)
    real = RealImages(signals[:300], labels[:300], signals[300:], labels[300:])
    assert build(EvaluateConfig(), real).accuracy >= 0.97


def test_inception_takes_grey_or_colour_only():
    with pytest.raises(ConfigError, match="needs images, not 1-D data"):
        build(EvaluateConfig(extractor="inception"), unlabelled(2, 3, 8))
    with pytest.raises(ConfigError, match="needs 1 or 3 channels, not 2"):
        build(EvaluateConfig(extractor="inception"), unlabelled(2, 2, 8, 8))


def test_inception_is_torch_fidelitys_network_on_8_bit_colour_images(weights_file, monkeypatch):
    class Untrained(fidelity().FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **options: Any) -> None:
            """Keep the random weights that the layers were made with."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    torch.save(theirs.state_dict(), weights_file, _use_new_zipfile_serialization=False)  # as old as the real file
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(weights_file.read_bytes()).hexdigest())

    grey = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)
    images = torch.from_numpy(grey / np.float32(127.5) - 1)
    ours = Inception(RealImages(images, None, images, None), seed=0)
    expected = theirs(torch.from_numpy(grey).repeat(1, 3, 1, 1))[0]
    assert torch.equal(ours.features(images, 2), expected)
    assert ours.name.startswith("inception-v3-compat (2048 features, torch-fidelity ")


def test_an_inception_file_of_other_bytes_is_never_unpickled(weights_file):
    canary = weights_file.with_name("canary")

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    weights_file.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match=r"6726825d\.pth does not match its SHA-256 and was not loaded"):
        build(EvaluateConfig(extractor="inception"), unlabelled(2, 3, 8, 8))
    assert not canary.exists()
