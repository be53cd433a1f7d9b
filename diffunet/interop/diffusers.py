"""diffusers: networks as UNet2DModel and denoisers as pipeline folders, both ways.

Used as `from diffunet.interop import diffusers as hub`. Nothing here downloads or unpickles. Importing this module
mends the common broken pair of torch and torchvision builds, so that an `import diffusers` after it works.

A folder holds no more than diffusers can say of a denoiser: classes' names and counts stay behind. One private entry in
the scheduler's file, which diffusers keeps and does not read, says which schedule made the table `trained_betas`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from diffunet import compat, spec
from diffunet.denoiser import Denoiser
from diffunet.errors import CheckpointError, ConfigError, UnsafeError
from diffunet.interop.options import Options, their_value
from diffunet.interop.unet2d import from_unet2d, network, to_unet2d
from diffunet.nn import UNet
from diffunet.schedules import SCHEDULES, Discrete, Schedule
from diffunet.storage import write_file
from diffunet.weights import read_tensors

compat.torchvision()

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLE_FILE = "diffusion_pytorch_model.bin"
MAX_JSON = 64 * 2**20  # a table of a million betas fits

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
COMPONENTS = {
    "unet": [["diffusers", "UNet2DModel"]],
    "scheduler": [["diffusers", "DDPMScheduler"], ["diffusers", "DDIMScheduler"]],
}
# values of their options: what we call them
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# whether the network says the variance: a second half of its output, between the two fixed ones (2102.09672, eq. 15)
VARIANCES = {
    "fixed_small": False,
    "fixed_small_log": False,
    "fixed_large": False,
    "fixed_large_log": False,
    "learned_range": True,
}
# options of their schedulers that a Denoiser has in these values only
FIXED: dict[str, Collection[Any]] = {
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "variance_type": tuple(VARIANCES),
}
# attention weights as the first versions of diffusers named them; google's ddpm-* files still do
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def same_betas(theirs: Tensor, ours: Tensor) -> bool:
    """Equal but for the rounding of float32, in which diffusers computes."""
    return theirs.shape == ours.shape and torch.allclose(theirs.double(), ours, rtol=1e-5, atol=1e-8)


def scheduler_options(den: Denoiser) -> dict[str, Any]:
    """DDPMScheduler's options for a denoiser: betas by name where diffusers computes the same ones, else as a table."""
    if not isinstance(den.schedule, Discrete):
        raise ConfigError(f"diffusers' DDPMScheduler needs a table of betas, which {den.schedule} is not")
    if isinstance(den.clip, spec.DynamicClip):
        raise ConfigError(
            "a dynamic threshold is not written into diffusers' DDPMScheduler; build the Denoiser with clip=(-1, 1)"
        )
    if den.clip and den.clip[0] != -den.clip[1]:
        low, high = den.clip
        raise ConfigError(f"diffusers' DDPMScheduler cannot say clip = [{low:g}, {high:g}]; only [-r, r]")
    config, betas = den.schedule.config, den.schedule.betas()
    if betas.float().max() >= 1:
        raise ConfigError(f"{den.schedule}: its last beta is 1 in diffusers' float32, where eps says nothing of x0")
    ends = {name: getattr(config, name) for name in ("beta_start", "beta_end") if hasattr(config, name)}
    options = {
        "num_train_timesteps": config.T,
        "prediction_type": their_value(PREDICTIONS, den.prediction),
        "clip_sample": den.clip is not None,
        "clip_sample_range": den.clip[1] if den.clip else 1.0,
        "timestep_spacing": den.schedule.default_spacing,
        "variance_type": their_value(VARIANCES, cast(UNet, den.network).config.learned_variance),
    }
    table = {"trained_betas": betas.tolist(), "_diffunet_schedule": config.model_dump()}
    if config.kind not in BETA_SCHEDULES.values():
        return options | table
    named = {"beta_schedule": their_value(BETA_SCHEDULES, config.kind), "num_train_timesteps": config.T, **ends}
    computed = compat.diffusers().DDPMScheduler(**named).betas
    return options | (named if same_betas(computed, betas) else table)


def check_time(config: spec.UNetConfig, T: int) -> None:
    """Refuse networks that cannot be told the indices 0 to T - 1."""
    if config.divide_by_time:
        raise ConfigError("divide_by_time: the network divides by what it is told, and diffusers' table begins at 0")
    if (steps := getattr(config.time, "steps", T)) < T:
        raise ConfigError(f"time.steps = {steps}: the network knows fewer times than the {T} of the schedule")


def sample_size(data: spec.DataInfo | None, levels: int) -> tuple[int, ...] | None:
    """Sides of the data, if they are known; UNet2DModel cannot run on every size."""
    sides, divisor = data.shape[1:] if data else None, 2 ** (levels - 1)
    if sides and any(side % divisor for side in sides):
        raise ConfigError(f"diffusers' UNet2DModel of {levels} levels runs on multiples of {divisor} only, not {sides}")
    return sides


def export(den: Denoiser, folder: str | Path) -> None:
    """Write a folder that plain `diffusers.DDPMPipeline.from_pretrained(folder)` opens, without diffunet.

    A network with classes is written too, but DDPMPipeline passes no labels: use its `unet` and `scheduler` in a loop
    of your own. A variance that the network has learned is what the scheduler samples with. Where the denoiser does not
    know its data's shape the folder has no sample_size, and a pipeline is told by
    `pipe.unet.register_to_config(sample_size=32)`. Files of the same names are replaced.

    Args:
        den: a Denoiser around a UNet in two dimensions, on a discrete schedule.
        folder: made where it does not exist.

    Raises:
        ConfigError: something that diffusers cannot say (an option of the network, a continuous schedule, an asymmetric
            clip, sides its UNet cannot run on, a network that is told something else than the schedule's index).
        StorageError: the disk is full or the folder cannot be written.
    """
    folder, library = Path(folder), compat.diffusers()
    model = to_unet2d(cast(UNet, den.network))
    scheduler = library.DDPMScheduler(**scheduler_options(den))
    check_time(cast(UNet, den.network).config, len(scheduler.betas))
    model.register_to_config(sample_size=sample_size(den.data, len(model.config.block_out_channels)))
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": library.__version__}
    index |= {name: classes[0] for name, classes in COMPONENTS.items()}
    write_file(folder / "unet" / WEIGHTS_FILE, safetensors.torch.save(weights, {"format": "pt"}))
    write_file(folder / "unet" / "config.json", model.to_json_string().encode())
    write_file(folder / "scheduler" / "scheduler_config.json", scheduler.to_json_string().encode())
    write_file(folder / "model_index.json", (json.dumps(index, indent=2) + "\n").encode())


def present(path: Path) -> Path:
    """A file that must be there."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the folder is not a whole diffusers folder (nothing is downloaded)")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of bounded size."""
    if present(path).stat().st_size > MAX_JSON:
        raise UnsafeError(f"{path} has {path.stat().st_size} bytes (limit {MAX_JSON}); it is not read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a UNet2DModel folder in float32, by the names of today."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (folder / PICKLE_FILE).exists():
        raise UnsafeError(
            f"{folder / PICKLE_FILE} is a pickle, which can run code and is not loaded; save the model once more with "
            f"diffusers' save_pretrained, which writes {WEIGHTS_FILE}"
        )
    tensors, _ = read_tensors(present(path))
    old = re.compile(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.)")
    return {old.sub(lambda match: OLD_NAMES[match[1]], name): value.float() for name, value in tensors.items()}


def candidates(options: Options, T: int, first: float, last: float) -> Iterator[Schedule]:
    """Schedules that may have made a table of betas."""
    ends = {"beta_start": float(f"{first:.6g}"), "beta_end": float(f"{last:.6g}")}  # float32 knows no more digits
    guesses: list[dict[str, Any]] = [{"kind": kind, "T": T, **ends} for kind in ("linear", "scaled_linear")]
    guesses += [{"kind": kind, "T": T} for kind in ("cosine", "sigmoid")]
    hint = options.get("_diffunet_schedule")
    for guess in [hint, *guesses] if hint else guesses:
        yield SCHEDULES.build(spec.schedule_config(guess))


def read_schedule(options: Options) -> Schedule:
    """The schedule that a scheduler's options name, or that has the betas of their table."""
    T, table = options["num_train_timesteps"], options["trained_betas"]
    if table is None:
        kind = options.ours("beta_schedule", BETA_SCHEDULES)
        fields = type(spec.schedule_config(kind)).model_fields
        ends = {name: options[name] for name in ("beta_start", "beta_end") if name in fields}
        return SCHEDULES.build(spec.schedule_config({"kind": kind, "T": T, **ends}))
    betas = torch.tensor(TypeAdapter(list[float]).validate_python(table), dtype=torch.float64)
    if len(betas) == T and bool(((betas > 0) & (betas < 1)).all()):
        for schedule in candidates(options, T, float(betas[0]), float(betas[-1])):
            if isinstance(schedule, Discrete) and same_betas(betas, schedule.betas()):
                return schedule
    raise ConfigError(
        f"trained_betas ({len(betas)} values for num_train_timesteps = {T}) is the table of no schedule of ours: "
        + ", ".join(kind for kind in SCHEDULES if issubclass(SCHEDULES[kind], Discrete))
    )


def read_process(options: Options) -> tuple[Schedule, str, tuple[float, float] | None]:
    """Schedule, prediction and clip of a scheduler's options."""
    with options.reading():
        options.check(FIXED)
        limit = TypeAdapter(float).validate_python(options["clip_sample_range"])
        clip = (-limit, limit) if options["clip_sample"] else None
        return read_schedule(options), options.ours("prediction_type", PREDICTIONS), clip


def load_network(folder: Path, learned_variance: bool | None = None) -> tuple[Any, spec.DataInfo | None]:
    """The UNet of a UNet2DModel folder, and the shape of its data where the folder says it."""
    path = folder / "config.json"
    given = {"_class_name": None} | read_json(path)
    if learned_variance is not None:  # the scheduler knows
        given["_diffunet_learned_variance"] = learned_variance
    options = Options(given, compat.diffusers().UNet2DModel, path)
    with options.reading():
        options.check({"_class_name": ("UNet2DModel",)})
    net, size = network(options, read_weights(folder)), options["sample_size"]
    channels = net.config.in_channels
    with options.reading():
        if net.config.divide_by_time:
            why = "the network is told the noise itself and guesses a score; from_unet2d opens it as a network alone"
            raise options.refusal("time_embedding_type", why)
        if net.config.out_channels != channels:
            why = f"a Denoiser's must equal in_channels = {channels}, or twice that where variance_type = learned_range"
            raise options.refusal("out_channels", why)
        sides = (size, size) if isinstance(size, int) else size
        return net, spec.DataInfo(shape=(channels, *sides)) if sides else None


def load(folder: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """Open a diffusers folder on this machine as a Denoiser in float32, in eval mode.

    A pipeline folder (DDPMPipeline or DDIMPipeline: model_index.json, unet, scheduler) says the schedule, prediction
    and clip. A bare UNet2DModel folder (config.json and weights) says none: it gets Schedule.linear(), prediction eps
    and no clip, as DDPM trains. What belongs to a sampler (spacing, offset, fixed variance) is not the denoiser's: say
    it to `generate`.

    Args:
        folder: a local folder; nothing is downloaded, and only safetensors are read.
        device: where the denoiser goes.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the config.
        ConfigError: a class or option that diffunet does not have; the message names it.
        UnsafeError: the weights are a pickle, or a file is beyond the limits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; only local folders are opened, nothing is downloaded")
    if not any((folder / name).exists() for name in ("model_index.json", "config.json")):
        raise CheckpointError(f"{folder} holds neither model_index.json (a pipeline) nor config.json (a UNet2DModel)")
    if not (folder / "model_index.json").exists():
        net, data = load_network(folder)
        return Denoiser(net, Schedule.linear(), "eps", None, data).to(device).eval()
    wanted: dict[str, Any] = {"_class_name": PIPELINES, **COMPONENTS}
    index = Options(dict.fromkeys(wanted) | read_json(folder / "model_index.json"), None, folder / "model_index.json")
    with index.reading():
        index.check(wanted)
    name, path = index["scheduler"][1], folder / "scheduler" / "scheduler_config.json"
    options = Options(read_json(path), getattr(compat.diffusers(), name), path)
    schedule, prediction, clip = read_process(options)
    net, data = load_network(folder / "unet", VARIANCES.get(str(options.get("variance_type")), False))
    return Denoiser(net, schedule, prediction, clip, data).to(device).eval()


__all__ = ["export", "from_unet2d", "load", "to_unet2d"]
