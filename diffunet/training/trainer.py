"""The training loop: one process or many through accelerate, stopped at any step and gone on with bit for bit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffunet import weights
from diffunet.errors import ConfigError, Interrupted, NumericError
from diffunet.nn import NETWORKS
from diffunet.spec import RunConfig
from diffunet.training import checkpoint as checkpoints
from diffunet.training import state
from diffunet.training.ema import EMA
from diffunet.training.indexstream import torch_seed
from diffunet.training.loader import Loader
from diffunet.training.log import Log
from diffunet.training.runfolder import RunFolder
from diffunet.training.signals import StopSignals
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


class Trainer:
    """Everything between the first step and the last. Made on every rank; only the main one writes.

    Args:
        config: the resolved run.
        folder: where it lives.
        task: what it learns, with its data.
        accelerator: made with the run's precision.
        counters: where it stands.
        resume: the checkpoint that `counters` came from.
        say: prints a line on the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        task: Task[Any],
        accelerator: Accelerator,
        counters: state.Counters,
        resume: checkpoints.Checkpoint | None,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.accelerator, self.counters, self.say = config, folder, accelerator, counters, say
        self.task = task
        torch.manual_seed(torch_seed(config.train.seed, "init"))
        self.network = NETWORKS.build(config.model).to(accelerator.device)
        self.ema = EMA(config.ema, self.network)
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.train.learning_rate,
            betas=config.train.betas,
            weight_decay=config.train.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        if resume is not None:
            state.from_checkpoint(resume, self.network, self.ema, optimizer, accelerator.scaler)
            task.restore(state.task_of(resume, task.state()))
        settings = checkpoints.canonical(config.model_dump(mode="json"))
        self.facts = {
            "config": hashlib.sha256(settings.encode()).hexdigest(),
            "data": task.split.train.fingerprint,
            "torch": torch.__version__,
            "world": counters.world,
        }
        if config.train.compile:
            self.network.compile(fullgraph=True)
        self.plain_optimizer = optimizer
        self.parallel, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.model, self.ema_model = task.model(self.parallel), task.model(self.ema.network)
        self.loader = Loader(config.train, task.stream(self.network), accelerator)
        watches = accelerator.is_main_process and task.split.held_out is not None
        self.held_out = task.held_out(accelerator.device) if watches else None
        self.saved_step = resume.step if resume else None

    def run(self, signals: StopSignals, log: Log) -> None:
        """Train to the last step.

        Raises:
            Interrupted: a signal came; the state is saved.
            NumericError: too many steps in a row had no finite gradient.
        """
        config, counters = self.config.train, self.counters
        self.parallel.train()
        steps = self.loader.steps(counters.step, config.steps)
        while counters.step < config.steps:
            begun = time.perf_counter()
            batches = next(steps)
            waited = time.perf_counter() - begun
            record, stop, indices = self._step(batches, signals.code)
            counters.step += 1
            record |= {"seconds": round(time.perf_counter() - begun, 4), "data_seconds": round(waited, 4)}
            if self.held_out and self._due(config.held_out_every):
                record["held_out"] = self.held_out(self.ema_model)
            if self.accelerator.is_main_process:
                log.write(record)
            self._stop_if_diverging(indices)
            if self._due(config.preview_every) and not stop:
                self.preview(lambda: signals.code != 0)
            if stop or self._due(config.checkpoint_every):
                self.save(log)
            if stop:
                done = f"stopped by a signal; step {counters.step} is saved"
                raise Interrupted(f"{done}; the same command again goes on from there", stop)

    def _due(self, every: int) -> bool:
        return self.counters.step % every == 0 or self.counters.step == self.config.train.steps

    def _step(self, batches: list[dict[str, Tensor]], code: int) -> tuple[dict[str, Any], int, list[int]]:
        """One optimizer step over its micro-batches: its record, the stop code of any rank, its sample numbers."""
        accelerator, config = self.accelerator, self.config.train
        rate = learning_rate(self.config, self.counters.updates)
        for group in self.plain_optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = torch.zeros((), device=accelerator.device)
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.parallel):
                loss = self._loss(batch, micro) / len(batches)
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        # one reduction carries the loss and the wish to stop, so that all ranks stop at the same step
        shared = torch.stack([total, torch.tensor(float(code), device=total.device)])
        if accelerator.num_processes > 1:
            shared = torch.stack([*accelerator.gather(shared[None]).T])
            shared = torch.stack([shared[0].mean(), shared[1].max()])
        loss_value, stop = shared.tolist()
        finite = bool(torch.isfinite(norm)) and math.isfinite(loss_value)
        self._update(finite)
        self.task.after_step(self.model, finite, accelerator.gather)
        record = {"step": self.counters.step + 1, "loss": loss_value, "lr": rate, "grad_norm": float(norm)}
        if not finite:
            record |= {"skipped": True, "loss": None, "grad_norm": None}
        indices = [int(i) for batch in batches for i in batch["index"]]
        return record, int(stop), indices

    def _loss(self, batch: dict[str, Tensor], micro: int) -> Tensor:
        counters, accelerator = self.counters, self.accelerator
        torch.manual_seed(
            torch_seed(self.config.train.seed, "network", counters.step, micro, accelerator.process_index)
        )
        return self.task.loss(self.model, batch)

    def _update(self, finite: bool) -> None:
        counters, scaler = self.counters, self.accelerator.scaler
        if finite or scaler is not None:  # the scaler itself leaves out a step whose gradients overflowed
            self.optimizer.step()
        if finite:
            counters.skipped_in_a_row = 0
            self.ema.update(self.network, counters.updates + 1)
        else:
            counters.skipped += 1
            counters.skipped_in_a_row += 1

    def _stop_if_diverging(self, indices: list[int]) -> None:
        row = self.counters.skipped_in_a_row
        if row >= self.config.train.nonfinite_limit:
            raise NumericError(
                f"loss or gradient was not finite in {row} steps in a row, last in step {self.counters.step} "
                f"(lr {learning_rate(self.config, self.counters.updates):.3g}, training images {indices[:8]}); "
                "the last checkpoint is good; lower train.learning_rate or use train.precision = 'bf16' or 'no'"
            )

    def save(self, log: Log) -> None:
        """Write a checkpoint and the sampling weights, then let go of old checkpoints."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.saved_step != self.counters.step:
                scaler = self.accelerator.scaler
                kept = self.task.state()
                files = state.to_files(self.network, self.ema, self.plain_optimizer, scaler, self.counters, kept)
                log.sync()
                checkpoints.write(self.folder.checkpoints, self.counters.step, files, self.facts)
            # also where the checkpoint is there already: a kill may have come between the two
            facts = {"step": self.counters.step, "weights": "ema", **self.task.facts}
            weights.save(self.ema_model, self.folder.weights, **facts)
            checkpoints.rotate(self.folder.checkpoints, self.config.train.keep_checkpoints)
            self.folder.write_status("running", self.counters.step)
        self.saved_step = self.counters.step
        self.accelerator.wait_for_everyone()

    def preview(self, stopped: Callable[[], bool]) -> None:
        """Draw what the averaged network makes of fixed seeds or held-out images (main process only)."""
        if self.accelerator.is_main_process:
            path = self.folder.samples / f"step-{self.counters.step:08d}.png"
            try:
                self.task.preview(self.ema_model, path, stopped)
            except NumericError as error:
                self.say(f"preview at step {self.counters.step} left out: {error}")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto becomes bf16 where the device computes in it, else no.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision = 'fp16' needs a GPU; use 'bf16' or 'no' here")
    if wanted != "auto":
        return wanted
    has = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    return "bf16" if has.get(device.type, lambda: False)() else "no"
