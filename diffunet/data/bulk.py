"""Many files decoded: in threads, in order, with few of them in memory at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from diffunet.data.decode import Plan, Unreadable, decode, limits

_MOST = 8  # threads
_GROUP = 2**18  # pixels that one task decodes, in at least one and at most 64 files


def _threads() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(_MOST, len(allowed))


def _groups(pixels: Sequence[int]) -> Iterator[range]:
    """The numbers of the files of each task."""
    first = total = 0
    for i, count in enumerate(pixels):
        if i > first and (total + count > _GROUP or i - first == 64):
            yield range(first, i)
            first, total = i, 0
        total += count
    if first < len(pixels):
        yield range(first, len(pixels))


def decode_many(paths: Sequence[str], pixels: Sequence[int], plan: Plan) -> Generator[np.ndarray | Unreadable]:
    """`decode` of each path, (C, H, W), in order, or why it cannot be; `pixels` says how many each file has.

    Threads help with large images, where Pillow's decoders run beside the interpreter. Close the iterator if it is not
    run to its end: Pillow's limits are set while it lives.

    Raises:
        DataError: another size than `plan.size`, or values that need data.value_range.
    """

    def task(group: range) -> list[np.ndarray | Unreadable]:
        found: list[np.ndarray | Unreadable] = []
        for i in group:
            try:
                found.append(decode(paths[i], plan))
            except Unreadable as error:
                found.append(error)
        return found

    threads, waiting = _threads(), deque[Future[list[np.ndarray | Unreadable]]]()
    with limits(plan.max_pixels), ThreadPoolExecutor(threads) as pool:
        try:
            for group in _groups(pixels):
                waiting.append(pool.submit(task, group))
                if len(waiting) > 2 * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
