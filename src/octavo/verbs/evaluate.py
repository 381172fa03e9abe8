"""How good a model is on a data set; how good given predictions are."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import part
from octavo.verbs.model import Model, load
from octavo.verbs.predict import look
from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    import numpy as np

    from octavo.data.widerface import Entry
    from octavo.evaluate.widerface import Curve
    from octavo.outputs import Detections


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
    """Average precision and landmark error on a data set in WIDER FACE layout, with all they depend on.

    "ap" {event: AP, ..., "all"}, "ap_by_size", "landmarks" {event: nme, found, faces}; with `ground_truth`,
    the benchmark's folder of .mat files, also "easy", "medium", "hard". "curves" {event or subset: recall, precision}
    are stairs under which AP is the area; "landmark_errors" are the least, the 1st, ..., the 100th hundredth of the
    errors of the found faces. What a threshold cuts off can't be found: with neither thresholds nor a confidence
    given, they are the family's MEASURING. Images that can't be read count as if nothing was found, and are listed
    in "errors". images: only so many, evenly from the first to the last.
    chart: where to draw the curves, as PNG or SVG.
    """
    from octavo.data.widerface import read
    from octavo.evaluate import charts, events, landmarks, widerface
    from octavo.outputs import Detections, write_wider

    if chart:
        charts.check(chart)
    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if settings.get("thresholds") is None and settings.get("confidence") is None:
        settings |= part(opened.info["family"], "predict").MEASURING
    chosen = opened.settings(**settings)
    if images and ground_truth:
        raise ValueError("easy, medium and hard count the faces of all images: not with only some of them")
    truth = widerface.read_ground_truth(ground_truth) if ground_truth else None
    entries = _spread(read(data, split), images)
    found: dict[str, Detections] = {}
    errors: dict[str, str] = {}
    start = time.perf_counter()
    for done, entry in enumerate(entries, 1):
        result = look(opened, str(entry.path), settings)
        if result.error:
            errors[entry.name] = result.error
        found[entry.name] = replace(result.found, image=None) if result.found else Detections.empty()
        if save_predictions:
            file = (Path(save_predictions) / entry.name).with_suffix(".txt")
            write_wider(file, entry.name, found[entry.name])
        if progress:
            progress(done, len(entries))
    seconds = time.perf_counter() - start
    curves = events.curves(entries, found)
    measured: dict[str, Any] = {
        "ap": {name: curve.ap for name, curve in curves.items()},
        "ap_by_size": events.by_size(entries, found),
    }
    if any(len(d) and d.keypoints is not None for d in found.values()):
        distances = landmarks.errors(entries, found)
        measured["landmarks"] = {name: asdict(landmarks.summed(error)) for name, error in distances.items()}
        measured["landmark_errors"] = _hundredths(distances.get("all"))
    if truth:
        benchmark = widerface.measure(found, truth)
        for text in benchmark.warnings:
            warnings.warn(text, stacklevel=2)
        measured |= benchmark.ap
        curves |= benchmark.curves
    measured["curves"] = {name: _rounded(curve) for name, curve in curves.items()}
    if chart:
        named = {f"{name}, AP {curve.ap:.3f}": curve.steps() for name, curve in curves.items()}
        charts.precision_recall(named, chart, opened.name)
    return {
        "model": opened.name,
        "variant": opened.info["variant"],
        "precision": opened.info["precision"],
        "backend": opened.backend,
        "data": str(data),
        "split": split,
        "images": len(entries),
        "faces": int(sum((~entry.invalid).sum() for entry in entries)),
        "settings": chosen.to_dict(),
        **measured,
        "seconds": seconds,
        "errors": errors,
    } | folder.provenance()


def _spread(entries: list[Entry], count: int | None) -> list[Entry]:
    """At most `count` entries, evenly from the first to the last; all of them for None."""
    if count is None or count >= len(entries):
        return entries
    return [entries[i * len(entries) // count] for i in range(count)]


def _hundredths(error: np.ndarray | None) -> list[float]:
    """Quantiles 0, .01, ... 1 of errors, NaN left out; [] of none."""
    import numpy as np

    if error is None or np.isnan(error).all():
        return []
    return np.nanquantile(error, np.linspace(0, 1, 101)).round(6).tolist()


def _rounded(curve: Curve) -> dict[str, list[float]]:
    recall, precision = curve.steps()
    return {"recall": recall.round(6).tolist(), "precision": precision.round(6).tolist()}


def judge(predictions: PathLike, ground_truth: PathLike) -> dict[str, float]:
    """AP "easy", "medium", "hard" of a folder EVENT/NAME.txt of predictions in WIDER FACE's text format."""
    from octavo.evaluate import widerface

    return widerface.evaluate(Path(predictions), Path(ground_truth))
