"""Data sets in the layout of WIDER FACE (Yang et al., CVPR 2016): annotations to arrays, no image decoded.

    ROOT/WIDER_{train,val}/images/EVENT/NAME.jpg
    ROOT/wider_face_split/wider_face_{train,val}_bbx_gt.txt     name / count / rows of x y w h + 6 attributes
    ROOT/landmarks/{train,val}_label.txt                        optional: "# name" / rows of x y w h + points

The landmark files are those of RetinaFace (Deng et al., CVPR 2020): after the box five times "x y flag" and
a score; -1 -1 where a point is not known. A row belongs to the annotated face with the same box, in any
order; where the box was corrected by a few pixels, to the free face that overlaps it most (IoU >= .5).

Corners are x2 = x + w, y2 = y + h, in pixels. A face is invalid (to be ignored: neither a face to find nor
background) where the file's `invalid` flag says so or where its box has no area. The benchmark's own quirk:
an image without faces says 0 and still has one row of zeros.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from octavo.data import DatasetError

ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
SPLITS = ("train", "val")
SIZES = (0, 16, 32, 64, 128, 256)  # edges of bins of sqrt(w h), pixels; hard WIDER faces are 10 to 50 px high
POINTS = 5  # left eye, right eye, nose, left and right corner of the mouth, as seen in the image
MIRRORED = [1, 0, 2, 4, 3]  # which of them each is in the mirror image: eyes and mouth change sides
LANDMARK_FILES = (
    "landmarks/{split}_label.txt",
    "retinaface_gt_v1.1/{split}/label.txt",  # the archive of RetinaFace, unpacked
    "{split}/label.txt",  # the same, as its training code wants it
)
_SHOWN = 5  # names in a message; the rest is a count


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One image and its faces."""

    path: Path
    name: str  # "0--Crowd/x.jpg": the image in annotations and, with .txt, in predictions
    event: str  # "0--Crowd"
    xyxy: np.ndarray  # (n, 4) float32, pixels, x2 = x + w
    invalid: np.ndarray  # (n,) bool: ignore
    keypoints: np.ndarray  # (n, 5, 2) float32, pixels, NaN where unknown
    attributes: np.ndarray  # (n, 6) int8, in the order of ATTRIBUTES

    @property
    def sizes(self) -> np.ndarray:
        """(n,) float32: sqrt(w h) in pixels, 0 for boxes without area."""
        width, height = (self.xyxy[:, 2:] - self.xyxy[:, :2]).T
        return np.sqrt(np.maximum(width, 0) * np.maximum(height, 0))


def size_bins(edges: Sequence[float] = SIZES) -> dict[str, tuple[float, float]]:
    """{"0-16": (0, 16), ..., "256+": (256, inf)}: low <= size < high."""
    pairs = zip(edges, [*edges[1:], math.inf], strict=True)
    return {f"{low:g}+" if high == math.inf else f"{low:g}-{high:g}": (low, high) for low, high in pairs}


def annotation_file(root: str | Path, split: str) -> Path:
    return Path(root) / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"


def image_folder(root: str | Path, split: str) -> Path:
    return Path(root) / f"WIDER_{split}" / "images"


def splits(root: str | Path) -> list[str]:
    """The splits of SPLITS that have annotations under `root`."""
    return [split for split in SPLITS if annotation_file(root, split).is_file()]


def read(root: str | Path, split: str, *, missing: str = "error") -> list[Entry]:
    """All annotated images of a split, in the order of the file.

    missing: what to do where an annotated image is not on the disk: "error"; "skip" (leave it out, with a
    warning that names the first ones); "keep" (do not look: for work on annotations alone).
    Raises DatasetError, with file and line where a line is at fault.
    """
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} is not known: give one of {', '.join(SPLITS)}")
    if missing not in ("error", "skip", "keep"):
        raise ValueError(f'missing={missing!r} is not known: give "error", "skip" or "keep"')
    root = Path(root)
    source = annotation_file(root, split)
    if not source.is_file():
        there = f"it has the split {' and '.join(splits(root))}" if splits(root) else "it has no split at all"
        raise DatasetError(
            f"{root} has no annotations of the split {split!r}: {source.relative_to(root)} is missing, and "
            f"{there}. Expected the layout of WIDER FACE: wider_face_split/wider_face_{split}_bbx_gt.txt and "
            f"WIDER_{split}/images/EVENT/NAME.jpg"
        )
    images = image_folder(root, split)
    faces = _annotations(source)
    points = _landmarks(root, split, faces)
    entries = []
    for name, rows in faces.items():
        xyxy = rows[:, :4].copy()
        xyxy[:, 2:] += xyxy[:, :2]
        attributes = rows[:, 4:].astype(np.int8)
        entries.append(
            Entry(
                path=images / name,
                name=name,
                event=name.split("/", 1)[0],
                xyxy=xyxy.astype(np.float32),
                invalid=(attributes[:, 3] != 0) | (rows[:, 2:4] <= 0).any(axis=1),
                keypoints=points.get(name, np.full((len(rows), POINTS, 2), np.nan, np.float32)),
                attributes=attributes,
            )
        )
    return entries if missing == "keep" else _on_disk(entries, images, source, missing)


def _annotations(source: Path) -> dict[str, np.ndarray]:
    """name -> (n, 10) float64: x, y, w, h and the attributes."""
    lines = _lines(source)
    faces: dict[str, np.ndarray] = {}
    first: dict[str, int] = {}
    at = 0  # index of a line; messages count from 1
    while at < len(lines):
        if not lines[at]:  # blank lines between entries or at the end
            at += 1
            continue
        name = _name(lines[at], f"{source}:{at + 1}")
        if name in faces:
            raise DatasetError(f"{source}:{at + 1}: {name} is listed twice, first in line {first[name]}")
        first[name] = at + 1
        count = _count(lines, at + 1, name, source)
        at += 2
        rows = lines[at : at + count]
        if len(rows) < count:
            raise DatasetError(
                f"{source}:{len(lines)}: the file ends after {len(rows)} of the {count} faces of {name}"
            )
        faces[name] = _numbers(rows, source, at + 1)
        at += count
        if count == 0 and at < len(lines) and _is_row(lines[at]):
            at += 1  # the row of zeros
    if not faces:
        raise DatasetError(f"{source} lists no image")
    return faces


def _lines(source: Path) -> list[str]:
    try:
        text = source.read_text(encoding="utf-8-sig")  # universal newlines: CRLF is fine
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is not a text file in UTF-8: {error}") from None
    return [line.strip() for line in text.rstrip().split("\n")]


def _name(text: str, where: str) -> str:
    parts = PurePosixPath(text).parts
    if _is_row(text) or len(parts) < 2 or ".." in parts or parts[0] == "/" or "\\" in text:
        raise DatasetError(
            f"{where}: expected the name of an image as EVENT/NAME.jpg, found {text[:80]!r}; does the count "
            f"above it fit the number of rows?"
        )
    return "/".join(parts)


def _count(lines: list[str], at: int, name: str, source: Path) -> int:
    text = lines[at] if at < len(lines) else ""
    if not (text.isascii() and text.isdigit()):
        raise DatasetError(f"{source}:{at + 1}: expected the number of faces of {name}, found {text[:80]!r}")
    return int(text)


def _is_row(text: str) -> bool:
    fields = text.split()
    return len(fields) in (4, 10) and all(_is_number(field) for field in fields)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(rows: list[str], source: Path, line: int) -> np.ndarray:
    """Rows of 10 numbers, or of 4 (a box without attributes, which are then 0) -> (n, 10) float64."""
    fields = [row.split() for row in rows]
    out = np.zeros((len(rows), 10))
    for i, field in enumerate(fields):
        if not (len(field) in (4, 10) and all(_is_number(value) for value in field)):
            raise DatasetError(
                f"{source}:{line + i}: expected 10 numbers (x y w h {' '.join(ATTRIBUTES)}), "
                f"found {rows[i][:80]!r}"
            )
        out[i, : len(field)] = [float(value) for value in field]
    if (np.abs(out[:, 4:]) > 127).any():
        bad = int(np.argmax((np.abs(out[:, 4:]) > 127).any(axis=1)))
        raise DatasetError(f"{source}:{line + bad}: attributes are small whole numbers, found {rows[bad]!r}")
    return out


def _landmarks(root: Path, split: str, faces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """name -> (n, 5, 2) float32 in the order of the faces; empty where the data set has no such file."""
    source = next(
        (root / f.format(split=split) for f in LANDMARK_FILES if (root / f.format(split=split)).is_file()),
        None,
    )
    if source is None:
        return {}
    out: dict[str, np.ndarray] = {}
    lost: list[str] = []  # rows with points, but without a face of that box
    for name, start, rows in _landmark_blocks(source):
        if name not in faces:
            lost += [f"line {start - 1} ({name} is not annotated)"]
            continue
        boxes = faces[name][:, :4]
        points = out.setdefault(name, np.full((len(boxes), POINTS, 2), np.nan, np.float32))
        known = ~np.isnan(rows[:, 4:]).all(axis=1)
        owner = _owners(rows[:, :4], boxes)
        lost += [f"line {start + i} ({name})" for i in np.flatnonzero(known & (owner < 0))]
        keep = known & (owner >= 0)
        points[owner[keep]] = rows[keep, 4:].reshape(-1, POINTS, 2)
    if lost:
        warnings.warn(
            f"{source}: {len(lost)} rows of landmarks fit no annotated face and were left out: {_some(lost)}",
            stacklevel=3,
        )
    return out


def _landmark_blocks(source: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields name, number of the first row's line, (n, 14): x, y, w, h and 5 x (px, py), NaN if unknown."""
    name, start = "", 0
    rows: list[list[float]] = []
    for number, line in enumerate(_lines(source), 1):
        if line.startswith("#"):
            if name:
                yield name, start, np.array(rows).reshape(-1, 14)
            name, start, rows = _name(line[1:].strip(), f"{source}:{number}"), number + 1, []
        elif line:
            fields = line.split()
            # 20: box, 5 x (x y flag), score; 19: without the score; 4: a box alone
            if not name or len(fields) not in (4, 19, 20) or not all(_is_number(value) for value in fields):
                raise DatasetError(
                    f"{source}:{number}: expected a line '# EVENT/NAME.jpg' or 20 numbers (x y w h, five "
                    f"times px py flag, score), found {line[:80]!r}"
                )
            values = [float(value) for value in fields]
            xy = [math.nan] * (2 * POINTS)
            for i in range(POINTS if len(values) > 4 else 0):
                x, y = values[4 + 3 * i : 6 + 3 * i]
                if (x, y) != (-1, -1):
                    xy[2 * i : 2 * i + 2] = x, y
            rows.append(values[:4] + xy)
    if name:
        yield name, start, np.array(rows).reshape(-1, 14)


def _owners(rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """For each row (m, 4) xywh the index of its face among boxes (n, 4) xywh, -1 where there is none."""
    if rows.shape == boxes.shape and (rows == boxes).all():
        return np.arange(len(rows))
    owner = np.full(len(rows), -1)
    free = np.ones(len(boxes), bool)
    for i, row in enumerate(rows):  # equal boxes first, so that a near one cannot take their face
        same = np.flatnonzero(free & (boxes == row).all(axis=1))
        if len(same):
            owner[i] = same[0]
            free[same[0]] = False
    for i in np.flatnonzero(owner < 0).tolist():
        x1, y1 = np.maximum(rows[i, :2], boxes[:, :2]).T
        x2, y2 = np.minimum(rows[i, :2] + rows[i, 2:], boxes[:, :2] + boxes[:, 2:]).T
        inner = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
        union = rows[i, 2] * rows[i, 3] + boxes[:, 2] * boxes[:, 3] - inner
        overlap = np.where(free, inner / np.maximum(union, 1e-9), 0)
        if len(boxes) and overlap.max() >= 0.5:
            owner[i] = int(overlap.argmax())
            free[owner[i]] = False
    return owner


def _on_disk(entries: list[Entry], images: Path, source: Path, missing: str) -> list[Entry]:
    """Leave out, or refuse, entries whose image is absent: one listing per folder, not one stat per image."""
    there: dict[Path, set[str]] = {}
    for entry in entries:
        folder = entry.path.parent
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    absent = [entry.name for entry in entries if entry.path.name not in there[entry.path.parent]]
    if not absent:
        return entries
    what = f"{len(absent)} of {len(entries)} images named in {source} are not in {images}: {_some(absent)}"
    if missing == "error":
        raise DatasetError(f'{what}. Complete the data set, or leave them out with missing="skip"')
    warnings.warn(f"{what}; left out", stacklevel=3)
    gone = set(absent)
    return [entry for entry in entries if entry.name not in gone]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
