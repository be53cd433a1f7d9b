"""A process that has imported everything and forks one child for each line it reads: 0.3 s a run in place of 10.

A line is JSON: {"args": [...], "log": path, "event": n or null}. The child runs `diffunet ARGS`, its output going to
`log`; where `event` is given it kills itself by SIGKILL at its n-th file-system event inside a checkpoint write. The
zygote answers each line with the child's pid, and later a line {"pid", "code"} when it ends (code < 0: that signal).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import warnings

warnings.simplefilter("ignore")

import sklearn.datasets  # noqa: E402, F401
import torch  # noqa: E402

from diffunet import training  # noqa: E402, F401
from diffunet.cli import main  # noqa: E402
from diffunet.training import checkpoint  # noqa: E402

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.chmod", "os.listdir"}


def die_at(wanted: int) -> None:
    """Arm an audit hook that ends this process at its `wanted`-th file-system event inside a checkpoint's write."""
    inside, count = threading.Event(), 0
    write, rotate = checkpoint.write, checkpoint.rotate

    def watched(function):
        def call(*args, **options):
            inside.set()
            try:
                return function(*args, **options)
            finally:
                inside.clear()

        return call

    checkpoint.write, checkpoint.rotate = watched(write), watched(rotate)

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and inside.is_set():
            count += 1
            if count == wanted:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(order: dict) -> None:
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order.get("event"):
        die_at(order["event"])
    code = 1
    with contextlib.suppress(SystemExit):
        code = main(order["args"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        reap(pid)
