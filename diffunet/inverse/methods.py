"""The table of methods. A new one is its class in a file of its own, its line here, and its spec in spec/inverse.py."""

from __future__ import annotations

from typing import Any

from diffunet.inverse.ddnm import DDNM
from diffunet.inverse.diffpir import DiffPIR
from diffunet.inverse.dps import DPS
from diffunet.inverse.pigdm import MMPS, PiGDM
from diffunet.inverse.posterior import Mean, Sample
from diffunet.inverse.repaint import RePaint
from diffunet.table import Table

METHODS: Table[Any] = Table(
    "method",
    {
        "mean": Mean,
        "sample": Sample,
        "ddnm": DDNM,
        "repaint": RePaint,
        "dps": DPS,
        "pigdm": PiGDM,
        "mmps": MMPS,
        "diffpir": DiffPIR,
    },
)
