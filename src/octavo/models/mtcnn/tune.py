"""The cascade replayed: the networks look once at an image, then any thresholds and NMS are tried without them.

    trace    every P-Net cell that any of the wanted settings could propose -> what R-Net and O-Net say of it
    replay   thresholds and NMS over these answers: the same Detections as predict, in about a millisecond

What a network says of a window does not depend on the other windows, only whether it is asked does. Within one
stage a threshold may be applied after NMS instead of before: greedy NMS goes down the scores, so what lies below a
threshold never drops anything above it. Across stages it may not: R-Net's NMS depends on what P-Net's let through.
So a trace is made with the lowest thresholds and every wanted NMS of P-Net, but without R-Net's and O-Net's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from octavo.boxes import nms, square
from octavo.evaluate.tuning import Axis
from octavo.outputs import Detections

from .predict import Network, Settings, landmarks, logit, look, move, probability, proposed, scan

AXES = (
    Axis("P-Net", "thresholds", 0),
    Axis("R-Net", "thresholds", 1),
    Axis("O-Net", "thresholds", 2, reports=True),
    Axis("NMS within a level", "nms", 0, alone=True),
    Axis("NMS across levels", "nms", 1, alone=True),
    Axis("NMS after R-Net", "nms", 2, alone=True),
    Axis("NMS after O-Net", "nms", 3, alone=True),
)


@dataclass(frozen=True, eq=False)
class Trace:
    """All that the networks say of an image. A row is a P-Net cell with its window and box, n of them.

    order       (P-Net's two NMS) -> rows that it proposes, surest first
    margin      (3, n) difference of the logits of P-, R- and O-Net; minus infinity where one was not asked
    refined     (n, 4) R-Net's boxes
    boxes       (n, 4) O-Net's boxes; keypoints (n, 5, 2)
    lowest      thresholds of P- and R-Net down to which the answers go
    """

    order: dict[tuple[float, float], np.ndarray]
    margin: np.ndarray
    refined: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    lowest: tuple[float, float]
    wanted: Settings  # whose min_face and factor the pyramid has


def trace(image: np.ndarray, run: Mapping[str, Network], wanted: Iterable[Settings]) -> Trace:
    """Look at an image (h, w, 3) uint8 RGB so that settings with any combination of these values can be replayed."""
    wanted = list(wanted)
    if len({(settings.min_face, settings.factor) for settings in wanted}) != 1:
        raise ValueError("a trace is of one pyramid: settings of one min_face and one factor are wanted")
    lowest = (min(s.thresholds[0] for s in wanted), min(s.thresholds[1] for s in wanted))
    pairs = list(product(sorted({s.nms[0] for s in wanted}), sorted({s.nms[1] for s in wanted})))
    loosest = replace(wanted[0], thresholds=(*lowest, 0))

    found = scan(image, run["pnet"], loosest)
    kept = {pair: proposed(found, *pair) for pair in pairs}
    rows = np.unique(np.concatenate([*kept.values(), np.empty(0, np.intp)]))
    order = {pair: np.searchsorted(rows, of_pair) for pair, of_pair in kept.items()}
    found = found[rows]
    margins = np.full((3, len(rows)), -np.inf, np.float32)
    margins[0] = found.scores

    windows = np.rint(square(found.boxes))
    face, offsets = look(image, windows, run["rnet"], 24, (2, 4))
    margins[1] = face[:, 1] - face[:, 0]
    boxes, keypoints = np.zeros((len(rows), 4), np.float32), np.zeros((len(rows), 5, 2), np.float32)

    refined = move(windows, offsets)
    passed = np.flatnonzero(margins[1] > logit(lowest[1]))
    closer = np.rint(square(refined[passed]))
    face, offsets, points = look(image, closer, run["onet"], 48, (2, 4, 10))
    margins[2, passed] = face[:, 1] - face[:, 0]
    boxes[passed], keypoints[passed] = move(closer, offsets), landmarks(closer, points)
    return Trace(order, margins, refined, boxes, keypoints, lowest, loosest)


def replay(trace: Trace, settings: Settings) -> tuple[Detections, dict[str, int]]:
    """What predict finds with these settings, without the image; and how many windows each network looks at."""
    first, second, third = map(logit, settings.thresholds)
    rows = _order(trace, settings)
    rows = rows[trace.margin[0, rows] > first]
    seen = {"rnet": len(rows)}
    rows = rows[trace.margin[1, rows] > second]
    rows = rows[nms(trace.refined[rows], trace.margin[1, rows], settings.nms[2])]
    seen["onet"] = len(rows)
    rows = rows[trace.margin[2, rows] > third]
    rows = rows[nms(trace.boxes[rows], trace.margin[2, rows], settings.nms[3], "min")]
    confidence = probability(trace.margin[2, rows])
    rows, confidence = rows[confidence >= settings.confidence], confidence[confidence >= settings.confidence]
    classes = np.zeros(len(rows), np.int64)
    return Detections(trace.boxes[rows], confidence, classes, trace.keypoints[rows]), seen


def _order(trace: Trace, settings: Settings) -> np.ndarray:
    """The rows that P-Net's NMS keeps; ValueError where the trace was not made for these settings."""
    same = (settings.min_face, settings.factor) == (trace.wanted.min_face, trace.wanted.factor)
    low = any(a < b for a, b in zip(settings.thresholds, trace.lowest, strict=False))
    if not same or low or settings.nms[:2] not in trace.order:
        raise ValueError(
            f"{settings} were not among those wanted of the trace: min_face {trace.wanted.min_face:g}, factor "
            f"{trace.wanted.factor}, thresholds from {trace.lowest}, P-Net's NMS {sorted(trace.order)}"
        )
    return trace.order[settings.nms[:2]]
