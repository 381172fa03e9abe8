"""How good a model is on a data set; how good given predictions are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import part, task
from octavo.verbs.data import task_of_data
from octavo.verbs.model import Model, load
from octavo.verbs.predict import look
from octavo.verbs.recipe import start_of
from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    from octavo.evaluate import Entry
    from octavo.outputs import Output


def evaluate(
    model: Model | PathLike,
    data: PathLike,
    *,
    split: str = "val",
    images: int | None = None,
    ground_truth: PathLike | None = None,
    save_predictions: PathLike | None = None,
    chart: PathLike | None = None,
    backend: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The figures of a model's task on a data set in the layout of the task, with all they depend on.

    What they are, the task's `measure` says: octavo/evaluate/faces.py for a family whose TASK is "faces".
    ground_truth: files of the task's benchmark, for its own figures on top. What a threshold cuts off can't be found:
    with neither thresholds nor a confidence given, they are the family's MEASURING. Images that can't be read count
    as if nothing was found, and are listed in "errors". images: only so many, evenly from the first to the last.
    save_predictions: a folder for what was found, in the format of the task's tools. chart: where to draw what was
    measured, as PNG or SVG.
    """
    from octavo.evaluate import charts

    if chart:
        charts.check(chart)
    opened = model if isinstance(model, Model) else load(model, backend, threads)
    what = opened.task
    for wanted in ("chart", "ground_truth"):
        if {"chart": chart, "ground_truth": ground_truth}[wanted] and not hasattr(what, wanted):
            raise ValueError(
                f"{opened.name} reads {what.UNIT}, and of those there is no {wanted}: leave it out"
            )
    if settings.get("thresholds") is None and settings.get("confidence") is None:
        given = {name: value for name, value in settings.items() if value is not None}
        settings = part(opened.info["family"], "predict").MEASURING | given
    chosen = opened.settings(**settings)
    if images and ground_truth:
        raise ValueError(f"the benchmark counts the {what.UNIT} of all images: not with only some of them")
    truth = [what.ground_truth(ground_truth)] if ground_truth else []
    entries = _spread(what.read(data, split), images)
    found: dict[str, Output] = {}
    errors: dict[str, str] = {}
    start = time.perf_counter()
    for done, entry in enumerate(entries, 1):
        result = look(opened, str(entry.path), settings)
        if result.error:
            errors[entry.name] = result.error
        found[entry.name] = replace(result.found, image=None) if result.found else what.nothing()
        if progress:
            progress(done, len(entries))
    seconds = time.perf_counter() - start
    if save_predictions:
        what.write(save_predictions, entries, found)
    measured = what.measure(entries, found, *truth)
    if chart:
        what.chart(measured, chart, opened.name)
    return {
        "model": opened.name,
        "variant": opened.info["variant"],
        "precision": opened.info["precision"],
        "backend": opened.backend,
        "data": str(data),
        "split": split,
        "images": len(entries),
        what.UNIT: what.count(entries),
        "settings": chosen.to_dict(),
        **measured,
        "seconds": seconds,
        "errors": errors,
    } | folder.provenance()


def task_of(model: PathLike) -> ModuleType:
    """The task of a variant or of a model folder: what its figures mean."""
    return task(start_of(model).family)


def _spread(entries: Sequence[Entry], count: int | None) -> Sequence[Entry]:
    """At most `count` entries, evenly from the first to the last; all of them for None."""
    if count is None or count >= len(entries):
        return entries
    return [entries[i * len(entries) // count] for i in range(count)]


def judge(predictions: PathLike, ground_truth: PathLike) -> dict[str, float]:
    """AP "easy", "medium", "hard" of a folder EVENT/NAME.txt of predictions in WIDER FACE's text format."""
    from octavo.evaluate import widerface

    return widerface.evaluate(Path(predictions), Path(ground_truth))


def judge_on(predictions: PathLike, data: PathLike, *, split: str = "val") -> dict[str, Any]:
    """The figures of given predictions on a data set's own annotation, as `evaluate` gives those of a model.

    predictions: what `evaluate` writes with save_predictions, or another tool in that form. ValueError where the
    data set's task has no such form that could be read.
    """
    what = task_of_data(data)
    if not hasattr(what, "predicted"):
        raise ValueError(
            f"predictions of {what.UNIT} can be written, but not read again: give a model instead"
        )
    entries = what.read(data, split)
    measured = what.measure(entries, what.predicted(predictions, entries))
    return {
        "predictions": str(predictions),
        "data": str(data),
        "split": split,
        "images": len(entries),
        what.UNIT: what.count(entries),
        **measured,
    } | folder.provenance()
