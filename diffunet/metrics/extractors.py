"""What the distances look at: a named extractor turns images (N, C, *S) in [-1, 1] into features (N, D).

Signals and volumes are images here, with one side or three.

Numbers of two extractors cannot be compared, nor those of two classifiers trained on other images; `name` says which.
"""

from __future__ import annotations

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from diffunet.errors import CheckpointError, ConfigError
from diffunet.metrics.fidelity import fidelity
from diffunet.spec import EvaluateConfig
from diffunet.table import Table

FEATURES = 64
STEPS, BATCH, LEARNING_RATE, SMOOTHING = 1000, 128, 3e-3, 0.1  # of the classifier
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_ELSE = "use --evaluate.extractor random_conv"


@dataclass(frozen=True, eq=False)
class RealImages:
    """The images of a run: (N, C, *S) float in [-1, 1], with (N,) int64 labels from 0 up where there are any."""

    train: Tensor
    train_labels: Tensor | None
    held_out: Tensor
    held_out_labels: Tensor | None

    @property
    def has_labels(self) -> bool:
        """Whether both parts are labelled and there are at least two classes to tell apart."""
        if self.train_labels is None or self.held_out_labels is None:
            return False
        return len(self.train_labels.unique()) >= 2


class Extractor(ABC):
    """A fixed map from images to features."""

    name: str

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *S) in [-1, 1] -> (B, D)."""

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int) -> Tensor:
        """(N, C, *S) in [-1, 1] -> (N, D) float32 on the CPU, `batch_size` images at a time."""
        return torch.cat([self.forward(batch.float()).cpu() for batch in images.split(batch_size)])


def _strides(side: int) -> list[int]:
    """Strides that bring a side of at least 1 down to at most 4, the first one keeping small images whole."""
    strides = [1 if side <= 16 else 2]
    while side > 4 * math.prod(strides):
        strides.append(2)
    return strides


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of sides


def _body(channels: int, *sides: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    strides = _strides(max(sides))
    for i, stride in enumerate(strides):
        out = 32 if i == 0 else 64
        layers += [CONVS[len(sides)](channels, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
        channels = out
    places = math.prod(math.ceil(side / math.prod(strides)) for side in sides)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * places, FEATURES), nn.ReLU())


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by at most one pixel either way, the edge repeated."""
    sides = images.shape[2:]
    corner = torch.randint(3, (len(sides),), generator=generator).tolist()
    moved = F.pad(images, (1, 1) * len(sides), mode="replicate")
    for axis, (first, side) in enumerate(zip(corner, sides, strict=True), start=2):
        moved = moved.narrow(axis, first, side)
    return moved


class Classifier(Extractor):
    """A small CNN trained here on the run's own training images; its features are the layer before the classes.

    It sees 128,000 images in batches drawn with replacement (AdamW, one cycle, label smoothing), which takes seconds at
    8 x 8 and minutes at 64 x 64. Each batch is moved by up to a pixel, without which the features of training images
    lie closer together than those of new ones and spoil the floor. The same seed gives the same bits on the same
    machine's CPU; the global generators are left as they were.

    `accuracy` is measured on the held-out images: a classifier that cannot tell the classes apart measures little. Its
    precision is blind to images that look like none of the classes, which it puts among them all the same (pure
    noise scored 0.06 to 0.7); the Frechet distance, KID and recall are not.

    Raises:
        ConfigError: there are no labels, or only one class.
    """

    def __init__(self, real: RealImages, seed: int) -> None:
        if real.train_labels is None or real.held_out_labels is None or not real.has_labels:
            raise ConfigError(f"evaluate.extractor = 'classifier' needs labels of at least two classes; {_ELSE}")
        classes = int(real.train_labels.max()) + 1
        # The layers draw their first weights from the global generator. Only the CPU's is seeded and put back:
        # torch.manual_seed would also change every accelerator's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.body = _body(*real.train.shape[1:])
            self.head = nn.Linear(FEATURES, classes)
        self.body.to(real.train.device)
        self.head.to(real.train.device)
        self._fit(real.train, real.train_labels, torch.Generator().manual_seed(seed))
        self.accuracy = self._accuracy(real.held_out, real.held_out_labels)
        self.name = f"classifier ({FEATURES} features, seed {seed}, held-out accuracy {self.accuracy:.3f})"

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def _fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        optimizer = torch.optim.AdamW([*self.body.parameters(), *self.head.parameters()], LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS)
        for _ in tqdm(range(STEPS), desc="classifier for the features", leave=False, disable=None):
            i = torch.randint(len(images), (BATCH,), generator=generator).to(images.device)
            logits = self.head(self.body(_shifted(images[i], generator)))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[i], label_smoothing=SMOOTHING).backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        guesses = torch.cat([self.head(self.body(batch)).argmax(1) for batch in images.split(BATCH)])
        return (guesses == labels).double().mean().item()


CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class RandomConv(Extractor):
    """Four convolutions of width 3 with fixed random weights and ReLU; mean and deviation of each of their 8 channels.

    For data without labels. It knows nothing of what the images show: it sees sharpness, contrast, noise and local
    texture, so its distances are only relative, between runs on the same data and against the floor.
    """

    def __init__(self, real: RealImages, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        channels, dims = [real.train.shape[1], 8, 8, 8, 8], real.train.ndim - 2
        shapes = [(c_out, c_in, *[3] * dims) for c_in, c_out in pairwise(channels)]
        weights = [torch.randn(s, generator=generator) * math.sqrt(2 / math.prod(s[1:])) for s in shapes]
        self.weights = [w.to(real.train.device) for w in weights]
        self.name = f"random_conv ({FEATURES} features, seed {seed})"

    def forward(self, images: Tensor) -> Tensor:
        x, features = images, []
        sides, convolve = tuple(range(2, images.ndim)), CONVOLUTIONS[images.ndim - 2]
        for weight, stride in zip(self.weights, (1, 2, 2, 2), strict=True):
            x = F.relu(convolve(x, weight, stride=stride, padding=1))
            features += [x.mean(sides), x.std(sides, correction=0)]
        return torch.cat(features, 1)


def _inception() -> nn.Module:
    """torch-fidelity's Inception with the weights that torch.hub's folder holds."""
    module = fidelity().feature_extractor_inceptionv3
    url = module.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        raise ConfigError(f"evaluate.extractor = 'inception' needs its weights: save {url} as {path}, or {_ELSE}")
    # torch-fidelity unpickles what it is given, which may run code: only these very bytes may reach it.
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != INCEPTION_SHA256:
        raise CheckpointError(f"{path} does not match its SHA-256 and was not loaded; save {url} there, or {_ELSE}")
    return module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(weights)
    )


class Inception(Extractor):
    """torch-fidelity's `inception-v3-compat`, 2048 features: the network of published FIDs, for 1 or 3 channels.

    Its weights (96 MB) are never fetched unasked; a published FID also needs 50,000 images and the same reference set.

    Raises:
        ConfigError: the weights are not where torch.hub looks for them, or the images have other channels.
        CheckpointError: the weights file is damaged, or another one.
    """

    def __init__(self, real: RealImages, seed: int) -> None:
        channels = real.train.shape[1]
        if channels not in (1, 3):
            raise ConfigError(f"evaluate.extractor = 'inception' needs 1 or 3 channels, not {channels}; {_ELSE}")
        if real.train.ndim != 4:
            raise ConfigError(
                f"evaluate.extractor = 'inception' needs images, not {real.train.ndim - 2}-D data; {_ELSE}"
            )
        self.net = _inception().to(real.train.device)
        self.name = f"inception-v3-compat (2048 features, torch-fidelity {fidelity().__version__})"

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.net(pixels.expand(-1, 3, -1, -1))[0]


EXTRACTORS: Table[Callable[[RealImages, int], Extractor]] = Table(
    "extractor", {"classifier": Classifier, "random_conv": RandomConv, "inception": Inception}
)


def choose(config: EvaluateConfig, has_labels: bool) -> str:
    """The key of `EXTRACTORS` that a config means: `auto` is the classifier where there are classes to learn."""
    if config.extractor != "auto":
        return config.extractor
    return "classifier" if has_labels else "random_conv"


def build(config: EvaluateConfig, real: RealImages) -> Extractor:
    """Make the extractor of a config from the run's images.

    Raises:
        ConfigError: these images cannot have it, or something it needs is not installed.
        CheckpointError: its weights file is damaged, or another one.
    """
    return EXTRACTORS[choose(config, real.has_labels)](real, config.seed)
