"""How much signal and how much noise: x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1], 0 clean, 1 noise.

Some libraries run time the other way or count integers. Here a discrete table of T steps holds index k = 0..T-1 at
t = (k + 1) / T, the network sees k, and t = 0 is the clean image, which no network is asked about.
"""

from __future__ import annotations

from diffunet.schedules.base import Schedule
from diffunet.schedules.continuous import VE, VP, Flow, Karras, Laplace
from diffunet.schedules.discrete import Cosine, Discrete, Linear, ScaledLinear, Sigmoid
from diffunet.schedules.grids import GRIDS
from diffunet.table import Table

SCHEDULES: Table[type[Schedule]] = Table(
    "schedule",
    {
        "linear": Linear,
        "scaled_linear": ScaledLinear,
        "cosine": Cosine,
        "sigmoid": Sigmoid,
        "vp": VP,
        "laplace": Laplace,
        "ve": VE,
        "karras": Karras,
        "flow": Flow,
    },
)

__all__ = ["GRIDS", "SCHEDULES", "Discrete", "Schedule"]
