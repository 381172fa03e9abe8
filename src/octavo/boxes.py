"""Boxes: overlap, non-maximum suppression, crops.

A box is x1, y1, x2, y2 in pixels of its image, with x2 and y2 exclusive: its width is x2 - x1, and pixel
column j covers [j, j + 1). Arrays are (n, 4) float32. Everything here is NumPy and OpenCV, since it runs in
every deployment.
"""

from __future__ import annotations

import cv2
import numpy as np

NMS_BLOCK = 256  # boxes resolved together; 128 to 512 run equally fast, larger blocks waste overlap pairs


def area(xyxy: np.ndarray) -> np.ndarray:
    """Areas (n,) in square pixels; a box turned inside out has none."""
    return np.maximum(xyxy[:, 2] - xyxy[:, 0], 0) * np.maximum(xyxy[:, 3] - xyxy[:, 1], 0)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared areas (n, m) of boxes a (n, 4) and b (m, 4), in square pixels."""
    width = np.minimum(a[:, None, 2], b[:, 2])
    width -= np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3])
    height -= np.maximum(a[:, None, 1], b[:, 1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    return width


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m); 0 where neither box has an area."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b) - shared
    return shared / np.maximum(union, np.finfo(np.float32).tiny)


def iom(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over the smaller of the two areas (n, m): 1 for a box inside another one."""
    shared = intersection(a, b)
    return shared / np.maximum(np.minimum(area(a)[:, None], area(b)), np.finfo(np.float32).tiny)


def nms(xyxy: np.ndarray, scores: np.ndarray, threshold: float, measure: str = "union") -> np.ndarray:
    """Greedy non-maximum suppression: go down the scores, drop what overlaps a kept box by more than threshold.

    xyxy (n, 4), scores (n,); measure "union" (IoU) or "min" (intersection over the smaller box).
    Returns the kept indices (k,), highest score first; equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    return order[GREEDY[measure](xyxy[order], threshold)] if len(order) else order


def _greedy_union(xyxy: np.ndarray, threshold: float) -> np.ndarray:
    """OpenCV's: three to seven times faster than one in NumPy. It wants scores, for which ranks do: no ties."""
    corner_and_size = xyxy.astype(np.float64)
    # It takes two boxes without an area for the same one, wherever they are; a thousandth of a pixel is one.
    corner_and_size[:, 2:] = np.maximum(corner_and_size[:, 2:] - corner_and_size[:, :2], 1e-3)
    ranks = np.arange(len(xyxy), 0, -1, dtype=np.float32)
    kept = cv2.dnn.NMSBoxes(corner_and_size, ranks, 0.0, threshold)  # type: ignore[arg-type]
    return np.asarray(kept, np.intp)


def _greedy_min(xyxy: np.ndarray, threshold: float) -> np.ndarray:
    """Blocks of boxes are resolved at once: inside a block one by one on a small overlap matrix, then all the kept
    ones of the block sweep the rest in one matrix operation. The result is the plain greedy one."""
    rest = np.arange(len(xyxy))
    kept: list[np.ndarray] = []
    while len(rest):
        block, rest = rest[:NMS_BLOCK], rest[NMS_BLOCK:]
        boxes = xyxy[block]
        clash = iom(boxes, boxes) > threshold
        alive = np.ones(len(block), bool)
        for i in np.flatnonzero(np.triu(clash, 1).any(axis=1)):  # the others drop nobody
            if alive[i]:
                alive[i + 1 :] &= ~clash[i, i + 1 :]
        kept.append(block[alive])
        if len(rest):
            rest = rest[~(iom(boxes[alive], xyxy[rest]) > threshold).any(axis=0)]
    return np.concatenate(kept)


GREEDY = {"union": _greedy_union, "min": _greedy_min}


def square(xyxy: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) grown about their centre to squares of the longer side."""
    half = np.maximum(xyxy[:, 2] - xyxy[:, 0], xyxy[:, 3] - xyxy[:, 1])[:, None] / 2
    centre = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def crop_resize(image: np.ndarray, xyxy: np.ndarray, size: int, fill: int = 128) -> np.ndarray:
    """Cut boxes out of an image and resize them to size x size.

    image (h, w, 3) uint8; xyxy (n, 4), rounded to whole pixels (at least one), may leave the image: what
    lies outside has the value `fill`. Returns (n, size, size, 3) uint8.

    Bilinear; from twice the size up first to twice the size, then halved, so that each pixel averages 16 of
    the box. Exact areas (INTER_AREA) cost up to ten times as much and detect no better (LOG.md).
    """
    height, width = image.shape[:2]
    out = np.empty((len(xyxy), size, size, 3), np.uint8)
    corners = np.rint(xyxy).astype(np.int64)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    inside = (corners[:, :2] >= 0).all(1) & (corners[:, 2] <= width) & (corners[:, 3] <= height)
    for target, (x1, y1, x2, y2), whole in zip(out, corners.tolist(), inside.tolist(), strict=True):
        if whole:
            patch = image[y1:y2, x1:x2]
        else:
            patch = np.full((y2 - y1, x2 - x1, 3), fill, np.uint8)
            left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
            if left < right and top < bottom:
                patch[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
        if max(x2 - x1, y2 - y1) > 2 * size:
            patch = cv2.resize(patch, (2 * size, 2 * size))
        cv2.resize(patch, (size, size), dst=target)  # halving by bilinear is the mean of four
    return out
