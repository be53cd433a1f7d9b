"""The machine: processors, memory, devices, limits, clock, and whether a folder's file system keeps its word."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from diffunet.doctor.report import Finding
from diffunet.storage import fsync_dir, write_durable

GIB = 2**30
PROBE = 16 * 2**20  # bytes of the file that is written to measure the disk
SLOW_SAVE = 0.5  # seconds in which a file of a few bytes should be durable
FEW_FILES, SMALL_SHM = 1024, GIB
EPOCH_2025 = 1_735_689_600.0  # a clock before this was never set


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def free_memory() -> int | None:
    """Bytes of main memory that a process may still take: the system's, or what its control group leaves it."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        found.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found.append(int(limit) - int(used))
    except OSError:
        pass  # no control group of the second kind: nothing limits this process but the system
    return max(0, min(found)) if found else None


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device, where it can be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def processors() -> Finding:
    """Processors that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0]
    full = busy > 1.5 * usable
    found = f"{usable} usable of {os.cpu_count()}, load {busy:.1f}"
    advice = "other work will slow training down" if full else ""
    return Finding("processors", "warn" if full else "ok", found, advice, {"usable": usable, "load": busy})


def memory() -> Finding:
    """Main memory."""
    free = free_memory()
    if free is None:
        return Finding("memory", "ok", "free memory is not told by this system")
    low = free < 2 * GIB
    advice = "close other programs, or train with a smaller batch" if low else ""
    return Finding("memory", "warn" if low else "ok", f"{size(free)} free", advice, {"free": free})


def devices() -> Iterator[Finding]:
    """Each GPU, or why there is none."""
    if not torch.cuda.is_available():
        apple = torch.backends.mps.is_available()
        found = "Apple GPU (mps)" if apple else "none: networks are trained on the CPU"
        built = torch.version.cuda is not None and not apple
        advice = "this torch is built for CUDA and finds no GPU: look at the driver (nvidia-smi)" if built else ""
        yield Finding("gpu", "warn" if built else "ok", found, advice)
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        taken = free < total / 2
        found = f"{torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free"
        advice = "another process holds most of its memory" if taken else ""
        yield Finding(f"gpu {number}", "warn" if taken else "ok", found, advice, {"free": free, "total": total})


def disk(folder: Path) -> Finding:
    """Free space where runs go."""
    usage = shutil.disk_usage(existing(folder))
    low = usage.free < 2 * GIB
    advice = "checkpoints need space: free some, or use --out on another disk" if low else ""
    found = f"{size(usage.free)} free of {size(usage.total)} at {folder}"
    return Finding("disk", "warn" if low else "ok", found, advice, {"free": usage.free})


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def file_system(folder: Path) -> Finding:
    """Write, fsync, rename over and read back as a checkpoint does it, and say how fast that was."""
    place = existing(folder) / f".doctor-{os.getpid()}"
    try:
        place.mkdir()
        data = os.urandom(PROBE)
        begun = time.perf_counter()
        write_durable(place / "large", data)
        speed = PROBE / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for number in range(8):
            write_durable(place / "new", bytes([number]))
            os.rename(place / "new", place / "small")  # over the old one, from the second on
            fsync_dir(place)
        seconds = (time.perf_counter() - begun) / 8
        kept = (place / "large").read_bytes() == data and (place / "small").read_bytes() == bytes([7])
        os.rename(place, renamed := place.with_name(f"{place.name}-moved"))  # as a checkpoint becomes visible
        place = renamed
    except OSError as error:
        advice = "runs cannot be kept there: look at the permissions and the space, or use another folder (--out)"
        return Finding("file system", "bad", f"{folder}: {error.strerror or error}", advice)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = f"{size(speed)}/s written and made durable; {1000 * seconds:.1f} ms for a small file, its rename and folder"
    values = {"bytes_per_second": round(speed), "small_seconds": seconds}
    if not kept:
        return Finding("file system", "bad", f"{folder}: read back otherwise than written", "use another disk", values)
    slow = seconds > SLOW_SAVE
    return Finding("file system", "warn" if slow else "ok", found, "checkpoints will be slow" if slow else "", values)


def limits() -> Iterator[Finding]:
    """Open files and shared memory, which data workers live on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < FEW_FILES
    advice = f"ulimit -n {min(hard, 65536)} in the shell, or train.workers = 0" if few else ""
    yield Finding("open files", "warn" if few else "ok", f"at most {soft}", advice, {"soft": soft, "hard": hard})
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < SMALL_SHM
        advice = "data workers hand over batches there (docker: --shm-size 2g), or train.workers = 0" if small else ""
        yield Finding("shared memory", "warn" if small else "ok", f"{size(free)} free in {shared}", advice)


def clock() -> Finding:
    """Times of runs and files come from it."""
    now, file_time = time.time(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
    wrong = now < EPOCH_2025
    return Finding("clock", "warn" if wrong else "ok", file_time, "it was never set: see ntp" if wrong else "")


def findings(folder: Path) -> Iterator[Finding]:
    """All of it."""
    yield processors()
    yield memory()
    yield from devices()
    yield disk(folder)
    yield file_system(folder)
    yield from limits()
    yield clock()
