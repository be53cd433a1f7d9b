"""A process that has imported everything and forks one child for each line it reads: 0.3 s a run in place of 10.

A line is JSON: {"args": [...], "log": path} and, where wanted,
  "faults": [{...}]           what shall go wrong in the child: see tests/faults/injections.py
  "environment": {...}        variables of the child, for ranks of one job
  "terminal": path            a terminal that becomes the child's own, so that Ctrl-C there reaches it
  "call": "module:function"   called with `args` in place of `diffunet ARGS`; what it gives is the exit code
The zygote answers each line with {"pid"}, and with {"pid", "code"} when a child ends (code < 0: that signal).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path

warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).parents[2]))

import sklearn.datasets  # noqa: E402, F401
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 (torch's optimizers import it when the first is made: a second of work)

from diffunet import training  # noqa: E402, F401
from diffunet.cli import main  # noqa: E402
from tests.faults import injections  # noqa: E402


def child(order: dict) -> None:
    """Run one order and end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # the first terminal that the leader of a session opens becomes its own
    os.dup2(os.open(order["terminal"] or os.devnull, os.O_RDWR), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    for fault in order["faults"]:
        injections.arm(**fault)
    act = main
    if order["call"]:
        module, name = order["call"].split(":")
        act = getattr(import_module(module), name)
    code = 1
    with contextlib.suppress(SystemExit):
        code = act(order["args"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(**answer: int) -> None:
    print(json.dumps(answer), flush=True)


def serve() -> None:
    """Fork for each line, and tell of each end, until the input ends."""
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    alive: set[int] = set()
    text = b""
    while True:
        ready = select.select([0, ended], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
        for pid in sorted(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                alive.remove(pid)
                say(pid=pid, code=os.waitstatus_to_exitcode(status))
        if 0 in ready:
            if not (data := os.read(0, 65536)):
                return
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    child(json.loads(line))
                alive.add(pid)
                say(pid=pid)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
