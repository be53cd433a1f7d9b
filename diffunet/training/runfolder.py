"""The run folder: config, status, metrics.jsonl, events.jsonl, samples/, checkpoints/, weights.safetensors."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffunet import config as configs
from diffunet.errors import CheckpointError, StorageError
from diffunet.spec import RunConfig
from diffunet.storage import storage_error, write_file

LEAVINGS = re.compile(r"\.tmp-(\.probe|[\w.-]+\.(json|png|gif|html|safetensors))-\d+")  # see storage.write_file


class RunFolder:
    """One run's files. Only the main process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        self.weights, self.metrics = path / "weights.safetensors", path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self._lock: FileLock | None = None

    def claim(self) -> None:
        """Create the folder, prove that it can be written, and hold it against a second run.

        Raises:
            StorageError: it cannot be written, or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(self.path / ".probe", b"can this folder be written?")
            (self.path / ".probe").unlink()
            self._lock = FileLock(self.path / ".lock", timeout=0, mode=0o666 & ~_umask())
            self._lock.acquire()
            self._clear()
        except Timeout:
            status = self.read_status()
            raise StorageError(
                f"{self.path} is in use by process {status.get('pid')} on {status.get('host')} since "
                f"{status.get('started')}; wait for it, stop it, or use --out for another folder"
            ) from None
        except OSError as error:
            raise storage_error(error, self.path, 27) from None

    def _clear(self) -> None:
        """Remove the half-written files of a killed process; whoever holds the folder is the only one who writes."""
        for folder in (self.path, self.samples, self.path / "ema"):
            for path in folder.glob(".tmp-*"):
                if LEAVINGS.fullmatch(path.name):
                    path.unlink()

    @property
    def claimed(self) -> bool:
        """Whether this process holds the folder."""
        return self._lock is not None and self._lock.is_locked

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            self._lock.release()

    def adopt(self, config: RunConfig) -> None:
        """Write the resolved config, or refuse where the folder holds a run of another one.

        Raises:
            CheckpointError: another config, or the folder's config.json is broken.
        """
        path = self.path / "config.json"
        # a start that failed before its first step has nothing to lose, and its config may be mended
        begun = self.checkpoints.is_dir() or (self.metrics.exists() and self.metrics.stat().st_size > 0)
        if path.exists() and begun and (changed := configs.check_resume(read_config(self.path), config, self.path)):
            self.note("config_changed", self.read_status().get("step", 0), changed)
        write_file(path, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())

    def write_status(self, state: str, step: int, **facts: Any) -> None:
        """Replace status.json: what the run does now, or how it ended."""
        old = self.read_status()
        mine = old.get("pid") == os.getpid() and state != "starting"
        record = {
            "state": state,
            "step": step,
            "pid": os.getpid(),
            "host": platform.node(),
            "started": old.get("started") if mine else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **facts,
        }
        write_file(self.path / "status.json", (json.dumps(record, indent=2) + "\n").encode())

    def read_status(self) -> dict[str, Any]:
        """What status.json says; empty where there is none."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def read_items(self) -> dict[str, str] | None:
        """Name -> digest of the images that the run was trained on; None where that is not known."""
        try:
            items = json.loads((self.path / "data.json").read_text())
        except (OSError, ValueError):
            return None
        return items if isinstance(items, dict) else None

    def write_data(self, items: Mapping[str, str] | None, bad: Sequence[tuple[str, str]]) -> None:
        """Write which images the run is trained on (data.json), and which were left out (bad_files.jsonl)."""
        if items is not None:
            write_file(self.path / "data.json", (json.dumps(items, indent=0) + "\n").encode())
        if bad:
            lines = "".join(json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in bad)
            write_file(self.path / "bad_files.jsonl", lines.encode())

    def note(self, kind: str, step: int, message: str, **facts: Any) -> None:
        """Append what happened to events.jsonl; unlike the metrics it is history, and never cut back."""
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kind": kind, "step": step, "message": message, **facts}
        try:
            with open(self.events, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise storage_error(error, self.events, 200) from None

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that a kill left half-written."""
        if not self.metrics.exists():
            return
        end = 0
        with open(self.metrics, "rb+") as file:
            for line in file:
                try:
                    if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                        break
                except (ValueError, KeyError, TypeError):
                    break
                end += len(line)
            file.truncate(end)
            os.fsync(file.fileno())


class MetricsFile:
    """metrics.jsonl, one flushed line per optimizer step."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise storage_error(error, Path(self._file.name), 200) from None

    def sync(self) -> None:
        """Make the lines so far durable; a checkpoint must not be newer than they are."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_config(folder: Path) -> RunConfig:
    """The resolved config of a run folder.

    Raises:
        CheckpointError: it is missing or broken.
    """
    path = folder / "config.json"
    try:
        return RunConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a run folder: it holds no config.json; name one, such as runs/digits"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is broken ({reason}); restore it, or use --out for a new run") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
