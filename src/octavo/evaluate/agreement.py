"""Do two models say the same of the same images? No annotation is asked: one model is held against the other.

    found      = pairs / boxes of the reference      how much of it the other finds too
    confirmed  = pairs / boxes of the other one      how much the other invents
    iou        = mean overlap of the pairs           scores, keypoints: how far apart within a pair

Boxes of one class are paired one to one within an image, the largest IoU first, from .5 on: each box has one partner
at most, so a face found twice is found once and invented once. Agreement says what average precision cannot: two models
with the same AP may fail on different faces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from octavo.boxes import area, iou
from octavo.outputs import Detections

IOU = 0.5  # as everywhere in octavo.evaluate


@dataclass(frozen=True)
class Agreement:
    """Two models on the same images. A mean over nothing is None."""

    images: int
    reference: int  # boxes
    other: int
    pairs: int
    found: float | None  # of the reference's boxes, 0 to 1
    confirmed: float | None  # of the other's boxes
    iou: float | None  # mean over pairs
    score_mean: float | None  # |difference| of the confidences, over pairs
    score_max: float | None
    keypoints: float | None  # mean distance over sqrt(w h) of the reference's box, as in landmarks.py

    @property
    def share(self) -> float | None:
        """The lower one of found and confirmed; 1 where both models found nothing anywhere, which is agreement."""
        if not (self.reference or self.other):
            return 1.0 if self.images else None
        return min(self.found or 0.0, self.confirmed or 0.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}

    def rows(self) -> list[tuple[Any, ...]]:
        """What is said, of the reference, of the other one, and of their pairs."""
        return [
            ("boxes reported", self.reference, self.other, None),
            ("found by the other too", _percent(self.found), _percent(self.confirmed), None),
            ("overlap of pairs, mean IoU", None, None, self.iou),
            ("confidence apart, mean", None, None, self.score_mean),
            ("confidence apart, largest", None, None, self.score_max),
            ("landmarks apart, mean, in face sizes", None, None, self.keypoints),
        ]

    def words(self) -> str:
        """What the other one found of the reference's boxes; "" where there are none."""
        if not self.reference:
            return ""
        if not self.pairs:
            return f"none of them the first model's {self.reference}"
        return f"{self.pairs} of the first model's {self.reference}; mean IoU with them {self.iou:.3f}"


def pair(
    reference: np.ndarray, other: np.ndarray, least: float = IOU, alike: np.ndarray | bool = True
) -> np.ndarray:
    """(k, 2) indices of boxes (n, 4) and (m, 4) that belong together, one to one, the largest IoU first.

    alike: (n, m) bool, which of them may.
    """
    overlap = iou(reference, other)
    rows, columns = np.nonzero((overlap >= least) & alike)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    taken, given = np.zeros(len(reference), bool), np.zeros(len(other), bool)
    pairs = []
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if not (taken[i] or given[j]):
            taken[i] = given[j] = True
            pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def measure(images: Iterable[tuple[Detections, Detections]], least: float = IOU) -> Agreement:
    """Agreement over images; each a pair: what the reference and what the other found in it.

    Keypoints are compared where both have them; a different number of points is a ValueError.
    """
    count = first = second = 0
    overlaps, scores, points = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for reference, other in images:
        count, first, second = count + 1, first + len(reference), second + len(other)
        alike = reference.class_id[:, None] == other.class_id
        a, b = pair(reference.xyxy, other.xyxy, least, alike).T
        overlaps.append(iou(reference.xyxy[a], other.xyxy[b]).diagonal())
        scores.append(np.abs(reference.confidence[a] - other.confidence[b]))
        if len(a) and reference.keypoints is not None and other.keypoints is not None:
            points.append(_distance(reference[a], other[b]))
    pairs = np.concatenate(overlaps)
    return Agreement(
        images=count,
        reference=first,
        other=second,
        pairs=len(pairs),
        found=len(pairs) / first if first else None,
        confirmed=len(pairs) / second if second else None,
        iou=_mean(pairs),
        score_mean=_mean(np.concatenate(scores)),
        score_max=float(np.concatenate(scores).max()) if len(pairs) else None,
        keypoints=_mean(np.concatenate(points)),
    )


def _distance(reference: Detections, other: Detections) -> np.ndarray:
    """(n,): mean distance of the keypoints of boxes that belong together, in sides of the reference's box."""
    assert reference.keypoints is not None
    assert other.keypoints is not None
    if reference.keypoints.shape != other.keypoints.shape:
        a, b = reference.keypoints.shape[1], other.keypoints.shape[1]
        raise ValueError(f"models with {a} and with {b} keypoints cannot be compared point by point")
    side = np.sqrt(np.maximum(area(reference.xyxy), np.finfo(np.float32).tiny))
    return np.linalg.norm(reference.keypoints - other.keypoints, axis=2).mean(axis=1) / side


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f} %"


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
