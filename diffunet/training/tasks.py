"""The kinds of run that the trainer knows, by the `run.task` of a config."""

from __future__ import annotations

from typing import Any

from diffunet.table import Table
from diffunet.training.diffusion import Diffusion
from diffunet.training.segmentation import Segmentation
from diffunet.training.task import Task

TASKS: Table[type[Task[Any]]] = Table("run.task", {"diffusion": Diffusion, "segment": Segmentation})
