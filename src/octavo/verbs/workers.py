"""The same work in several processes: results in the order of the items, few items under way at a time.

Each process is a fresh interpreter (spawn: none inherits a runtime's threads half-way) which opens what it needs
itself; items and results travel through pipes. At most AHEAD items per process are under way, so that memory stays
the same however long the stream is. A process that dies is an error that names what it may have died of, and
processes whose parent has died go too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # items under way per process: one in work, the others so that none waits for a slow neighbour
REPAID = 50  # images that repay the start of a process: half a second, at some 10 ms an image


class WorkerDied(RuntimeError):
    """A process ended in the middle of its work: killed, out of memory, or crashed in a library."""


def worth(images: int, threads: int) -> int:
    """Processes of so many threads that pay for this many images: one for few, at most one per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, images // REPAID))


def in_order(
    opens: Callable[[], Callable[[T], R]], items: Iterable[T], processes: int, name: Callable[[T], str]
) -> Iterator[R]:
    """work(item) for every item, in order, where each process makes its own `work = opens()`.

    opens, items and results are pickled. name says what an item is, should a process die of it.
    """
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(opens,))
    under_way: deque[tuple[str, Future[R]]] = deque()
    finished = 0
    try:
        for item in items:
            under_way.append((name(item), pool.submit(_do, item)))
            while under_way and (len(under_way) >= AHEAD * processes or under_way[0][1].done()):
                yield under_way[0][1].result()
                under_way.popleft()
                finished += 1
        while under_way:
            yield under_way[0][1].result()
            under_way.popleft()
            finished += 1
    except BrokenProcessPool:
        raise WorkerDied(_obituary([name for name, _ in under_way], finished)) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _obituary(names: list[str], finished: int) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    text = f"a worker process died (killed, or out of memory?) at one of: {', '.join(names[:3])}{more}."
    if finished:
        return f"{text} What was done before is kept; with fewer processes each has more memory."
    return f"{text} In a script, what starts processes has to stand below `if __name__ == '__main__':`."


_work: Callable[[Any], Any]


def _start(opens: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the parent's answer is enough
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = opens()


def _do(item: Any) -> Any:
    return _work(item)


def _end_with_parent() -> None:
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
