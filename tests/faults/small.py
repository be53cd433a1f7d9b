"""The smallest run that has all that a checkpoint has, and what is asked of a run after a fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from diffunet.training.checkpoint import Checkpoint, newest, read
from tests.training.conftest import Zygote

CONFIG = """
[model]
in_channels = 1
out_channels = 1
base_channels = 4
channel_multipliers = [1]
blocks_per_level = 1
attention_levels = []
block = { kind = "residual", groups = 2, dropout = 0.1 }
[data]
size = 8
[train]
batch_size = 4
learning_rate = 1e-3
lr_schedule = "constant"
warmup_steps = 0
precision = "no"
threads = 1
checkpoint_every = 1
preview_every = 1000000
held_out_every = 1000000
"""
STEPS = 30
# file-system events of one save and its rotation are more than these; each test proves that its faults landed
EVENTS = 20
FORM = re.compile(r"diffunet: error\[E-[A-Z]+\]: ")
# what a reader may do next
ADVICE = re.compile(
    r"mend|use |run the|the same command|put |lower |raise |set |restore|convert|free some|copy |make |choose|wait"
    r"|did you mean|not well-formed|known keys|ha(s|ve) it|divisible|but the levels are|does not exist"
    r"|one of:|should |must |needs? "
    r"|check |name |leave |give |see |say |is not loaded|is refused|goes on|save |limit"
)
PLACE = re.compile(r"/|step \d|\w+\.\w+|'[^']+'|--\w+")


def write_config(folder: Path, steps: int = STEPS) -> Path:
    """The config of the small run."""
    path = folder / "small.toml"
    path.write_text(CONFIG.replace("[train]", f"[train]\nsteps = {steps}"))
    return path


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what may differ between two runs."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    keys = ("step", "loss", "lr", "grad_norm", "skipped")
    return [{key: record[key] for key in keys if key in record} for record in map(json.loads, lines)]


def steps_done(run: Path) -> int:
    """How many lines of metrics there are."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """What a run noted of one kind."""
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def status(run: Path) -> dict[str, Any]:
    """status.json of a run."""
    return json.loads((run / "status.json").read_text())


def left_over(run: Path) -> list[str]:
    """Temporary files and folders of ours: what a save that was cut short leaves."""
    return [path.name for path in [*run.glob(".t*"), *run.glob("checkpoints/.t*"), *run.glob("ema/.t*")]]


def whole(run: Path) -> Checkpoint | None:
    """The newest checkpoint; none may be damaged."""
    found, reasons = newest(run / "checkpoints")
    assert not reasons, reasons
    return found


def newest_of(run: Path, step: int) -> dict[str, bytes]:
    """The files of one checkpoint."""
    return dict(read(run / "checkpoints", step).files)


def same_end(one: Path, other: Path, steps: int = STEPS) -> None:
    """Two runs ended alike: every line of metrics, and every file of the last checkpoint, bit for bit."""
    assert records(one) == records(other)
    a, b = whole(one), whole(other)
    assert a is not None
    assert b is not None
    assert a.step == b.step == steps
    assert a.files == b.files
    assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def message(text: str, code: int | None = None) -> str:
    """The one error in what a program said, held to the form that every error has; without its name."""
    lines = text.strip().splitlines()
    begun = [i for i, line in enumerate(lines) if FORM.match(line)]
    assert len(begun) == 1, f"not one error: {text}"
    said = lines[begun[0] :]
    assert len(said) <= 6, said
    assert "Traceback" not in text
    whole_message = "\n".join(said)
    body = FORM.sub("", whole_message)
    assert PLACE.search(body), f"neither a path nor a key: {body}"
    assert ADVICE.search(body), f"no word of what to do: {body}"
    return body


def again(zygote: Zygote, command: list[Any], log: Path, code: int = 0, **options: Any) -> str:
    """A command from the start with a fresh log: what it said; its code is as expected."""
    log.unlink(missing_ok=True)
    found = zygote.run(command, log, **options)
    text = log.read_text()
    assert found == code, f"exit {found}, not {code}: {text}"
    if code not in (0, 75, 130, 143) and code > 0:
        message(text)
    return text
