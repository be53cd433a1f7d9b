"""What accelerate's trackers (TensorBoard, wandb, ...) get: the numbers of a step, and previews as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from diffunet.errors import StorageError

PICTURES: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}}  # how a tracker is told the layout


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every finite number of a step's record by its path: `held_out/loss`, `held_out/bins/3`, `copies/pixels/ratio`.

    Truth values are 0 and 1; lists of objects and the step itself are left out.
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= scalars(value, f"{name}/")
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}/{i}": float(v) for i, v in enumerate(value) if isinstance(v, (int, float))}
        elif isinstance(value, (int, float)) and math.isfinite(value) and name != "step":
            found[name] = float(value)
    return found


def _pixels(path: Path) -> np.ndarray:
    """A PNG file as (1, H, W, 3) uint8."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[None]


def track(accelerator: Accelerator, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Hand one step to the trackers of a run (main process only).

    Args:
        accelerator: with its trackers begun; without any this does nothing.
        record: the step's line of metrics.jsonl.
        pictures: name -> PNG file; the missing ones are left out, as is all of them by a tracker that knows none.

    Raises:
        StorageError: a tracker cannot write.
    """
    step, known = record["step"], {name: path for name, path in pictures.items() if path.exists()}
    try:
        accelerator.log(scalars(record), step=step)
        for tracker in accelerator.trackers:
            if known and hasattr(tracker, "log_images"):
                shown = {name: _pixels(path) for name, path in known.items()}
                tracker.log_images(shown, step=step, **PICTURES.get(tracker.name, {}))
    except OSError as error:
        raise StorageError(
            f"a tracker of train.trackers cannot write: {error}; free some space, or leave it out"
        ) from None
