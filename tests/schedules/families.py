"""Every schedule, with its defaults and with its options, for the tests of this folder."""

from __future__ import annotations

import pytest
from hypothesis import settings

from diffunet import Schedule
from diffunet.schedules import SCHEDULES, Discrete

PLAIN = {name: getattr(Schedule, name)() for name in SCHEDULES}
TABLES = {name: schedule for name, schedule in PLAIN.items() if isinstance(schedule, Discrete)}
CHANGED = {
    "zero terminal": Schedule.linear(zero_terminal_snr=True),
    "short zero terminal": Schedule.cosine(T=7, zero_terminal_snr=True),
    "shifted table": Schedule.scaled_linear(resolution=256),
    "shifted zero terminal": Schedule.sigmoid(zero_terminal_snr=True, resolution=512),
    "shifted vp": Schedule.vp(resolution=256),
    "shifted laplace": Schedule.laplace(resolution=32, mu=1.0, b=0.9),
    "three indices": Schedule.linear(T=3),
    "rho 3": Schedule.karras(rho=3.0),
}
ALL = PLAIN | CHANGED
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
every_plain = pytest.mark.parametrize("schedule", PLAIN.values(), ids=PLAIN)
every_table = pytest.mark.parametrize("schedule", TABLES.values(), ids=TABLES)
repeatable = settings(derandomize=True, deadline=None, max_examples=15)
