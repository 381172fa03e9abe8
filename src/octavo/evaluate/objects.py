"""The task of finding objects of many classes: data sets in the layout of COCO, mean average precision.

The figures are those of pycocotools, COCO's own: AP is the mean over classes and over the overlaps .50, .55, ... .95
from which on a box counts as found; 100 boxes an image at most. AP50 is that of the overlap .5 alone. pycocotools is
the extra `coco`. What each function is for, octavo/evaluate/__init__.py says.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octavo.data.coco import SPLITS, Entry, read, splits
from octavo.data.coco_check import check
from octavo.evaluate import charts
from octavo.evaluate.agreement import measure as agreement
from octavo.folder import write_json
from octavo.outputs import Detections

__all__ = ["SPLITS", "agreement", "check", "read"]  # and all that is defined here

UNIT = "objects"
YARDSTICK = "AP"
ERROR = ""
WHOLE = ("all", "AP50", "AP75")
LAYOUT = "COCO: annotations/instances_{train,val}2017.json and images/{train,val}2017/NAME.jpg"
# What pycocotools calls its first six figures, then the recall at 1, 10 and 100 boxes an image.
SIZES = ("small", "medium", "large")
RECALL = "recall"  # with 100 boxes an image


def recognises(root: str | Path) -> bool:
    return bool(splits(root))


def count(entries: Sequence[Entry]) -> int:
    return int(sum((~entry.crowd).sum() for entry in entries))


def nothing() -> Detections:
    return Detections.empty()


def measure(entries: Sequence[Entry], found: Mapping[str, Detections]) -> dict[str, Any]:
    """ "ap" {"all", "AP50", "AP75"}, "ap_by_size" {"small" (below 32x32 pixels), "medium", "large" (from 96x96)},
    "ap_by_class" {class: AP} where an object of it is annotated, "recall".

    "curves" {overlap: recall, precision} are means over classes. Sizes without an object are left out.
    """
    return figures(coco_eval(entries, found), entries[0].classes)


def coco_eval(entries: Sequence[Entry], found: Mapping[str, Detections]) -> Any:
    """pycocotools' COCOeval of {entry.name: Detections}, accumulated."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ValueError("COCO's average precision needs pycocotools: pip install 'octavo[coco]'") from None
    if not count(entries):
        raise ValueError(f"{len(entries)} images without a single object: there is nothing to measure")
    known = len(entries[0].classes)
    results = []
    for entry in entries:
        own = found.get(entry.name, nothing())
        if len(own) and own.class_id.max() >= known:
            raise ValueError(
                f"the model found an object of class {own.class_id.max()}, and the data set has only {known} classes"
            )
        results += own.to_coco(entry.image_id)  # category: class + 1
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth, predicted = COCO(), COCO()
        truth.dataset = as_coco(entries)
        truth.createIndex()
        predicted.dataset = truth.dataset | {"annotations": _numbered(results)}
        predicted.createIndex()
        judge = COCOeval(truth, predicted, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def as_coco(entries: Sequence[Entry]) -> dict[str, Any]:
    """The annotations as COCO's JSON has them; a category's id is the class + 1."""
    annotations: list[dict[str, Any]] = []
    for entry in entries:
        corners = entry.xyxy.astype(np.float64)
        boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        for box, label, crowd, area in zip(
            boxes.tolist(), entry.class_id.tolist(), entry.crowd.tolist(), entry.area.tolist(), strict=True
        ):
            annotations.append(
                {"image_id": entry.image_id, "category_id": label + 1, "bbox": box, "iscrowd": int(crowd)}
                | {"area": area, "id": len(annotations) + 1}
            )
    images = [
        {"id": e.image_id, "file_name": e.name, "width": e.size[0], "height": e.size[1]} for e in entries
    ]
    names = [{"id": place + 1, "name": name} for place, name in enumerate(entries[0].classes)]
    return {"images": images, "annotations": annotations, "categories": names}


def _numbered(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What COCO.loadRes adds to results: an id from 1 on, area, iscrowd."""
    return [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, 1)
    ]


def figures(judge: Any, classes: Sequence[str]) -> dict[str, Any]:
    """What `measure` returns, from an accumulated COCOeval."""
    stats = [float(value) for value in judge.stats]  # -1: there was no such object
    precision = judge.eval["precision"][
        :, :, :, 0, -1
    ]  # (overlaps, recalls 0, .01, ... 1, classes); -1: none
    present = (precision > -1).all((0, 1))
    curves = {
        f"IoU {overlap:g}": {
            "recall": judge.params.recThrs.round(6).tolist(),
            "precision": precision[place][:, present].mean(1).round(6).tolist(),
        }
        for place, overlap in ((0, 0.5), (5, 0.75))
    }
    return {
        "ap": dict(zip(WHOLE, stats[:3], strict=True)),
        "ap_by_size": {name: value for name, value in zip(SIZES, stats[3:6], strict=True) if value >= 0},
        "ap_by_class": {
            name: float(precision[:, :, place].mean()) for place, name in enumerate(classes) if present[place]
        },
        RECALL: stats[8],
        "curves": curves,
    }


def headline(measured: Mapping[str, Any]) -> dict[str, float]:
    return dict(measured["ap"])


def errors(measured: Mapping[str, Any]) -> dict[str, float | None]:
    return {}


def tables(measured: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    ap = measured["ap"]
    whole = [("AP, IoU .50 to .95", ap["all"]), ("AP50", ap["AP50"]), ("AP75", ap["AP75"])]
    return [
        (("all classes", "value"), [*whole, ("recall, 100 boxes an image", measured[RECALL])]),
        (("object size, 32 and 96 px", "AP"), list(measured["ap_by_size"].items())),
    ]


def chart(measured: Mapping[str, Any], path: str | Path, title: str) -> None:
    """Precision against recall at two overlaps, means over classes."""
    lines = {name: (curve["recall"], curve["precision"]) for name, curve in measured["curves"].items()}
    charts.precision_recall(lines, path, title)


def write(folder: str | Path, entries: Sequence[Entry], found: Mapping[str, Detections]) -> None:
    """results.json, as COCO's tools read it."""
    rows = [row for entry in entries for row in found[entry.name].to_coco(entry.image_id, entry.categories)]
    write_json(Path(folder) / "results.json", rows)
