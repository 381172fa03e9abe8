"""How good a model is on a data set; how good given predictions are."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import part
from octavo.verbs.model import Model, load
from octavo.verbs.predict import look
from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    from octavo.outputs import Detections


def evaluate(
    model: Model | PathLike,
    data: PathLike,
    *,
    split: str = "val",
    ground_truth: PathLike | None = None,
    save_predictions: PathLike | None = None,
    backend: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Average precision and landmark error on a data set in WIDER FACE layout, with all they depend on.

    "ap" {event: AP, ..., "all"}, "ap_by_size", "landmarks" {event: nme, found, faces}; with `ground_truth`,
    the benchmark's folder of .mat files, also "easy", "medium", "hard". What a threshold cuts off can't be
    found: with neither thresholds nor a confidence given, they are the family's MEASURING. Images that can't be read
    count as if nothing was found, and are listed in "errors".
    """
    from octavo.data.widerface import read
    from octavo.evaluate import events, landmarks, widerface
    from octavo.outputs import Detections, write_wider

    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if settings.get("thresholds") is None and settings.get("confidence") is None:
        settings |= part(opened.info["family"], "predict").MEASURING
    chosen = opened.settings(**settings)
    entries = read(data, split)
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
    measured: dict[str, Any] = {
        "ap": events.by_event(entries, found),
        "ap_by_size": events.by_size(entries, found),
    }
    if any(len(d) and d.keypoints is not None for d in found.values()):
        measured["landmarks"] = {k: asdict(v) for k, v in landmarks.measure(entries, found).items()}
    if ground_truth:
        measured |= widerface.evaluate(found, ground_truth)
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


def judge(predictions: PathLike, ground_truth: PathLike) -> dict[str, float]:
    """AP "easy", "medium", "hard" of a folder EVENT/NAME.txt of predictions in WIDER FACE's text format."""
    from octavo.evaluate import widerface

    return widerface.evaluate(Path(predictions), Path(ground_truth))
