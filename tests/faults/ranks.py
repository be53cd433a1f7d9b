"""Several ranks of one job as forks of the zygote, with the variables that a launcher would give them: no launcher's
ten seconds of start, and each rank's own exit code."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.training.conftest import Child, Zygote


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    zygote: Zygote, command: Sequence[object], folder: Path, faults: dict[int, list[dict[str, Any]]] | None = None
) -> list[Child]:
    """Two ranks; `faults` of each by its number. Rank r writes to FOLDER/log-r."""
    port = free_port()
    children = []
    for rank in range(2):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        log = folder / f"log-{rank}"
        log.unlink(missing_ok=True)
        words = {key: str(value) for key, value in environment.items()}
        children.append(zygote.start(command, log, faults=(faults or {}).get(rank, []), environment=words))
    return children


def run(zygote: Zygote, command: Sequence[object], folder: Path, **options: Any) -> list[int]:
    """Two ranks to their end: their exit codes."""
    return [child.wait(90) for child in start(zygote, command, folder, **options)]


def said(folder: Path) -> str:
    """What both wrote."""
    return "".join((folder / f"log-{rank}").read_text() for rank in range(2))
