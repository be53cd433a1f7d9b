"""Seeing a run: its files read, judged, and made into one HTML page (`report.html`) or a view for a terminal.

Everything is made from the files of the run folder alone, so it works for any old run and from any host.
"""

from __future__ import annotations

import time
from pathlib import Path

from diffunet import __version__
from diffunet.report.page import page
from diffunet.report.reading import Run, read_run
from diffunet.report.sections import Report
from diffunet.report.summary import summarize, verdict_of
from diffunet.storage import write_file

__all__ = ["Run", "Writer", "read_run", "summarize", "write"]

SHARE = 0.01  # of a run's time that its reports may take


def write(path: Path) -> Path:
    """Make RUN/report.html anew; gives its path.

    Args:
        path: a run folder.

    Raises:
        StorageError: it cannot be written.
    """
    run, now = read_run(path), time.time()
    made = f"diffunet {__version__}, {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(now))}"
    target = path / "report.html"
    write_file(target, page(Report(run, summarize(run, now), verdict_of(run)), made).encode("utf-8", "replace"))
    return target


class Writer:
    """Reports of a run that goes on, so seldom that they take no more than `SHARE` of its time.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cost, self.ended = 2.0, time.perf_counter()  # the first one may come once it can be paid for

    def __call__(self) -> bool:
        """Write the report where one is due; says whether it was.

        Raises:
            StorageError: it cannot be written.
        """
        begun = time.perf_counter()
        if begun - self.ended < self.cost / SHARE:
            return False
        try:
            write(self.path)
        finally:  # one that failed had its price too
            self.ended = time.perf_counter()
            self.cost = self.ended - begun
        return True
