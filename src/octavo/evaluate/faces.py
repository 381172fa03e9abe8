"""The task of finding faces: data sets in the layout of WIDER FACE, average precision, landmark error.

What each function is for, octavo/evaluate/__init__.py says; the protocols stand in widerface.py, events.py and
landmarks.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from octavo.data.check import check
from octavo.data.widerface import SPLITS, Entry, read, splits
from octavo.evaluate import charts, events, landmarks, widerface
from octavo.evaluate.agreement import measure as agreement
from octavo.evaluate.events import scores
from octavo.evaluate.widerface import Curve, GroundTruth
from octavo.evaluate.widerface import read_ground_truth as ground_truth
from octavo.outputs import Detections, write_wider

__all__ = ["SPLITS", "agreement", "check", "ground_truth", "read", "scores"]  # and all that is defined here

UNIT = "faces"
YARDSTICK = "AP"
ERROR = "landmark"
SUBSETS = ("easy", "medium", "hard")  # of the benchmark, where its ground truth is given
WHOLE = ("all", *SUBSETS)
LAYOUT = "WIDER FACE: wider_face_split/wider_face_{train,val}_bbx_gt.txt and WIDER_{train,val}/images/EVENT/NAME.jpg"


def recognises(root: str | Path) -> bool:
    return bool(splits(root))


def count(entries: Sequence[Entry]) -> int:
    return int(sum((~entry.invalid).sum() for entry in entries))


def nothing() -> Detections:
    return Detections.empty()


def measure(
    entries: Sequence[Entry], found: Mapping[str, Detections], truth: GroundTruth | None = None
) -> dict[str, Any]:
    """ "ap" {event: AP, ..., "all"}, "ap_by_size", "landmarks" {event: nme, found, faces}, and with the benchmark's
    ground truth "easy", "medium", "hard".

    "curves" {event or subset: recall, precision} are stairs under which AP is the area; "landmark_errors" are the
    least, the 1st, ..., the 100th hundredth of the errors of the found faces.
    """
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
    return measured


def _hundredths(error: np.ndarray | None) -> list[float]:
    """Quantiles 0, .01, ... 1 of errors, NaN left out; [] of none."""
    if error is None or np.isnan(error).all():
        return []
    return np.nanquantile(error, np.linspace(0, 1, 101)).round(6).tolist()


def _rounded(curve: Curve) -> dict[str, list[float]]:
    recall, precision = curve.steps()
    return {"recall": recall.round(6).tolist(), "precision": precision.round(6).tolist()}


def headline(measured: Mapping[str, Any]) -> dict[str, float]:
    return {**measured["ap"], **{name: measured[name] for name in SUBSETS if name in measured}}


def errors(measured: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: of["nme"] for name, of in measured.get("landmarks", {}).items()}


def tables(measured: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    error = errors(measured)
    made: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = [
        (
            ("event", "AP", "landmark error"),
            [(name, ap, error.get(name)) for name, ap in measured["ap"].items()],
        ),
        (("face size, px", "AP"), list(measured["ap_by_size"].items())),
    ]
    if subsets := [(name, measured[name]) for name in SUBSETS if name in measured]:
        made.append((("WIDER FACE", "AP"), subsets))
    return made


def chart(measured: Mapping[str, Any], path: str | Path, title: str) -> None:
    """Precision against recall, a line for each event and subset."""
    aps = headline(measured)
    lines = {
        f"{name}, AP {aps[name]:.3f}": (curve["recall"], curve["precision"])
        for name, curve in measured["curves"].items()
    }
    charts.precision_recall(lines, path, title)


def write(folder: str | Path, entries: Sequence[Entry], found: Mapping[str, Detections]) -> None:
    """EVENT/NAME.txt, as the benchmark's tools read them."""
    for entry in entries:
        write_wider((Path(folder) / entry.name).with_suffix(".txt"), entry.name, found[entry.name])


def predicted(folder: str | Path, entries: Sequence[Entry]) -> dict[str, Detections]:
    """What `write` wrote, or another tool in the same form; nothing where an image has no file, with a warning."""
    rows, notes = widerface.read_predictions(folder, [entry.name for entry in entries])
    for text in notes:
        warnings.warn(text, stacklevel=2)
    return {
        entry.name: Detections(row[:, :4], row[:, 4], np.zeros(len(row), np.int64))
        for entry, row in zip(entries, rows, strict=True)
    }
