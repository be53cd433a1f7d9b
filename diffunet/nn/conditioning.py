"""What the network is told beside the image: time, class and a continuous vector, as one vector (B, E)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffunet.nn.embeddings import TIMES, MPFourier
from diffunet.nn.magnitude import MPConv, mp_sum
from diffunet.spec import ClassBalanced, ClassLinear, ClassTable, UNetConfig
from diffunet.table import Table


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels (B,) as rows (B, N) of unit mean square, zeros for the null class behind the last."""
    return F.one_hot(labels, classes + 1)[:, :classes].to(dtype) * math.sqrt(classes)


class Rows(nn.Embedding):
    """A row for each class, and one more for no class."""

    def __init__(self, config: ClassTable, classes: int, null: bool, features: int, embed: int) -> None:
        super().__init__(classes + null, embed)

    def join(self, embedding: Tensor, told: Tensor) -> Tensor:
        """The sum."""
        return embedding + told


class OneHot(nn.Module):
    """W onehot sqrt(N) + b, added to the features of the time; no class is a vector of zeros (EDM, 2206.00364)."""

    def __init__(self, config: ClassLinear, classes: int, null: bool, features: int, embed: int) -> None:
        super().__init__()
        self.classes, self.linear = classes, nn.Linear(classes, features)

    def forward(self, labels: Tensor) -> Tensor:
        """Features (B, features) of labels (B,)."""
        return self.linear(one_hot(labels, self.classes, self.linear.weight.dtype))


class BalancedClass(nn.Module):
    """A normalised linear map of onehot sqrt(N), in a balanced sum with the time's (EDM2, 2312.02696)."""

    def __init__(self, config: ClassBalanced, classes: int, null: bool, features: int, embed: int) -> None:
        super().__init__()
        self.classes, self.balance, self.linear = classes, config.balance, MPConv(0, classes, embed, 0)

    def forward(self, labels: Tensor) -> Tensor:
        """Embed labels (B,) as (B, E)."""
        return self.linear(one_hot(labels, self.classes, self.linear.weight.dtype))

    def join(self, embedding: Tensor, told: Tensor) -> Tensor:
        """The balanced sum."""
        return mp_sum(embedding, told, self.balance)


CLASSES: Table[type[nn.Module]] = Table("class embedding", {"table": Rows, "linear": OneHot, "balanced": BalancedClass})


class Conditioning(nn.Module):
    """Time, class and vector: what every `Timed` part receives.

    `null_label` is the label that means 'no class', one behind the last class.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.time = TIMES.build(config.time, config.base_channels, config.embed_channels)
        self.out_channels: int = self.time.out_channels
        self.num_classes, self.before_mlp = config.num_classes, config.class_embedding.before_mlp
        self.null_label = config.num_classes if config.null_class else None
        features = getattr(self.time, "channels", 0)
        self.classes = (
            CLASSES.build(config.class_embedding, config.num_classes, config.null_class, features, self.out_channels)
            if config.num_classes
            else None
        )
        self.vector = nn.Linear(config.vector_channels, features, bias=False) if config.vector_channels else None

    def forward(self, t: Tensor, class_labels: Tensor | None, vector: Tensor | None = None) -> Tensor:
        """Embed t (B,), labels (B,) of integers and vector (B, V) as (B, E).

        No labels means the null class; no vector means zeros.

        Raises:
            ValueError: labels or a vector for a network without, or no labels for one with classes and no null class.
        """
        told = None
        if vector is not None and self.vector is None:
            raise ValueError("vector was given but the network takes none (vector_channels is 0)")
        if self.vector is not None:
            weight = self.vector.weight
            vector = weight.new_zeros(t.shape[0], weight.shape[1]) if vector is None else vector.to(weight.dtype)
            told = self.vector(vector)
        if self.classes is None:
            if class_labels is not None:
                raise ValueError("class_labels were given but the network has no classes (num_classes is unset)")
            return self.time(t, told)
        named = self.classes(self._labels(t, class_labels))
        if self.before_mlp:
            return self.time(t, named if told is None else named + told)
        # zeros in place of a time have the type of t
        return self.classes.join(self.time(t, told).to(named.dtype), named)

    def _labels(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        if class_labels is not None:
            return class_labels
        if self.null_label is None:
            raise ValueError("class_labels are needed: the network has classes and no null class")
        return torch.full_like(t, self.null_label, dtype=torch.long)


class Uncertainty(nn.Module):
    """u(t), the learned log variance of the loss at a time (EDM2, 2312.02696, eq. 16)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fourier, self.linear = MPFourier(channels), MPConv(0, channels, 1, 0)

    def forward(self, t: Tensor) -> Tensor:
        """u (B,) at t (B,)."""
        return self.linear(self.fourier(t).to(self.linear.weight.dtype))[:, 0]
