"""The `diffunet` program: one file a subcommand, one table of them, one place where errors become exit codes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import typer
from typer.exceptions import TyperException

from diffunet.errors import ConfigError, StorageError, UserError
from diffunet.storage import DISK_TROUBLE
from diffunet.table import choose

# subcommand -> module that holds a function of the same name; imported only when it is called
COMMANDS = {
    "train": "diffunet.cli.train",
    "sample": "diffunet.cli.sample",
    "ema": "diffunet.cli.ema",
    "evaluate": "diffunet.cli.evaluate",
    "segment": "diffunet.cli.segment",
    "restore": "diffunet.cli.restore",
    "convert": "diffunet.cli.convert",
    "inspect": "diffunet.cli.inspect",
    "verify": "diffunet.cli.verify",
    "watch": "diffunet.cli.watch",
    "doctor": "diffunet.cli.doctor",
}
SUMMARY = """usage: diffunet COMMAND ...

  train CONFIG.toml    train a model, or go on with a run
  sample RUN           draw images from a run or a weights file
  ema RUN              make averages of the weights, of any length, after training
  evaluate RUN         measure a run against images that it never saw
  segment RUN IMAGE... find the class of every pixel with a segmentation run
  restore RUN IMAGE... undo noise, holes, blur, lost pixels or lost colour with a diffusion run
  convert SRC DST      convert weights from and to other projects, ONNX and torch.export
  inspect NETWORK      count and measure a preset, config or run: cost, memory, receptive field, a drawing
  verify [RUN]         hold every sampler against data whose right answers are known
  watch RUN            show how a running job does, or write its report.html
  doctor               look at this machine; with --resume-test CONFIG prove that a killed run loses nothing

examples:
  diffunet train configs/digits.toml
  diffunet sample runs/digits --n 64 --class 3 --guidance 2
  diffunet evaluate runs/digits

`diffunet COMMAND --help` shows a command's options. Every command takes --json and --debug.
exit codes: 0 done, 2 usage or config, 3 data, 4 checkpoint, 5 storage, 6 numbers wrong or not finite, 7 unsafe file,
  8 out of memory, 9 a worker died, 75 preempted, 130 or 143 stopped by a signal with the state saved"""


def _run(arguments: list[str]) -> int:
    """The exit code of a command that came to its end."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(SUMMARY)
        return 0
    if arguments[0] == "--version":
        from diffunet import __version__

        print(f"diffunet {__version__}")
        return 0
    name = choose("command", arguments[0], COMMANDS)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    module = import_module(COMMANDS[name])
    app.command(context_settings=getattr(module, "CONTEXT", {}))(getattr(module, name))
    code = typer.main.get_command(app).main(arguments[1:], prog_name=f"diffunet {name}", standalone_mode=False)
    if code == 130:  # typer makes a return value of Ctrl-C
        raise KeyboardInterrupt
    return int(code or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code. Messages go to stderr, results to stdout."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        failure: UserError = error
    except (KeyboardInterrupt, typer.Abort):
        print("diffunet: stopped", file=sys.stderr)
        return 130
    except TyperException as error:
        failure = ConfigError(f"{error}; see diffunet {arguments[0]} --help")
    except (BrokenPipeError, SystemExit):
        # whoever read our output has gone (typer makes an exit of it); nothing is left to say to them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        failure = StorageError(f"{error.filename or 'a disk'}: {error.strerror}; check the disk and try again")
    if "--debug" in arguments:
        traceback.print_exception(failure)
    if "--json" in arguments:
        print(json.dumps({"error": failure.code, "exit_code": failure.exit_code, "message": str(failure)}))
    print(f"diffunet: error[{failure.code}]: {failure}", file=sys.stderr)
    return failure.exit_code


def console() -> None:
    """Entry point of the installed program."""
    sys.exit(main())
