"""The first steps of a run, taken on the bench: its data, its network and its optimizer, but no folder and no ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffunet import data
from diffunet.analysis.weightless import weightless
from diffunet.nn import NETWORKS
from diffunet.spec import RunConfig
from diffunet.training.indexstream import collate, torch_seed
from diffunet.training.program import resolve_precision
from diffunet.training.stepper import optimizer_of
from diffunet.training.task import Task
from diffunet.training.tasks import TASKS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def undisturbed(config: RunConfig) -> Iterator[None]:
    """The run's number of threads inside; random state and threads afterwards as they were before."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.set_num_threads(config.train.threads or threads)
            yield
        finally:
            torch.set_num_threads(threads)


def in_precision(forward: Callable[..., Tensor], device: torch.device, precision: str) -> Callable[..., Tensor]:
    """A forward pass that computes in a precision and answers in float32, as accelerate makes it."""

    def call(*args: Any, **options: Any) -> Tensor:
        with torch.autocast(device.type, DTYPES[precision]):
            output = forward(*args, **options)
        return output.float()

    return call


class Bench:
    """What the parts of the preflight work with.

    Args:
        config: the resolved run.

    Raises:
        DataError: the data cannot be read, or does not fit the model.
        ConfigError: fp16 without a GPU.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")
        if torch.accelerator.is_available():
            self.device = torch.accelerator.current_accelerator() or self.device
        self.precision = resolve_precision(config.train.precision, self.device)
        self.split = data.load(config.data)
        self.task: Task[Any] = TASKS[config.run.task](config, self.split)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without memory, for whatever wants only its facts."""
        with weightless(self.config.model) as network:
            return network

    @cached_property
    def stream(self) -> Dataset[dict[str, Any]]:
        """The training data by position."""
        return self.task.stream(self.skeleton)

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass of a single process."""
        return self.config.train.batch_size // self.config.train.accumulation

    def batch(self, count: int, first: int = 0) -> dict[str, Tensor]:
        """The training samples from position `first`, on the device."""
        batch = collate([self.stream[position] for position in range(first, first + count)])
        return {k: v if k in ("index", "u") else v.to(self.device) for k, v in batch.items()}

    def learner(self) -> Learner:
        """The network as it begins, with its optimizer."""
        return Learner(self)


class Learner:
    """A copy of the run's network, and a step of training.

    Args:
        bench: says config, task, device and precision.
    """

    def __init__(self, bench: Bench) -> None:
        train, device = bench.config.train, bench.device
        self.task, self.seed, self.clip_norm = bench.task, train.seed, train.clip_norm
        torch.manual_seed(torch_seed(train.seed, "init"))
        self.network: nn.Module = NETWORKS.build(bench.config.model).to(device).train()
        if bench.precision in DTYPES:
            self.network.forward = in_precision(self.network.forward, device, bench.precision)
        self.model = bench.task.model(self.network)
        self.optimizer = optimizer_of(train, self.network.parameters(), device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=bench.precision == "fp16")

    def loss(self, batch: dict[str, Tensor], step: int = 0) -> Tensor:
        """The loss of a batch; dropout is that of `step`."""
        torch.manual_seed(torch_seed(self.seed, "network", step))
        loss: Tensor = self.task.loss(self.model, batch)
        # importance sampling would remember the losses of a run that is none
        self.task.after_step(self.model, False, lambda tensor: tensor)
        return loss

    def step(self, batches: list[dict[str, Tensor]], rate: float, step: int = 0) -> tuple[float, float]:
        """One update by the mean loss of micro-batches: that loss, and the norm of its gradient before it was cut."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = self.loss(batch, step) / len(batches)
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total, float(norm)


def timed_step(bench: Bench, learner: Learner, limit: float = 15.0) -> tuple[float, float]:
    """Seconds of one whole step of the run, and of drawing its data; the second step where the first was quick."""
    for step in range(2):
        begun = time.perf_counter()
        count = bench.micro_batch
        batches = [bench.batch(count, first=micro * count) for micro in range(bench.config.train.accumulation)]
        drawn = time.perf_counter() - begun
        learner.step(batches, bench.config.train.learning_rate, step)
        seconds = time.perf_counter() - begun
        if seconds > limit:
            break
    return seconds, drawn


def step_seconds(config: RunConfig) -> float:
    """What one step of a run takes on this machine.

    Raises:
        DataError, ConfigError: the run cannot begin.
    """
    with undisturbed(config):
        bench = Bench(config)
        return timed_step(bench, bench.learner())[0]
