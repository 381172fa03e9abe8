"""A contact sheet: what a data set looks like, with its annotations, on one picture.

For each split and event a strip: images with their boxes (green: valid, red: invalid) and landmarks, then
single faces from the smallest to the largest, each with its size. Samples are spread evenly, so the same
data set gives the same sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from octavo import images
from octavo.boxes import crop_resize
from octavo.data.widerface import Entry
from octavo.folder import atomic

WIDTH = 1600
IMAGE_HEIGHT = 220
FACES = 16  # in a row
EVENTS = 24  # strips of a split; WIDER FACE has 61 events, and nobody scrolls through 61
GAP = 4
PAPER, INK, QUIET = (36, 36, 36), (240, 240, 240), (160, 160, 160)
VALID, INVALID, POINT = (60, 220, 90), (240, 60, 60), (255, 220, 60)
SUFFIXES = (".jpg", ".jpeg", ".png")

T = TypeVar("T")


def check_suffix(path: str | Path) -> None:
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"the contact sheet is written as {', '.join(SUFFIXES)}, found {path}")


def write(path: str | Path, entries: dict[str, list[Entry]]) -> None:
    """Draw the sheet of {split: entries} and write it. The images must be there and readable."""
    check_suffix(path)
    strips = [_heading("WIDER FACE layout: green valid, red invalid (ignored), yellow landmarks", INK, 0.6)]
    for split, of_split in entries.items():
        events = list(dict.fromkeys(entry.event for entry in of_split))
        for event in _spread(events, EVENTS):
            members = [entry for entry in of_split if entry.event == event]
            strips.append(_strip(f"{split}: {event}", members))
        if len(events) > EVENTS:
            strips.append(_heading(f"{split}: {EVENTS} of {len(events)} events are shown", QUIET, 0.5))
    picture = np.concatenate(strips)
    with atomic(path) as temporary:
        quality = [cv2.IMWRITE_JPEG_QUALITY, 88] if Path(path).suffix.lower() != ".png" else []
        if not cv2.imwrite(str(temporary), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality):
            raise OSError(f"{path} could not be written")


def _strip(title: str, entries: list[Entry]) -> np.ndarray:
    valid = int(sum((~entry.invalid).sum() for entry in entries))
    invalid = int(sum(entry.invalid.sum() for entry in entries))
    counts = f"{len(entries)} images, {valid} faces, {invalid} invalid"
    heading = _heading(title, INK, 0.7)
    left = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 1)[0][0] + 30
    _write(heading, counts, (left, 29), QUIET, 0.5)
    rows = [heading, _image_row(entries)] + ([_face_row(entries)] if valid else [])
    return np.concatenate(rows)


def _image_row(entries: list[Entry]) -> np.ndarray:
    """Images of one height, as many as fill the width; the last is cut."""
    row = _paper(IMAGE_HEIGHT + GAP)
    at = 0
    for entry in _spread([entry for entry in entries if len(entry.xyxy)] or entries, 12):
        image = images.read(entry.path)
        scale = IMAGE_HEIGHT / image.shape[0]
        width = min(max(1, round(image.shape[1] * scale)), WIDTH)
        small = cv2.resize(image, (width, IMAGE_HEIGHT), interpolation=cv2.INTER_AREA)
        to = np.array([width / image.shape[1], scale])
        _annotate(small, entry.xyxy * np.tile(to, 2), entry.invalid, entry.keypoints * to)
        shown = small[:, : WIDTH - at]
        row[:IMAGE_HEIGHT, at : at + shown.shape[1]] = shown
        at += shown.shape[1] + GAP
        if at >= WIDTH:
            break
    return row


def _face_row(entries: list[Entry]) -> np.ndarray:
    """Single valid faces by rising size, square cut-outs a third larger than the face."""
    side = (WIDTH + GAP) // FACES - GAP
    row = _paper(side + GAP)
    faces = [
        (float(size), entry, i)
        for entry in entries
        for i, size in enumerate(entry.sizes)
        if not entry.invalid[i]
    ]
    faces.sort(key=lambda face: face[0])
    for column, (size, entry, i) in enumerate(_spread(faces, FACES)):
        x1, y1, x2, y2 = entry.xyxy[i]
        half = max(x2 - x1, y2 - y1) * 2 / 3
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        square = np.array([[cx - half, cy - half, cx + half, cy + half]], np.float32)
        cut = crop_resize(images.read(entry.path), square, side)[0].copy()
        corner, scale = square[0, :2], side / (2 * half)
        box = (entry.xyxy[i : i + 1] - np.tile(corner, 2)) * scale
        _annotate(cut, box, np.zeros(1, bool), (entry.keypoints[i : i + 1] - corner) * scale)
        _write(cut, f"{size:.0f}", (4, side - 6), INK, 0.45)
        at = column * (side + GAP)
        row[:side, at : at + side] = cut
    return row


def _annotate(picture: np.ndarray, xyxy: np.ndarray, invalid: np.ndarray, keypoints: np.ndarray) -> None:
    """Draw into (h, w, 3) uint8 RGB; boxes (n, 4) and points (n, 5, 2) in its pixels."""
    for box, ignored in zip(np.rint(xyxy).astype(int).tolist(), invalid, strict=True):
        colour = INVALID if ignored else VALID
        cv2.rectangle(picture, tuple(box[:2]), tuple(box[2:]), colour, 2, cv2.LINE_AA)
    for point in keypoints.reshape(-1, 2):
        if np.isfinite(point).all():
            centre = tuple(np.rint(point).astype(int).tolist())
            cv2.circle(picture, centre, 3, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(picture, centre, 2, POINT, -1, cv2.LINE_AA)


def _heading(text: str, colour: tuple[int, int, int], size: float) -> np.ndarray:
    out = _paper(42)
    _write(out, text, (10, 29), colour, size)
    return out


def _paper(height: int) -> np.ndarray:
    return np.full((height, WIDTH, 3), PAPER, np.uint8)


def _write(
    picture: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int], size: float
) -> None:
    text = text.encode("ascii", "replace").decode()  # all that OpenCV's own letters can show
    shadow = (at[0] + 1, at[1] + 1)  # not a thicker stroke: OpenCV 5 widens the letters with it
    cv2.putText(picture, text, shadow, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly from the first to the last."""
    at = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in at]
