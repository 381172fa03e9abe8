"""Work on many items by several threads, results in order, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of work in the items' order, made by as many threads as there are cores, few of them ahead."""
    workers = os.cpu_count() or 1
    queue, source = [], iter(items)
    with ThreadPoolExecutor(workers) as threads:
        for item in islice(source, 2 * workers):
            queue.append(threads.submit(work, item))
        while queue:
            done = queue.pop(0).result()
            queue.extend(threads.submit(work, item) for item in islice(source, 1))
            yield done
