"""The training loop: its length, its rates, and what follows when something goes wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from diffunet.spec.base import Count, Pair, Spec, Strings, Whole, contradictions


def _policy(value: object) -> object:
    return {"policy": value} if isinstance(value, str) else value


class SpikeConfig(Spec):
    """What follows a loss above `factor` times the median of the last `window` ones.

    `warn` notes it, `skip` leaves the step out, `rewind` goes back to the last checkpoint and on with later data.
    """

    policy: Literal["off", "warn", "skip", "rewind"] = "warn"
    factor: float = Field(10.0, gt=1, le=1e6)
    window: Annotated[int, Field(ge=4, le=10_000)] = 100
    rewinds: Count = Field(3, description="rewinds after which the run stops")


class TrainConfig(Spec):
    """The loop. `batch_size` is the images of one optimizer step over all ranks and micro-steps."""

    steps: Count = 10_000
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 64
    accumulation: Annotated[int, Field(ge=1, le=2**20)] = Field(1, description="micro-steps of one optimizer step")
    learning_rate: float = Field(2e-4, gt=0, le=10)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Whole = 100
    weight_decay: float = Field(0.0, ge=0, lt=1)
    betas: Pair = (0.9, 0.999)
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: Whole = 0
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="CPU threads; kept on resume")
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    compile: bool = False
    deterministic: bool = Field(True, description="on a GPU: only operations that give the same bits each time")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="fsdp: every rank holds a part of the network only")
    checkpoint_every: Count = 1000
    keep_checkpoints: Annotated[int, Field(ge=2, le=1_000_000)] = 2
    preview_every: Count = 1000
    held_out_every: Count = 1000
    held_out_images: Count = 256
    nonfinite_limit: Count = Field(20, description="skipped steps in a row after which the run stops")
    spike: Annotated[SpikeConfig, BeforeValidator(_policy)] = Field(
        SpikeConfig(), description="what follows a sudden large loss: a policy, or a table"
    )
    noise_scale: bool = Field(False, description="log the gradient noise scale; needs accumulation of 2 or more")
    scaler_floor: float = Field(2.0**-14, gt=0, description="fp16: a loss scale below this stops the run")
    on_full_disk: Literal["stop", "continue"] = Field("stop", description="what follows a checkpoint that does not fit")
    rank_timeout: float = Field(
        600.0, gt=0, le=1e6, description="seconds of silence after which another process counts as dead"
    )
    worker_timeout: float = Field(600.0, gt=0, le=1e6, description="seconds after which a data worker counts as stuck")
    report: bool = Field(True, description="keep report.html in the run folder up to date")
    trackers: Strings = Field((), description="accelerate trackers: tensorboard, wandb, trackio, ...")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        bad = []
        if self.batch_size % self.accumulation:
            bad.append(f"batch_size = {self.batch_size} is not divisible by accumulation = {self.accumulation}")
        bad += [f"betas must lie in [0, 1), not {b}" for b in self.betas if not 0 <= b < 1]
        if self.noise_scale and self.accumulation < 2:
            bad.append("noise_scale compares a micro-step with the whole step: set accumulation to 2 or more")
        if self.parallel == "fsdp":
            given = {"compile": self.compile, "noise_scale": self.noise_scale, "fp16": self.precision == "fp16"}
            bad += [
                f"{key} is not for parallel = 'fsdp'; use 'ddp', or leave it out" for key, on in given.items() if on
            ]
        contradictions(bad)
        return self
