"""Sampling, evaluation, and the whole of one config file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from diffunet.spec.base import Count, Spec, Whole, contradictions
from diffunet.spec.data import SIDES, DataConfig
from diffunet.spec.ema import EMAConfig
from diffunet.spec.guidance import GuidanceConfig
from diffunet.spec.network import NetworkConfig, UNetConfig
from diffunet.spec.objectives import ObjectiveConfig, clashes
from diffunet.spec.process import ProcessConfig
from diffunet.spec.samplers import ArcSampler, SamplerConfig
from diffunet.spec.schedules import SpacingName
from diffunet.spec.segmentation import SegmentConfig
from diffunet.spec.train import TrainConfig

TaskName = Literal["diffusion", "segment"]
# Sections that only one task has; they are not in the JSON of a run of another one.
SECTIONS: dict[str, tuple[str, ...]] = {
    "diffusion": ("process", "objective", "sample", "evaluate"),
    "segment": ("segment",),
}


class SampleConfig(Spec):
    """What `diffunet sample`, previews and `diffunet evaluate` do where no flag says otherwise."""

    sampler: SamplerConfig = ArcSampler()
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    spacing: SpacingName | None = None
    guidance: GuidanceConfig | None = Field(None, description="scale of classifier-free guidance, or a table")
    batch_size: Count = 64
    preview_images: Annotated[int, Field(ge=1, le=4096)] = 64
    preview_neighbours: Whole = Field(8192, description="training images among which previews seek copies; 0: none")

    @model_validator(mode="after")
    def _check(self) -> SampleConfig:
        contradictions([] if self.guidance is None else self.guidance.unlabelled())
        return self


class EvaluateConfig(Spec):
    """`diffunet evaluate`: on which features, how many images."""

    extractor: Literal["auto", "classifier", "random_conv", "inception"] = "auto"
    n: Annotated[int, Field(ge=2)] | None = Field(None, description="images on each side; all held-out ones if unset")
    seed: Whole = 0


class RunSection(Spec):
    """Name and kind of the run."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    task: TaskName = "diffusion"


class RunConfig(Spec):
    """One config file, resolved. The sections of other tasks are there with their defaults, but not in its JSON."""

    run: RunSection = RunSection()
    model: NetworkConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    segment: SegmentConfig = SegmentConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    ema: EMAConfig = EMAConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def foreign(self) -> tuple[str, ...]:
        """The sections that this run's task has no use for."""
        return tuple(name for task, names in SECTIONS.items() if task != self.run.task for name in names)

    @model_serializer(mode="wrap")
    def _own_sections(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if name not in self.foreign}

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        task = self.run.task
        bad = [
            f"{', '.join(given)}: [{name}] is not for run.task = '{task}'; leave it out"
            for name in self.foreign
            if name in self.model_fields_set and (given := _given(getattr(self, name), name)[:5])
        ]
        contradictions(bad + CHECKS[task](self))
        return self


def _given(section: BaseModel, name: str) -> list[str]:
    """The dotted keys that were written in a section, or its own name where it was left empty."""
    found: list[str] = []
    for key in type(section).model_fields:
        if key in section.model_fields_set and key != "kind":
            value, full = getattr(section, key), f"{name}.{key}"
            found += _given(value, full) if isinstance(value, BaseModel) else [full]
    return found or [name]


# what a network may have from elsewhere, and the trainer here would leave as it is
UNTRAINED = {
    "divide_by_time": "no schedule here tells the network sigma itself, only its logarithm; set it to false",
}


def _of_diffusion(config: RunConfig) -> list[str]:
    model = config.model
    if not isinstance(model, UNetConfig):
        return [f"run.task = 'diffusion' needs model.kind = 'unet', not '{model.kind}', which knows no time"]
    bad = []
    if config.objective.class_dropout > 0 and not model.null_class:
        bad.append("objective.class_dropout needs model.null_class = true")
    if config.sample.guidance is not None and not model.null_class:
        bad.append("sample.guidance needs model.null_class = true")
    if model.out_channels != model.in_channels:
        bad.append(f"model.out_channels = {model.out_channels} must equal in_channels = {model.in_channels}")
    if model.cond_channels:
        bad.append("model.cond_channels needs image conditions, which no data set here provides; train from Python")
    if model.vector_channels:
        bad.append("model.vector_channels needs a vector of each image, which no data set here provides; set it to 0")
    bad += [f"model.{key}: {why}" for key, why in UNTRAINED.items() if getattr(model, key)]
    micro_batch = config.train.batch_size // config.train.accumulation
    bad += clashes(config.objective, model, config.process, micro_batch)
    if model.time.kind == "none":
        bad.append("run.task = 'diffusion' needs a network that is told the time, not model.time = 'none'")
    if model.dims not in SIDES.get(config.data.name, (2,)):
        fitting = " or ".join(f"'{name}'" for name, sides in SIDES.items() if model.dims in sides)
        fitting += " or one of images" if model.dims == 2 else ""
        bad.append(f"model.dims = {model.dims} needs data.name = {fitting}, not '{config.data.name}'")
    if config.data.name == "pairs":
        bad.append("data.name = 'pairs' needs run.task = 'segment'")
    return bad


def _of_segmentation(config: RunConfig) -> list[str]:
    model, bad = config.model, []
    if config.data.name != "pairs":
        bad.append(f"run.task = 'segment' needs data.name = 'pairs', not '{config.data.name}'")
    if model.dims != 2:
        bad.append(f"model.dims = {model.dims}, but pairs of images and labels have 2")
    if model.time.kind != "none":
        bad.append(f"run.task = 'segment' needs model.time = 'none', not '{model.time.kind}': an image has no time")
    used = [key for key in ("num_classes", "cond_channels", "vector_channels") if getattr(model, key, None)]
    used += [key for key in ("self_conditioning", "learned_variance") if getattr(model, key, False)]
    bad += [f"model.{key} is not for run.task = 'segment'" for key in used]
    return bad


CHECKS: dict[str, Callable[[RunConfig], list[str]]] = {"diffusion": _of_diffusion, "segment": _of_segmentation}
