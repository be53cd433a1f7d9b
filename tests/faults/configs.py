"""T8: configs with mistakes; run in a child of the zygote with [folder, count]."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from pathlib import Path
from typing import Any

from diffunet import config as configs
from diffunet.cli import main as diffunet
from diffunet.errors import ConfigError
from diffunet.spec.explain import keys
from tests.faults import small

VALUES = [None, True, -1, 0, 1, 0.5, 2**31, 10**12, 10**30, 1e308, float("nan"), float("inf"), "1e-4", "", "x" * 300]
VALUES += ["\x1b[31m", "../up", [], {}, [1, 2], [[1]], {"kind": "nothing"}, {"a": {"b": 1}}, [None], "linear", 7, 3.5]
KEYS = keys()


def put(table: dict[str, Any], key: str, value: Any) -> None:
    """A value under a dotted key."""
    *above, last = key.split(".")
    for part in above:
        table = table.setdefault(part, {}) if isinstance(table.get(part, {}), dict) else {}
    table[last] = value


def typo(key: str, chance: random.Random) -> str:
    """A letter of the last name is gone, doubled or another."""
    above, dot, last = key.rpartition(".")
    at = chance.randrange(len(last))
    return (
        above + dot + chance.choice([last[:at] + last[at + 1 :], last[:at] + last[at] * 2 + last[at + 1 :], f"{last}z"])
    )


def mistaken(chance: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A config, and the keys that were touched."""
    table: dict[str, Any] = {"model": {"in_channels": 1, "out_channels": 1, "base_channels": 32}}
    touched = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        key = chance.choice(KEYS)
        key = typo(key, chance) if chance.random() < 0.25 else key
        put(table, key, chance.choice(VALUES))
        touched.append(key)
    return table, touched


def main(args: list[str]) -> int:
    """Each config is right, or exit 2 with a message that names a key that was touched, or its section's."""
    folder, count = Path(args[0]), int(args[1])
    chance = random.Random(count)
    bad: list[str] = []
    codes: dict[int, int] = {}
    seconds = []
    path = folder / "c.json"
    for _ in range(count):
        table, touched = mistaken(chance)
        path.write_text(json.dumps(table))
        begun = time.process_time()
        said, code = io.StringIO(), 0
        try:
            configs.load(path)
        except ConfigError:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = diffunet(["train", str(path), "--out", str(folder / "never")])
        except Exception as error:
            code = 1
            bad.append(f"{json.dumps(table)}: {error!r}")
        seconds.append(time.process_time() - begun)
        codes[code] = codes.get(code, 0) + 1
        text = said.getvalue()
        if code == 2:
            try:
                small.message(text)
            except AssertionError as error:
                bad.append(f"{json.dumps(table)}: {error}")
            # a contradiction may be told by the other key; then at least the section is there
            if not any(key.rpartition(".")[2] in text or key.split(".")[0] in text for key in touched):
                bad.append(f"{touched} not named: {text}")
    seconds.sort()
    result = {"codes": codes, "bad": bad[:10], "p95": seconds[int(0.95 * count)], "made": (folder / "never").exists()}
    (folder / "results").write_text(json.dumps(result))
    return 0
