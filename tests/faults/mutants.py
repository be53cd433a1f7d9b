"""T6: files that are almost right, given to what reads them; run in a child of the zygote with [folder, count]."""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffunet import config as configs
from diffunet import load, save
from diffunet.errors import UserError
from diffunet.interop.pickles import check_archive
from tests import tiny
from tests.faults import small

HOSTILE = [None, True, -1, 0, 2**63, 2**64, 10**30, 1e308, [], {}, "", "../../x", "\x1b[31m", "a\0b", [0] * 99, "F32"]


def bits(data: bytes, chance: random.Random) -> bytes:
    """One to eight bytes are others."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def lengths(data: bytes, chance: random.Random) -> bytes:
    """A piece is missing, twice there, or more than was there."""
    a, b = sorted(chance.randrange(len(data)) for _ in range(2))
    return chance.choice([data[:a], data[:a] + data[b:], data[:b] + data[a:], data + data[a:b], data[b:]])


def in_json(data: bytes, chance: random.Random) -> bytes:
    """One value somewhere in a JSON object is hostile, or its name."""
    table = json.loads(data)
    place = table
    for _ in range(chance.randint(0, 3)):
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v]
        if inner:
            place = chance.choice(inner)
    key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
    if isinstance(place, dict) and chance.random() < 0.3:
        place[str(chance.choice(HOSTILE))] = place.pop(key)
    else:
        place[key] = chance.choice(HOSTILE)
    return json.dumps(table).encode()


def in_header(data: bytes, chance: random.Random) -> bytes:
    """The same in the header of a safetensors file, whose size is then right, or is not."""
    (size,) = struct.unpack("<Q", data[:8])
    header = in_json(data[8 : 8 + size], chance)
    said = len(header) if chance.random() < 0.8 else chance.choice([0, 1, size, 2**62, len(header) - 1])
    return struct.pack("<Q", said) + header + data[8 + size :]


def in_archive(data: bytes, chance: random.Random) -> bytes:
    """Members of a zip are gone, packed, doubled, renamed."""
    buffer, how = io.BytesIO(), chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", how) as new:
        for name in old.namelist():
            if chance.random() < 0.8:
                new.writestr(chance.choice([name, name, f"../{name}", f"constants.pkl/../{name}"]), old.read(name))
    return buffer.getvalue()


def cases(folder: Path) -> list[tuple[str, bytes, Callable[[Path], Any], list[Callable[..., bytes]]]]:
    """Name of the file, right content, its reader, and what can be done to it."""
    save(tiny.denoiser(), folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    table = json.dumps(configs.load(small.write_config(folder)).model_dump(mode="json")).encode()
    buffer = io.BytesIO()
    torch.save(tiny.unet().state_dict(), buffer)
    return [
        ("w.safetensors", whole, load, [bits, lengths, in_header, in_header]),
        ("c.json", table, configs.load, [bits, lengths, in_json, in_json]),
        ("w.pt", buffer.getvalue(), check_archive, [lengths, in_archive]),
    ]


def main(args: list[str]) -> int:
    """See the module."""
    folder, count = Path(args[0]), int(args[1])
    chance, kinds = random.Random(count), cases(folder)
    bugs: list[str] = []
    refused, slowest = 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        name, data, read, ways = kinds[number % len(kinds)]
        way = chance.choice(ways)
        path = folder / name
        path.write_bytes(way(data, chance))
        begun = time.process_time()
        try:
            read(path)
        except UserError as error:
            refused += 1
            if len(str(error).splitlines()) > 6 or name not in str(error) or not str(error).isprintable():
                bugs += [f"{way.__name__}: {error}"] if "\n  " not in str(error) else []
        except Exception as error:
            bugs.append(f"{way.__name__} of {name}: {error!r}")
        slowest = max(slowest, time.process_time() - begun)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result = {"count": count, "refused": refused, "slowest": slowest, "grown": grown, "bugs": bugs[:10]}
    (folder / "results").write_text(json.dumps(result))
    return 0
