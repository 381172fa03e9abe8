"""What models are for, and how good they are at it: a task is a module here, found by the name in `TASK`.

A family's predict.py says TASK = "faces"; the verbs ask octavo/evaluate/faces.py, and know no task by name. A task has
no torch and answers:

    UNIT        "faces": what the images hold, for counts and messages
    YARDSTICK   "AP": the headline figure, 0 to 1, higher is better; in small letters it is the word for `--by`
    ERROR       "landmark": what `errors` are of, "" for a task that has none
    WHOLE       ("all", ...): the names among the headlines that stand for a whole data set
    LAYOUT      what a data set looks like, one line
    SPLITS      ("train", "val"): what a data set can be divided into

    recognises(root)             whether a folder is such a data set
    read(root, split)            entries, each with .path, .name (unique) and its annotation
    count(entries)               how many units are annotated and count
    check(root, split, sheet, progress)   what `octavo data` says: .ok, .findings(), .tables(), .to_dict()

    nothing()                    what counts where an image can't be read
    measure(entries, found)      {name: result} -> plain data, the task's part of what `octavo evaluate` returns
    headline(measured)           {"all": ..., event or class: ...}, by the yardstick
    errors(measured)             {"all": ..., ...}, lower is better, None where there is none; {} without ERROR
    tables(measured)             [(columns, rows)] as people read them
    agreement(pairs)             of two models on the same images: .share, .rows(), .words(), .to_dict()
    write(folder, entries, found)   predictions as the benchmark's tools read them

Only where there is such a thing, and else the verbs say that there is none:

    scores(entries, found)       tuning.Scores: the yardstick, precision and recall of what is reported
    chart(measured, path, title) a picture of what was measured
    ground_truth(place)          the benchmark's own files, which `measure` then takes as a third argument
    predicted(folder, entries)   {name: result} of what `write` wrote, or another tool in that form
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol


class Entry(Protocol):
    """An image of a data set; its annotation is its task's."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...


def task(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
