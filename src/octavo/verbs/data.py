"""Is a data set whole, and what is in it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from octavo.models import tasks
from octavo.verbs.signatures import PathLike, Progress


def data(
    root: PathLike,
    split: str | None = None,
    sheet: PathLike | None = None,
    progress: Progress | None = None,
) -> Any:
    """Check a data set in the layout of any task; `sheet` is where to write a picture of samples.

    Returns the task's report: .ok, .findings(), .tables(), .to_dict(). ValueError where no task knows the layout.
    """
    return task_of_data(root).check(root, split, sheet, progress)


def task_of_data(root: PathLike) -> ModuleType:
    """The task whose layout a data set has. ValueError where there is none."""
    if not Path(root).is_dir():
        raise ValueError(f"{root} is no folder")
    known = tasks()
    for task in known:
        if task.recognises(root):
            return task
    layouts = "".join(f"\n       {task.LAYOUT}" for task in known)
    raise ValueError(f"{root} has none of the layouts that a data set can have:{layouts}")
