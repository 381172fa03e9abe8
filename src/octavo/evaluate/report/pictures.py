"""What several models found in one photograph, drawn side by side at the size in which a page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from octavo.evaluate.agreement import measure
from octavo.evaluate.report import Picture
from octavo.outputs import Detections

LONGEST = 800  # pixels of a side: two beside each other fill a desktop's window


def picture(name: str, found: Sequence[Detections]) -> Picture:
    """found: of each model, with the same image."""
    return Picture(name, [_small(one).draw() for one in found], [_said(found[0], one) for one in found])


def _small(found: Detections) -> Detections:
    """Reduced before it is drawn, so that lines and letters keep their width."""
    import cv2

    image = found.image
    assert image is not None
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return replace(
        found,
        xyxy=found.xyxy * np.float32(scale),
        keypoints=None if found.keypoints is None else found.keypoints * np.float32(scale),
        image=cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else image,
    )


def _said(first: Detections, other: Detections) -> str:
    count = f"{len(other)} found"
    if other is first:
        return count
    agreed = measure([(first, other)])
    if not agreed.pairs or agreed.iou is None:
        return f"{count}, none of them the first model's {len(first)}" if len(first) else count
    return f"{count}, {agreed.pairs} of the first model's {len(first)}; mean IoU with them {agreed.iou:.3f}"
