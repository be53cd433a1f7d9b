"""What `reliability.py` asks of each trainer: every probe a function (Place) -> one cell of the table.

A trainer runs in a fork of this process and is killed, starved or lied to there; what it left is judged here.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.reliability_children import PATIENCE, Place, begin, end, losses, trained

# --- the probes -------------------------------------------------------------------------------------------------------


def kills(place: Place) -> str:
    """SIGKILL at random times of a loop that saves after every step."""
    chance, outcomes = random.Random(0), {"resumes": 0, "newest does not load": 0, "nothing loads": 0, "wrong": 0}
    steps = 400
    golden = trained(place, "golden", 60, keep=1000) if place.system.name == "diffunet" else place.root
    for _ in range(place.kills):
        folder = place.fresh("killed")
        pid = begin(lambda folder=folder: place.system.train(folder, place.images, steps), place.root / "log")
        last = time.monotonic() + PATIENCE
        while len(place.system.checkpoints(folder)) < 2 and time.monotonic() < last:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        end(pid)
        outcomes[judged(place, folder, golden)] += 1
    return ", ".join(f"{what} {count}" for what, count in outcomes.items() if count) + f" of {place.kills}"


def judged(place: Place, folder: Path, golden: Path) -> str:
    """What a resume finds in a folder whose process was killed."""
    answers = place.root / "answers"
    answers.unlink(missing_ok=True)

    def look() -> None:
        load = place.system.open(folder, place.images)
        known = place.system.digests(folder, golden)
        found = []
        for path in reversed(place.system.checkpoints(folder)):
            try:
                found.append("right" if load(path) in known else "wrong")
            except Exception:
                found.append("fails")
            answers.write_text(" ".join(found))

    end(begin(look, place.root / "log"))
    found = answers.read_text().split() if answers.exists() else []
    if not found or "right" not in found:
        return "wrong" if "wrong" in found else "nothing loads"
    first = found[0]
    return {"right": "resumes", "wrong": "wrong", "fails": "newest does not load"}[first]


def resume(place: Place) -> str:
    """Twelve steps at once, and six and six: how many of the last six losses are equal bit for bit."""
    whole = losses(trained(place, "whole", 12))
    if whole != losses(trained(place, "twin", 12)):
        return "two undisturbed runs differ"
    folder = trained(place, "parts", 6)
    code = end(begin(lambda: place.system.train(folder, place.images, 12), place.root / "log"))
    if code:
        return f"the resume ends with {code}"
    parts = losses(folder)
    return f"{sum(whole[step] == parts.get(step) for step in range(7, 13))} of 6"


def damage(place: Place, spoil: Callable[[bytes, random.Random], bytes]) -> str:
    """Spoil one file of a checkpoint at a time (each as likely as it is large) and load: how often that is refused."""
    folder, answers = trained(place, "spoilt", 3), place.root / "answers"
    newest = place.system.checkpoints(folder)[-1]
    paths = sorted(newest.iterdir()) if newest.is_dir() else [newest]

    def look() -> None:
        load, chance, noticed = place.system.open(folder, place.images), random.Random(1), 0
        load(newest)
        for _ in range(place.flips):
            (path,) = chance.choices(paths, [p.stat().st_size for p in paths])
            data = path.read_bytes()
            path.write_bytes(spoil(data, chance))
            try:
                load(newest)
            except Exception:
                noticed += 1
            path.write_bytes(data)
            answers.write_text(str(noticed))

    code = end(begin(look, place.root / "log"))
    return f"{answers.read_text()} of {place.flips}" if code == 0 else f"died with {code}"


def flip(data: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    place, changed = chance.randrange(8 * len(data)), bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


class Canary:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def payloads(mark: Path) -> list[bytes]:
    """A pickle that runs code: bare, and in both formats of torch."""
    files = [pickle.dumps(Canary(mark))]
    for modern in (True, False):
        buffer = io.BytesIO()
        torch.save({"x": Canary(mark)}, buffer, _use_new_zipfile_serialization=modern)
        files.append(buffer.getvalue())
    return files


def pickles(place: Place) -> str:
    """Each file of a checkpoint exchanged for each payload, and a resume: how often it ran, and in which files."""
    folder, mark = trained(place, "planted", 3), place.root / "mark"
    newest = place.system.checkpoints(folder)[-1]
    paths, ran, tried = sorted(newest.iterdir()) if newest.is_dir() else [newest], set(), 0
    for path in paths:
        data = path.read_bytes()
        for payload in payloads(mark):
            path.write_bytes(payload)
            shutil.rmtree(mark, ignore_errors=True)
            end(begin(lambda: place.system.open(folder, place.images)(newest), place.root / "log"))
            tried += 1
            if mark.exists():
                ran.add(path.name)
        path.write_bytes(data)
    return f"{len(ran)} of {len(paths)} files" + (f": {', '.join(sorted(ran))}" if ran else "")


def full_disk(place: Place) -> str:
    """The third checkpoint does not fit: is the second still right, and does the error name the cause and the file?"""
    folder, log = trained(place, "full", 2), place.root / "log"
    before = place.system.checkpoints(folder)[-1]
    size = max(path.stat().st_size for path in (before.iterdir() if before.is_dir() else [before]))
    log.unlink(missing_ok=True)
    messages = place.root / "messages"

    def starve() -> None:
        shown = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        place.system.train(folder, place.images, 4)

    code = end(begin(starve, log))
    text = messages.read_text() + (log.read_text() if log.exists() else "")
    named = any(word in text for word in ("File too large", "No space left"))
    left = judged(place, folder, trained(place, "golden", 4, keep=1000) if place.system.name == "diffunet" else folder)
    words = "cause named" if named else "cause not named"
    where = "file named" if str(folder) in text or before.name.split("-")[0] in text else "file not named"
    return f"exit {code}, {left}; {words}, {where}"


def not_a_number(place: Place) -> str:
    """The loss of one step is NaN: are the weights that are saved after it finite?"""
    folder, log = place.fresh("nan"), place.root / "log"
    end(begin(lambda: place.system.train(folder, place.images, 5, nan=True), log))
    answer = place.root / "answers"

    def look() -> None:
        answer.write_text("weights finite" if place.system.finite(folder, place.images) else "all later weights NaN")

    end(begin(look, log))
    return answer.read_text()


def dirty_image(place: Place) -> str:
    """A PNG that is cut short among the pictures: is its name in what the trainer says?"""
    images = place.fresh("dirty")
    for path in place.images.glob("*.png"):
        shutil.copy(path, images)
    bad = images / "0003.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    folder, log, shown = place.fresh("fed"), place.root / "log", place.root / "messages"
    log.unlink(missing_ok=True)

    def feed() -> None:
        handle = os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        place.system.train(folder, images, 40)

    code = end(begin(feed, log))
    text = shown.read_text() + (log.read_text() if log.exists() else "")
    named = (
        "named" if bad.name in text or any(bad.name in p.read_text() for p in folder.rglob("*.jsonl")) else "not named"
    )
    return f"{'goes on without it' if code == 0 else 'ends'}, file {named}"


def cost(place: Place) -> str:
    """Seconds of one save of large weights, and of the same bytes written plainly: the best of three."""
    tensors = {f"w{i}": torch.full((place.megabytes * 2**20 // 40,), float(i)) for i in range(10)}
    plain, own = [], []
    for _ in range(3):
        folder = place.fresh("large")
        begun = time.perf_counter()
        (folder / "plain").write_bytes(safetensors.torch.save(tensors))
        plain.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        place.system.save_large(folder / "own", tensors)
        own.append(time.perf_counter() - begun)
    return f"{min(own):.2f} s ({min(own) / min(plain):.1f} x plain)"


PROBES: dict[str, Callable[[Place], str]] = {
    "SIGKILL in a loop of saves": kills,
    "losses equal after a stop at step 6 of 12": resume,
    "flipped bits noticed": lambda place: damage(place, flip),
    "cut files noticed": lambda place: damage(place, cut),
    "files whose pickle runs in a resume": pickles,
    "disk full in the third save": full_disk,
    "one loss is NaN": not_a_number,
    "one picture is cut short": dirty_image,
    "one save": cost,
}
