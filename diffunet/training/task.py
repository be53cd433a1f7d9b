"""What a kind of run adds to the loop: its check of the data, its items, loss, held-out score and preview."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffunet.data import Split
from diffunet.spec import RunConfig
from diffunet.training.ranks import Alone

M = TypeVar("M", bound=nn.Module)
Gather = Callable[[Tensor], Tensor]  # the tensors (1, ...) of all ranks as one (world, ...)


class Task(ABC, Generic[M]):
    """One kind of run, with its data; M is what stands around its network (a Denoiser, a Segmenter).

    Args:
        config: the resolved run.
        split: its data.

    Raises:
        DataError: the data does not fit the model.
    """

    next_command: ClassVar[str]  # what one does with such a run once it is trained

    def __init__(self, config: RunConfig, split: Split[Any]) -> None:
        self.config, self.split = config, split
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Hold the data against the model.

        Raises:
            DataError: they do not fit.
        """

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for people before training begins, one line each."""
        return ()

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values that the weights file remembers beside its description."""
        return {}

    @abstractmethod
    def stream(self, network: nn.Module) -> Dataset[dict[str, Any]]:
        """The endless training data of this network: position -> item, the same item at each call."""

    @abstractmethod
    def model(self, network: nn.Module) -> M:
        """What `loss`, `held_out`, `preview` and the weights file take: the network with all that it needs."""

    @abstractmethod
    def loss(self, model: M, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch of items of the stream, a scalar."""

    def after_step(self, model: M, kept: bool, gather: Gather) -> None:
        """Called on every rank after each step; kept is False where its gradient was not finite."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must keep for the task, beside the network's."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    @abstractmethod
    def held_out(self, device: torch.device, ranks: Alone) -> Callable[[M], dict[str, Any]]:
        """What is measured of a model from time to time: JSON values that become part of the step's record.

        All processes call it, and may share the work.

        `held_out` (where images are held out) and `seen` (as many training images) are objects with at least `loss`;
        `memory` is in bytes. The model comes back in the mode that it was in, and no global generator is touched.
        """

    @abstractmethod
    def preview(self, model: M, path: Path, stopped: Callable[[], bool], ranks: Alone) -> dict[str, Any]:
        """Draw what the model does to a PNG, which the main process writes; gives JSON values for the step's record.

        They are {} where nothing was drawn (`stopped` said that a signal came, or there is no picture).
        """
