"""One optimizer step: forward, backward, judgement, update; the same verdict on every rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffunet.spec import RunConfig, TrainConfig
from diffunet.training.averages import Averages
from diffunet.training.guard import Guard, Verdict
from diffunet.training.indexstream import indices_at, torch_seed
from diffunet.training.noisescale import NoiseScale
from diffunet.training.parallel import Replicated, whole
from diffunet.training.ranks import Alone
from diffunet.training.state import Counters
from diffunet.training.task import Task


def learning_rate(config: RunConfig, update: int) -> float:
    """Rate of update number `update` (from 0): a linear warm-up, then constant or a cosine to zero at `train.steps`."""
    train = config.train
    rate = train.learning_rate
    if update < train.warmup_steps:
        return rate * (update + 1) / train.warmup_steps
    if train.lr_schedule == "constant":
        return rate
    progress = (update - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return rate * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def optimizer_of(train: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.AdamW:
    """AdamW as a run has it."""
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        record: its line of metrics.
        verdict: what the guard said.
        stop: the exit code that a signal asks for, on any rank; 0 for none.
        indices: which training images it saw, on all ranks together; empty where nothing was odd.
    """

    record: dict[str, Any]
    verdict: Verdict
    stop: int
    indices: list[int]


class Stepper:
    """Changes the weights, the moments and the averages, one step at a call, and counts.

    Args:
        config: the resolved run.
        network: what learns, on its device, laid out over the ranks.
        optimizer: its AdamW, without a wrapper.
        averages: follow the network.
        task: gives the loss.
        accelerator: made with the run's precision.
        ranks: the processes.
        layout: how they share the network.
        counters: where the run stands; counted here.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Averages,
        task: Task[Any],
        accelerator: Accelerator,
        ranks: Alone,
        layout: Replicated,
        counters: Counters,
    ) -> None:
        self.config, self.network, self.plain_optimizer, self.averages = config, network, optimizer, averages
        self.task, self.accelerator, self.ranks, self.layout, self.counters = task, accelerator, ranks, layout, counters
        self.parallel, self.optimizer = layout.prepare(network, optimizer)
        self.model = task.model(self.parallel)
        train = config.train
        self.guard = Guard(train.spike)
        small = train.batch_size // (train.accumulation * ranks.count)
        self.noise_scale = NoiseScale(small, train.batch_size) if train.noise_scale else None

    def __call__(self, batches: list[dict[str, Tensor]], code: int) -> Outcome:
        """Learn from the micro-batches of one step; `code` is the exit code that a signal asked this rank for."""
        rate = learning_rate(self.config, self.counters.updates)
        for group in self.plain_optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total, small = self._backward(batches)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.plain_optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip_norm))
        # one exchange carries the loss and the wish to stop, so that all ranks stop at the same step
        shared = torch.stack([total, torch.tensor(float(code), device=total.device)])
        if self.ranks.count > 1:
            shared = torch.stack([*self.accelerator.gather(shared[None]).T])
            shared = torch.stack([shared[0].mean(), shared[1].max()])
        loss, stop = shared.tolist()
        verdict = self.guard.judge(loss, float(norm))
        kept = verdict == "kept" or (verdict == "spike" and self.config.train.spike.policy == "warn")
        self._update(kept)
        self.task.after_step(self.model, kept, self.accelerator.gather)
        finite = verdict != "nonfinite"
        record = {"step": self.counters.step + 1, "loss": loss if finite else None, "lr": rate}
        record |= {"grad_norm": float(norm) if finite else None} | ({} if kept else {"skipped": True})
        if small is not None and self.noise_scale is not None and verdict == "kept":
            record["noise_scale"] = self.noise_scale.observe(float(self.ranks.mean(small)), float(norm) ** 2)
        indices = self.indices(self.counters.place)
        record["samples"] = f"{zlib.crc32(indices.astype('<i8').tobytes()):08x}"  # two runs saw the same ones
        self._count(kept)
        return Outcome(record, verdict, int(stop), [] if verdict == "kept" else indices.tolist())

    def _backward(self, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
        """Gradients of the mean loss; that loss on this rank, and the squared norm that the noise scale wants."""
        total, small = torch.zeros((), device=self.accelerator.device), None
        for micro, batch in enumerate(batches):
            with self.layout.micro_step(self.parallel, micro == len(batches) - 1):
                loss = self._loss(batch, micro) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
            if micro == 0 and self.noise_scale is not None:
                small = self._square() * len(batches) ** 2
        return total, small

    def _loss(self, batch: dict[str, Tensor], micro: int) -> Tensor:
        seed, rank = self.config.train.seed, self.accelerator.process_index
        torch.manual_seed(torch_seed(seed, "network", self.counters.place, micro, rank))
        return self.task.loss(self.model, batch)

    def _square(self) -> Tensor:
        """The squared norm of this rank's gradients so far, without the scaler's factor."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        norms = torch._foreach_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        return torch.stack(list(norms)).square().sum() / scale**2

    def _update(self, kept: bool) -> None:
        if kept:
            self.optimizer.step()
            self.averages.update(self.network, self.counters.updates + 1)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # gradients that overflowed lower its factor

    def _count(self, kept: bool) -> None:
        counters = self.counters
        counters.step += 1
        counters.skipped += not kept
        counters.skipped_in_a_row = 0 if kept else counters.skipped_in_a_row + 1

    def indices(self, place: int) -> np.ndarray:
        """Which training images the step at a place of the stream sees, on all ranks together."""
        size, n = self.config.train.batch_size, len(self.task.split.train)
        return indices_at(self.config.train.seed, place * size, size, n)

    def numbers(self) -> dict[str, Any]:
        """JSON values for a checkpoint, beside the counters."""
        scaler = self.accelerator.scaler
        return {
            "scaler": None if scaler is None else scaler.state_dict(),
            "guard": self.guard.state(),
            "noise_scale": self.noise_scale.state() if self.noise_scale is not None else {},
        }

    def restore(self, numbers: dict[str, Any]) -> None:
        """Go on from what `numbers` gave."""
        scaler = self.accelerator.scaler
        if scaler is not None and numbers["scaler"] is not None:
            scaler.load_state_dict(numbers["scaler"])
        self.guard.restore(numbers["guard"])
        if self.noise_scale is not None:
            self.noise_scale.restore(numbers["noise_scale"])
