"""How far a verb is, on stderr: bars and a spinner where that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from octavo.cli.console import tell

if TYPE_CHECKING:
    from rich.progress import TaskID

    from octavo.verbs.signatures import NetworkProgress, Progress, StepProgress, TrainingProgress


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar on stderr, with the time left; nothing where stderr is no terminal.

    What is printed meanwhile appears above the bar where stdout is a terminal too, and else goes where it went.
    """
    if not sys.stderr.isatty():  # rich takes longer to import than a photograph to look at
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """show(name, done, total, text): a bar per name on stderr, or its text now and then where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        told = time.monotonic()

        def show(name: str, done: int, total: int, text: str) -> None:
            nonlocal told
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total, description=text)
            if not console.is_terminal and (done == total or time.monotonic() - told > 10):
                tell(f"{text}  {done}/{total}")
                told = time.monotonic()

        yield show


@contextmanager
def training_bars() -> Iterator[TrainingProgress]:
    """Bars for the samples and the training of each network, with its losses."""
    with bars() as show:

        def progress(network: str, done: int, total: int, losses: dict[str, float]) -> None:
            what = network if losses else f"{network} samples"
            show(
                what,
                done,
                total,
                " ".join([what, *(f"{name} {value:.4f}" for name, value in losses.items())]),
            )

        yield progress


@contextmanager
def step_bars() -> Iterator[StepProgress]:
    """A bar for each network that is looked at."""
    with bars() as show:
        yield lambda what, done, total: show(what, done, total, what)


@contextmanager
def spinner() -> Iterator[NetworkProgress]:
    """Network and count on stderr, while it is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda network, done: status.update(f"{network}: {done}")
