"""Which part of a network a module is, told by where it stands: the names of the house, not the classes of the parts.

A new operator, block, skip or attention is told apart without a change here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from diffunet.nn import ATTENTIONS


@dataclass(frozen=True)
class Part:
    """A row of the tables.

    Args:
        name: `down 0 blocks`, `up 1-0`, `mid attention`, ...
        role: what it is there for, a key of ROLES.
        level: 0 is full resolution; between two levels the finer one; None outside the levels.
        way: down, mid or up; empty outside the levels.
    """

    name: str
    role: str
    level: int | None = None
    way: str = ""


def parts_of(net: nn.Module) -> dict[str, Part]:
    """Path -> part of every module of a UNet or ClassicUNet but itself."""
    kinds = tuple(ATTENTIONS.values())
    looks = tuple(f"{path}." for path, module in net.named_modules() if isinstance(module, kinds))
    levels = [len(list(net.get_submodule(way).children())) for way in ("down", "up")]
    return {path: _part_of(path, f"{path}.".startswith(looks), *levels) for path, _ in net.named_modules() if path}


def _part_of(path: str, attends: bool, downs: int, ups: int) -> Part:
    matches = ((re.match(pattern, path), way, role) for pattern, way, role in PLACES)
    found, way, role = next((match for match in matches if match[0]), (None, "", "other"))
    if not way:
        return Part(role, role)
    if role == "blocks" and attends:
        role = "attention"
    if way == "mid":
        return Part(f"mid {role}", role, downs - 1, way)
    assert found is not None, "what lies on a way has a number"
    number = int(found[1])
    level = number if way == "down" else ups - 1 - number
    # UNet's operators of the way up belong to the level that they leave, ClassicUNet's to the one that they reach
    finer = level - 1 if path.startswith("up.") and role == "up" else level
    between = {"down": f"down {finer}-{finer + 1}", "up": f"up {finer + 1}-{finer}"}
    return Part(between.get(role, f"{way} {level} {role}"), role, finer, way)


# the first that matches: pattern of the path, way, role
PLACES = (
    (r"(down|up)$", "", "other"),
    (r"stem\b", "", "stem"),
    (r"(conditioning|time|uncertainty)\b", "", "conditioning"),
    (r"(norm|act|head)\b", "", "head"),
    (r"down\.(\d+)\.resample\b", "down", "down"),
    (r"pool\.(\d+)", "down", "down"),
    (r"down\.(\d+)\.pyramid\b", "down", "pyramid"),
    (r"down\.(\d+)", "down", "blocks"),
    (r"mid\b", "mid", "blocks"),
    (r"up\.(\d+)\.blocks\.\d+\.skip\b", "up", "skips"),
    (r"skips\.(\d+)", "up", "skips"),
    (r"up\.(\d+)\.resample\b", "up", "up"),
    (r"lift\.(\d+)", "up", "up"),
    (r"up\.(\d+)\.pyramid\b", "up", "pyramid"),
    (r"up\.(\d+)", "up", "blocks"),
)
