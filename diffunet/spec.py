"""What a run is, without torch: every section of a config, every default, every name that one may choose.

Each choice is a small frozen model with a `kind`; in a file one may write the kind alone (`schedule = "cosine"`) or a
table (`schedule = {kind = "cosine", T = 4000}`). A test holds the kinds equal to the keys of the table that builds them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """A frozen section: unknown keys, numbers in quotes, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _contradictions(messages: list[str]) -> None:
    """Raise all the contradictions of one section as one error."""
    if messages:
        raise PydanticCustomError("contradiction", "{text}", {"text": "; ".join(messages)})


ByName = BeforeValidator(_named)
Ints = Annotated[tuple[int, ...], Strict(False)]
Floats = Annotated[tuple[float, ...], Strict(False)]
Strings = Annotated[tuple[str, ...], Strict(False)]
Pair = Annotated[tuple[float, float], Strict(False)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Whole = Annotated[int, Field(ge=0, le=2**40)]

# --- the network -----------------------------------------------------------------------------------------------------


class SinusoidalTime(Spec):
    """Sinusoids of the time, then a two-layer MLP.

    `order` and `shift` decide which project's weights fit: sin_cos with shift 1 is DDPM's (10000^(-i/(half-1))), cos_sin
    with shift 0 is ADM's (10000^(-i/half)).
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    shift: Literal[0, 1] = 1
    width: int = Field(4, ge=1, le=64, description="embedding channels = width x base channels")


class ResidualBlock(Spec):
    """norm, SiLU, conv, condition, norm, SiLU, dropout, conv, plus the input."""

    kind: Literal["residual"] = "residual"
    condition: Literal["shift", "scale_shift"] = "shift"
    dropout: float = Field(0.0, ge=0, lt=1)
    groups: Count = 32
    eps: float = Field(1e-6, gt=0, lt=1)
    zero_init: bool = True


class SelfAttention(Spec):
    """Attention over all positions; give the number of heads or the channels of one head."""

    kind: Literal["self"] = "self"
    heads: Count | None = None
    head_channels: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> SelfAttention:
        both = self.heads is not None and self.head_channels is not None
        _contradictions(["give heads or head_channels, not both"] if both else [])
        return self

    def count(self, channels: int) -> int:
        """Number of heads for a width of `channels` (one head where neither option is given)."""
        return channels // self.head_channels if self.head_channels else (self.heads or 1)


class StridedConv(Spec):
    """3x3 convolution of stride 2; asymmetric pads right and bottom only (TensorFlow's SAME)."""

    kind: Literal["strided_conv"] = "strided_conv"
    pad: Literal["symmetric", "asymmetric"] = "symmetric"


class NearestConv(Spec):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    kind: Literal["nearest_conv"] = "nearest_conv"


class ConcatSkip(Spec):
    """The skip's channels stand behind the decoder's."""

    kind: Literal["concat"] = "concat"


TimeConfig = Annotated[SinusoidalTime, ByName]
BlockConfig = Annotated[ResidualBlock, ByName]
AttentionConfig = Annotated[SelfAttention, ByName]
DownConfig = Annotated[StridedConv, ByName]
UpConfig = Annotated[NearestConv, ByName]
SkipConfig = Annotated[ConcatSkip, ByName]


class UNetConfig(Spec):
    """The U-Net in the DDPM topology. Level 0 is full resolution; each next level halves every side."""

    kind: Literal["unet"] = "unet"
    dims: Literal[1, 2, 3] = 2
    in_channels: int = Field(3, ge=1, le=4096)
    out_channels: int = Field(3, ge=1, le=4096)
    cond_channels: int = Field(0, ge=0, le=4096, description="channels of an image condition, joined to the input")
    base_channels: int = Field(128, ge=1, le=16384)
    channel_multipliers: Ints = Field((1, 2, 2, 2), min_length=1, max_length=12)
    channels: Ints | None = Field(None, description="width of each level, in place of base x multipliers")
    blocks_per_level: int | Ints = 2
    attention_levels: Ints = (1,)
    attention_in_mid: bool = True
    num_classes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    null_class: bool = Field(False, description="one more row in the class table: 'no class'")
    checkpoint_levels: Ints = Field((), description="levels whose activations are recomputed in the backward pass")
    time: TimeConfig = SinusoidalTime()
    block: BlockConfig = ResidualBlock()
    attention: AttentionConfig = SelfAttention()
    down: DownConfig = StridedConv()
    up: UpConfig = NearestConv()
    skip: SkipConfig = ConcatSkip()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return self.channels or tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each level on the way down (one more on the way up)."""
        blocks = self.blocks_per_level
        return (blocks,) * len(self.widths) if isinstance(blocks, int) else blocks

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        widths, levels = self.widths, len(self.widths)
        bad = [f"channels and multipliers must be at least 1, not {w}" for w in widths if w < 1]
        if len(self.depths) != levels:
            bad.append(f"blocks_per_level names {len(self.depths)} levels but there are {levels}")
        if any(not 1 <= d <= 64 for d in self.depths):
            bad.append(f"blocks_per_level must be 1 to 64, not {self.blocks_per_level}")
        for name in ("attention_levels", "checkpoint_levels"):
            bad += [
                f"{name} holds {i} but the levels are 0 to {levels - 1}"
                for i in getattr(self, name)
                if not 0 <= i < levels
            ]
        groups = self.block.groups
        for width in sorted({w for w in (*widths, self.base_channels) if w >= 1 and w % groups}):
            bad.append(f"a width of {width} channels is not divisible by block.groups = {groups}")
        bad += self._attention_contradictions()
        if self.null_class and self.num_classes is None:
            bad.append("null_class needs num_classes")
        _contradictions(bad)
        return self

    def _attention_contradictions(self) -> list[str]:
        levels = {i for i in self.attention_levels if 0 <= i < len(self.widths)}
        if self.attention_in_mid:
            levels.add(len(self.widths) - 1)
        bad = []
        for width in sorted({self.widths[i] for i in levels}):
            per, heads = self.attention.head_channels, self.attention.heads
            if per and width % per:
                bad.append(f"a width of {width} channels is not divisible by attention.head_channels = {per}")
            if heads and width % heads:
                bad.append(f"a width of {width} channels is not divisible by attention.heads = {heads}")
        return bad


class ClassicUNetConfig(Spec):
    """The segmentation U-Net of 2015 (1505.04597): one skip per level, ReLU, max-pool, no time.

    `valid` convolutions lose a border of one at each, as in the paper (572 in, 388 out); `same` keep the size.
    """

    kind: Literal["classic"] = "classic"
    dims: Literal[1, 2, 3] = 2
    in_channels: int = Field(1, ge=1, le=4096)
    out_channels: int = Field(2, ge=1, le=4096)
    base_channels: int = Field(64, ge=1, le=16384)
    levels: Annotated[int, Field(ge=1, le=12)] = 5
    padding: Literal["valid", "same"] = "valid"


NetworkConfig = Annotated[UNetConfig | ClassicUNetConfig, Field(discriminator="kind")]

# --- the process -----------------------------------------------------------------------------------------------------

Beta = Annotated[float, Field(gt=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]


class LinearSchedule(Spec):
    """beta rises linearly (DDPM, 2006.11239)."""

    kind: Literal["linear"] = "linear"
    T: Steps = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02


class ScaledLinearSchedule(Spec):
    """sqrt(beta) rises linearly (latent diffusion)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    T: Steps = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012


class CosineSchedule(Spec):
    """alpha^2 follows a squared cosine (improved DDPM, 2102.09672)."""

    kind: Literal["cosine"] = "cosine"
    T: Steps = 1000
    s: float = Field(0.008, ge=0, lt=1)
    beta_max: float = Field(0.999, gt=0, lt=1)


class SigmoidSchedule(Spec):
    """alpha^2 follows a sigmoid (2212.11972)."""

    kind: Literal["sigmoid"] = "sigmoid"
    T: Steps = 1000
    start: float = -3.0
    end: float = 3.0
    tau: float = Field(1.0, gt=0)


class KarrasSchedule(Spec):
    """alpha = 1; sigma^(1/rho) is linear in t (EDM, 2206.00364)."""

    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)


class FlowSchedule(Spec):
    """alpha = 1 - t, sigma = t: straight paths (2209.03003)."""

    kind: Literal["flow"] = "flow"
    time_scale: float = Field(1000.0, gt=0, description="the network sees t x time_scale")


ScheduleConfig = Annotated[
    Annotated[
        LinearSchedule | ScaledLinearSchedule | CosineSchedule | SigmoidSchedule | KarrasSchedule | FlowSchedule,
        Field(discriminator="kind"),
    ],
    ByName,
]
PredictionName = Literal["eps", "x0", "v", "flow", "edm"]
SpacingName = Literal["leading", "trailing", "linspace", "uniform", "karras"]


class ProcessConfig(Spec):
    """How noise is added and what the network guesses."""

    schedule: ScheduleConfig = LinearSchedule()
    prediction: PredictionName = "eps"
    clip: Pair | None = Field((-1.0, 1.0), description="static threshold of the clean estimate; false for none")

    @model_validator(mode="before")
    @classmethod
    def _no_clip(cls, data: Any) -> Any:
        # TOML has no null: `clip = false` says "no threshold".
        return data | {"clip": None} if isinstance(data, dict) and data.get("clip") is False else data

    @model_validator(mode="after")
    def _check(self) -> ProcessConfig:
        bad = []
        if self.clip and self.clip[0] >= self.clip[1]:
            bad.append(f"clip = {list(self.clip)} must be [low, high]")
        if self.prediction == "edm" and self.schedule.kind != "karras":
            bad.append(f"prediction 'edm' needs schedule 'karras', not '{self.schedule.kind}'")
        if self.prediction == "flow" and self.schedule.kind != "flow":
            bad.append(f"prediction 'flow' needs schedule 'flow', not '{self.schedule.kind}'")
        if self.prediction == "v" and self.schedule.kind in ("karras", "flow"):
            bad.append(f"prediction 'v' needs alpha^2 + sigma^2 = 1, which schedule '{self.schedule.kind}' has not")
        if self.prediction in ("eps", "x0") and self.schedule.kind == "karras":
            bad.append(f"prediction '{self.prediction}' feeds the network sigmas up to 80; use 'edm' with 'karras'")
        _contradictions(bad)
        return self


class SimpleWeight(Spec):
    """Every time weighs the same (DDPM's L_simple)."""

    kind: Literal["simple"] = "simple"


class MinSNRWeight(Spec):
    """min(SNR, gamma) in x0 terms (2303.09556)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)


WeightConfig = Annotated[
    Annotated[SimpleWeight | MinSNRWeight, Field(discriminator="kind")],
    ByName,
]


class ObjectiveConfig(Spec):
    """What training minimises."""

    weight: WeightConfig = SimpleWeight()
    class_dropout: float = Field(0.0, ge=0, le=1, description="chance that a sample's class becomes the null class")


class DDPMSampler(Spec):
    """Ancestral sampling with the smaller or the larger of the two fixed variances (2006.11239)."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"


class DDIMSampler(Spec):
    """eta = 0 is deterministic, eta = 1 is DDPM with fixed-small variance (2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)


class DiffusersSampler(Spec):
    """Any diffusers scheduler by its class name."""

    kind: Literal["diffusers"] = "diffusers"
    scheduler: str = "DDIMScheduler"


SamplerConfig = Annotated[
    Annotated[DDPMSampler | DDIMSampler | DiffusersSampler, Field(discriminator="kind")],
    ByName,
]

# --- data, training, sampling ----------------------------------------------------------------------------------------


class DataInfo(Spec):
    """What the weights file remembers of the data: how to shape, scale and label what the network makes."""

    shape: Ints = Field(description="channels, then sides")
    classes: Strings | None = None
    class_counts: Ints | None = Field(None, description="images of each class in the training split")


class DataConfig(Spec):
    """Where the images are and how they become arrays in [-1, 1]."""

    name: Literal["digits", "folder", "array", "fashion_mnist", "mnist", "cifar10"] = "digits"
    path: str | None = None
    size: int | Ints | None = Field(None, description="side, or (height, width); images are resized, then cropped")
    channels: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="1 greyscale, 3 RGB; arrays any")
    background: Ints = Field((255, 255, 255), description="colour that transparent pixels are laid on")
    value_range: Pair | None = Field(None, description="values that become -1 and 1; needed for float data")
    flip: bool = Field(False, description="mirror half of the training images left to right")
    held_out: float = Field(0.1, ge=0, lt=1, description="share never trained on, where the data has no test split")
    bad_files: Literal["skip", "fail"] = "skip"
    bad_files_cap: float = Field(0.01, ge=0, le=1, description="share of unreadable files above which the run stops")
    max_pixels: Count = Field(64_000_000, description="an image with more is refused before it is decoded")
    download: bool = Field(False, description="let torchvision fetch a data set that is not at path")
    seed: Whole = Field(0, description="seed of the split")

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        sizes = (self.size,) if isinstance(self.size, int) else self.size or ()
        bad = [f"size must be 1 to 65536, not {s}" for s in sizes if not 1 <= s <= 65536]
        if isinstance(self.size, tuple) and len(self.size) != 2:
            bad.append(f"size must be a side or [height, width], not {list(self.size)}")
        if self.name != "digits" and self.path is None:
            bad.append(f"data '{self.name}' needs data.path")
        if len(self.background) != 3 or any(not 0 <= c <= 255 for c in self.background):
            bad.append(f"background must be three numbers 0 to 255, not {list(self.background)}")
        if self.value_range and self.value_range[0] >= self.value_range[1]:
            bad.append(f"value_range = {list(self.value_range)} must be [low, high]")
        _contradictions(bad)
        return self


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
    checkpoint_every: Count = 1000
    keep_checkpoints: Annotated[int, Field(ge=2, le=1_000_000)] = 2
    preview_every: Count = 1000
    held_out_every: Count = 1000
    held_out_images: Count = 256
    nonfinite_limit: Count = Field(20, description="skipped steps in a row after which the run stops")
    trackers: Strings = Field((), description="accelerate trackers: tensorboard, wandb, trackio, ...")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        bad = []
        if self.batch_size % self.accumulation:
            bad.append(f"batch_size = {self.batch_size} is not divisible by accumulation = {self.accumulation}")
        bad += [f"betas must lie in [0, 1), not {b}" for b in self.betas if not 0 <= b < 1]
        _contradictions(bad)
        return self


class EMAConfig(Spec):
    """Average of the weights; step n uses min(decay, (1 + n) / (10 + n)) so that early averages are not noise."""

    decay: float = Field(0.999, ge=0, lt=1)


class SampleConfig(Spec):
    """What `diffunet sample`, previews and `diffunet evaluate` do where no flag says otherwise."""

    sampler: SamplerConfig = DDIMSampler()
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    spacing: SpacingName | None = None
    guidance: float | None = Field(None, description="1 is the conditional model")
    batch_size: Count = 64
    preview_images: Count = 64


class EvaluateConfig(Spec):
    """`diffunet evaluate`: on which features, how many images."""

    extractor: Literal["auto", "classifier", "random_conv", "inception"] = "auto"
    n: Annotated[int, Field(ge=2)] | None = Field(None, description="images on each side; all held-out ones if unset")
    seed: Whole = 0


class RunSection(Spec):
    """Name and kind of the run."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    task: Literal["diffusion"] = "diffusion"


class RunConfig(Spec):
    """One config file, resolved."""

    run: RunSection = RunSection()
    model: UNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    ema: EMAConfig = EMAConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        bad = []
        if self.objective.class_dropout > 0 and not self.model.null_class:
            bad.append("objective.class_dropout needs model.null_class = true")
        if self.sample.guidance is not None and not self.model.null_class:
            bad.append("sample.guidance needs model.null_class = true")
        if self.model.out_channels != self.model.in_channels:
            bad.append(
                f"model.out_channels = {self.model.out_channels} must equal in_channels = {self.model.in_channels}"
            )
        if self.model.cond_channels:
            bad.append("model.cond_channels needs image conditions, which no data set here provides; train from Python")
        if self.model.dims != 2 and self.data.name != "array":
            bad.append(f"model.dims = {self.model.dims} needs data.name = 'array', not '{self.data.name}'")
        _contradictions(bad)
        return self


def sampler_config(value: Any) -> Any:
    """The sampler spec of a name, a dict with `kind`, or a spec."""
    return TypeAdapter(SamplerConfig).validate_python(value)


def schedule_config(value: Any) -> Any:
    """The schedule spec of a name, a dict with `kind`, or a spec."""
    return TypeAdapter(ScheduleConfig).validate_python(value)
