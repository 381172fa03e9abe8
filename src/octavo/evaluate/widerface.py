"""Average precision as the WIDER FACE benchmark computes it (Yang et al., CVPR 2016; its eval_tools).

1. Scores are normalised to 0..1 over all predictions of the data set.
2. An image's predictions are taken by descending score. Each looks at the annotated face it overlaps most,
   among all faces of the image, with IoU on inclusive pixels (widths + 1). From IoU .5 on: a face outside
   the subset makes the prediction ignored; a free face of the subset is found; a taken one makes a false
   positive. Below .5: a false positive. Images without any annotated face say nothing of precision.
3. At 1000 thresholds 1 - (t + 1) / 1000, proposals and found faces are summed over all images; AP is the
   area under the envelope of the curve (VOC, all points). Easy, medium and hard are lists of faces.

Which face a prediction looks at, and whether it is the first to come with IoU .5, does not depend on the
subset or the threshold. So each image is matched once (`match`), and a subset's curve is two histograms of
scores and their running sums (`curve`). `evaluate/events.py` draws other subsets over the same two steps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.boxes import iou

THRESHOLDS = 1000  # points of the curve, as in the benchmark's tools
IOU = 0.5
SUBSETS = ("easy", "medium", "hard")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CELLS = 1 << 21  # overlaps computed at once (16 MiB each in a handful of arrays), whatever an image holds
_LIMIT = 1e9  # of coordinates and scores; beyond it areas lose meaning, and NaN is not below it either
_NOTHING = np.empty((0, 5))
_SHOWN = 5  # files named in a message; the rest is a count


class PredictionError(ValueError):
    """Predictions that cannot be evaluated as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Annotated faces of a data set, image after image, and the subsets to measure on."""

    names: list[str]  # "0--Parade/0_Parade_marchingband_1_465", without suffix
    faces: list[np.ndarray]  # per image (m, 4) float64 xyxy, x2 = x + w
    subsets: dict[str, np.ndarray]  # (faces of all images,) bool


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """All predictions in images with faces, each with the face it looks at."""

    score: np.ndarray  # (p,) float64, normalised to 0..1
    face: np.ndarray  # (p,) index into the faces of all images, -1 below IoU .5
    first: np.ndarray  # (p,) bool: the best scored one of those that look at the same face
    image: np.ndarray  # (p,) index of the image
    index: np.ndarray  # (p,) index among the image's predictions


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Precision and recall (1000,), thresholds falling from .999 to 0 (of the normalised scores)."""

    precision: np.ndarray
    recall: np.ndarray
    faces: int

    @property
    def ap(self) -> float:
        return average_precision(self.precision, self.recall)

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The envelope as stairs: (k,) rising recall, and the precision that is kept up to each of them.

        Nothing is lost: the area under the stairs is `ap`. To be drawn, and short enough to be stored.
        """
        envelope = _envelope(self.precision)
        last = np.flatnonzero(np.append(np.diff(envelope) != 0, True))  # of each level
        last = last[np.diff(self.recall[last], prepend=0.0) > 0]
        return self.recall[last], envelope[last]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    curves: dict[str, Curve]
    warnings: tuple[str, ...]  # what was odd in the predictions, a sentence each

    @property
    def ap(self) -> dict[str, float]:
        return {name: curve.ap for name, curve in self.curves.items()}


def evaluate(
    predictions: str | Path | Mapping[str, Any], ground_truth: str | Path | GroundTruth
) -> dict[str, float]:
    """AP of {"easy", "medium", "hard"}; what was odd in the predictions is said with warnings.warn.

    predictions: a folder of EVENT/NAME.txt, or {"EVENT/NAME.jpg": Detections or rows x y w h score}.
    ground_truth: the folder of the benchmark's .mat files, or what `read_ground_truth` returned.
    """
    result = measure(predictions, ground_truth)
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result.ap


def measure(predictions: str | Path | Mapping[str, Any], ground_truth: str | Path | GroundTruth) -> Result:
    """As `evaluate`, with the curves and the warnings in the result."""
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else read_ground_truth(ground_truth)
    if isinstance(predictions, Mapping):
        rows, notes = from_memory(predictions, truth.names)
    else:
        rows, notes = read_predictions(predictions, truth.names)
    matches = match(rows, truth.faces)
    return Result({name: curve(matches, subset) for name, subset in truth.subsets.items()}, tuple(notes))


def match(predictions: Sequence[np.ndarray], faces: Sequence[np.ndarray]) -> Matches:
    """Give every prediction the face it looks at.

    predictions: per image (n, 5) float64, x1 y1 x2 y2 score, by descending score.
    faces: per image (m, 4), x1 y1 x2 y2. Images without faces are left out (their scores
    still count in the normalisation).
    """
    images = [
        i for i, (rows, boxes) in enumerate(zip(predictions, faces, strict=True)) if len(rows) and len(boxes)
    ]
    start = np.cumsum([0] + [len(boxes) for boxes in faces])
    score, face, image, index = [np.empty(0)], [np.empty(0, int)], [np.empty(0, int)], [np.empty(0, int)]
    for i in images:
        best = _best_face(predictions[i][:, :4], np.asarray(faces[i], np.float64))
        score.append(predictions[i][:, 4])
        face.append(np.where(best >= 0, best + start[i], -1))
        image.append(np.full(len(best), i))
        index.append(np.arange(len(best)))
    faces_of = np.concatenate(face)
    first = np.zeros(len(faces_of), bool)
    looking = np.flatnonzero(faces_of >= 0)
    first[looking[np.unique(faces_of[looking], return_index=True)[1]]] = True
    low, high = _score_range(predictions)
    return Matches(
        score=(np.concatenate(score) - low) / (high - low if high > low else 1.0),
        face=faces_of,
        first=first,
        image=np.concatenate(image),
        index=np.concatenate(index),
    )


def _best_face(xyxy: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """For each box (n, 4) the index of the face (m, 4) it overlaps most, -1 below IoU .5."""
    one = np.array([0, 0, 1, 1])  # inclusive pixels: a box from 3 to 5 is 3 wide
    faces = faces + one
    best = np.empty(len(xyxy), int)
    step = max(1, _CELLS // len(faces))
    for at in range(0, len(xyxy), step):
        overlap = iou(xyxy[at : at + step] + one, faces)
        chosen = overlap.argmax(axis=1)
        enough = overlap[np.arange(len(chosen)), chosen] >= IOU
        best[at : at + step] = np.where(enough, chosen, -1)
    return best


def _score_range(predictions: Iterable[np.ndarray]) -> tuple[float, float]:
    ends = [(rows[:, 4].min(), rows[:, 4].max()) for rows in predictions if len(rows)]
    return (float(min(e[0] for e in ends)), float(max(e[1] for e in ends))) if ends else (0.0, 0.0)


def curve(matches: Matches, subset: np.ndarray, counted: np.ndarray | None = None) -> Curve:
    """Precision and recall over the faces of `subset` (faces of all images,) bool.

    counted (p,) bool: predictions that count as false positives where they look at no face; all by default.
    """
    looking = matches.face >= 0
    inside = looking.copy()
    inside[looking] = subset[matches.face[looking]]
    proposal = inside | (~looking if counted is None else ~looking & counted)
    thresholds = 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS  # the last one is exactly 0
    reached = THRESHOLDS - np.searchsorted(thresholds[::-1], matches.score, side="right")
    proposals = np.cumsum(np.bincount(reached[proposal], minlength=THRESHOLDS))
    found = np.cumsum(np.bincount(reached[inside & matches.first], minlength=THRESHOLDS))
    faces = int(np.count_nonzero(subset))
    return Curve(found / np.maximum(proposals, 1), found / max(faces, 1), faces)


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the envelope of a curve given by rising recall (VOC 2010 and later, all points)."""
    return float(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision)))


def _envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or any higher one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


# --- reading -------------------------------------------------------------------------------------------


def read_ground_truth(folder: str | Path) -> GroundTruth:
    """The benchmark's lists: wider_face_val.mat (faces) and wider_{easy,medium,hard}_val.mat (subsets)."""
    folder = Path(folder)
    files = {name: folder / f"wider_{name}_val.mat" for name in ("face", *SUBSETS)}
    lacking = [file.name for file in files.values() if not file.is_file()]
    if lacking:
        raise ValueError(
            f"{folder} has no {', '.join(lacking)}: expected the ground_truth folder of the benchmark's "
            f"eval_tools (wider_face_val.mat, wider_easy_val.mat, wider_medium_val.mat, wider_hard_val.mat)"
        )
    lists = _load(files["face"], "event_list", "file_list", "face_bbx_list")
    names: list[str] = []
    faces: list[np.ndarray] = []
    for event, stems, boxes in zip(*lists, strict=True):
        names += [f"{event.item()}/{stem.item()}" for stem in stems[:, 0]]
        for xywh in boxes[:, 0]:
            xyxy = xywh.reshape(-1, 4).astype(np.float64)
            xyxy[:, 2:] += xyxy[:, :2]
            faces.append(xyxy)
    return GroundTruth(names, faces, {name: _subset(files[name], faces) for name in SUBSETS})


def _subset(file: Path, faces: list[np.ndarray]) -> np.ndarray:
    (events,) = _load(file, "gt_list")
    numbers = [image.reshape(-1).astype(int) - 1 for event in events for image in event[:, 0]]  # 1-based
    if len(numbers) != len(faces) or any(
        len(n) and (n.min() < 0 or n.max() >= len(boxes)) for n, boxes in zip(numbers, faces, strict=True)
    ):
        raise ValueError(f"{file} does not fit wider_face_val.mat beside it: take all four from one archive")
    start = np.cumsum([0] + [len(boxes) for boxes in faces])
    subset = np.zeros(start[-1], bool)
    subset[np.concatenate([n + at for n, at in zip(numbers, start, strict=False)])] = True
    return subset


def _load(file: Path, *variables: str) -> list[np.ndarray]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError(f"{file.name} needs SciPy to be read: pip install 'octavo[train]'") from None
    try:
        found = loadmat(file, variable_names=variables)
        return [found[name][:, 0] for name in variables]
    except Exception as error:  # SciPy raises what it meets first: ValueError, TypeError, zlib.error, ...
        raise ValueError(f"{file} is not the benchmark's file: {type(error).__name__}: {error}") from error


def read_predictions(folder: str | Path, names: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """Predictions in the benchmark's text form: EVENT/NAME.txt with a name, a count, rows x y w h score.

    names: images of the data set ("EVENT/NAME", a suffix of an image is ignored). Returns for each of them
    (n, 5) float64 x1 y1 x2 y2 score by descending score (stable), and warnings. All that is broken in any
    file is collected into one PredictionError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PredictionError(f"{folder} is not a folder: expected one with a file EVENT/NAME.txt per image")
    there = {}
    for at, _, files in os.walk(folder):
        event = os.path.relpath(at, folder).replace(os.sep, "/")
        there.update({_key(f"{event}/{f[:-4]}"): os.path.join(at, f) for f in files if f.endswith(".txt")})
    keys = [_key(name) for name in names]
    if not any(key in there for key in keys):
        raise PredictionError(
            f"{folder} has no prediction for any of the {len(keys)} images: expected files like "
            f"{keys[0]}.txt, found {_some(sorted(there.values())) or 'no .txt file'}"
        )
    rows: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for key in keys:
        if key in there:
            try:
                rows[key] = _read_text(there[key], key)
            except PredictionError as error:
                problems.append(str(error))
    ordered, notes = _ordered(keys, rows, problems, lambda key: there.get(key, f"{key}.txt"))
    return ordered, _unknown(there, keys, there.__getitem__) + notes


def _read_text(file: str, key: str) -> np.ndarray:
    """(n, 5) float64 x y w h score."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            lines = stream.read().rstrip().split("\n")
    except UnicodeDecodeError:
        raise PredictionError(f"{file}: not a text file in UTF-8") from None
    if lines == [""]:
        raise PredictionError(f"{file}: empty; a file without detections has the image's name and a 0")
    stem = _key(lines[0].strip()).rsplit("/", 1)[-1]
    if stem != key.rsplit("/", 1)[-1]:
        raise PredictionError(f"{file}:1: names another image: {lines[0].strip()[:80]!r}")
    count = lines[1].strip() if len(lines) > 1 else ""
    if not (count.isascii() and count.isdigit()):
        raise PredictionError(f"{file}:2: expected the number of detections, found {count[:80]!r}")
    fields = [line.split() for line in lines[2:]]
    if len(fields) != int(count):
        raise PredictionError(f"{file}:2: says {count} detections, but {len(fields)} rows follow")
    try:
        rows = np.array([[float(value) for value in row] for row in fields]).reshape(-1, 5)
    except ValueError:
        rows = np.empty((0, 5))
    if len(rows) != len(fields) or set(map(len, fields)) - {5}:
        number = next(i for i, row in enumerate(fields) if not _is_row(row))
        raise PredictionError(
            f"{file}:{number + 3}: expected five numbers x y w h score, "
            f"found {lines[number + 2].strip()[:80]!r}"
        )
    return rows


def _is_row(fields: list[str]) -> bool:
    try:
        return len([float(value) for value in fields]) == 5
    except ValueError:
        return False


def from_memory(predictions: Mapping[str, Any], names: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """The same from {name: Detections or (n, 5) x y w h score}."""
    rows: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for name, given in predictions.items():
        if hasattr(given, "xyxy"):
            xyxy = np.asarray(given.xyxy, np.float64)
            array = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2], np.c_[given.confidence]], axis=1)
        else:
            array = np.asarray(given, np.float64)
            array = array.reshape(0, 5) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != 5:
            problems.append(f"{name}: expected Detections or rows x y w h score, found shape {array.shape}")
            array = _NOTHING
        if _key(name) in rows:
            problems.append(f"{name}: given twice (suffixes of images do not count)")
        rows[_key(name)] = array
    keys = [_key(name) for name in names]
    ordered, notes = _ordered(keys, rows, problems, str)
    return ordered, _unknown(rows, keys, str) + notes


def _unknown(given: Iterable[str], keys: list[str], label: Callable[[str], str]) -> list[str]:
    known = set(keys)
    unknown = [label(key) for key in given if key not in known]
    what = f"{len(unknown)} predictions are for images the data set does not have; they were left out"
    return [f"{what}: {_some(sorted(unknown))}"] if unknown else []


def _ordered(
    keys: list[str], rows: dict[str, np.ndarray], problems: list[str], label: Callable[[str], str]
) -> tuple[list[np.ndarray], list[str]]:
    """Check values, turn x y w h into corners, sort; per key. `label` says where a key's rows come from."""
    unsorted: list[str] = []
    out = []
    for key in keys:
        given = rows.get(key, _NOTHING)
        bad = ~(np.abs(given) <= _LIMIT).all(axis=1)
        if bad.any():
            at = int(bad.argmax())
            problems.append(f"{label(key)}: detection {at + 1} has no usable numbers: {given[at].tolist()}")
        bad = (given[:, 2:4] < 0).any(axis=1)
        if bad.any():
            at = int(bad.argmax())
            problems.append(
                f"{label(key)}: detection {at + 1} has a negative width or height: {given[at].tolist()} "
                f"(rows are x y w h score, not corners)"
            )
        corners = given.copy()
        corners[:, 2:4] += corners[:, :2]
        if (given[1:, 4] > given[:-1, 4]).any():
            unsorted.append(label(key))
            corners = corners[np.argsort(-given[:, 4], kind="stable")]
        out.append(corners)
    if problems:
        many = f"{len(problems)} broken predictions:\n  " if len(problems) > 1 else ""
        raise PredictionError(many + "\n  ".join(_first(problems)))
    absent = [label(key) for key in keys if key not in rows]
    notes = []
    if absent:
        what = f"{len(absent)} of {len(keys)} images have no predictions; they count as if nothing was found"
        notes.append(f"{what}: {_some(absent)}")
    if unsorted:
        notes.append(
            f"the detections of {len(unsorted)} images were not sorted by score; sorted here, but tools that "
            f"trust the order will give other numbers: {_some(unsorted)}"
        )
    low, high = _score_range(out)
    if not any(map(len, out)):
        notes.append("there is not a single detection; AP is 0")
    elif low == high:
        notes.append(f"all scores are {low:g}; the curve is a single point")
    return out, notes


def _key(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in _SUFFIXES else name


def _first(items: list[str]) -> list[str]:
    more = [f"... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return items[:_SHOWN] + more


def _some(items: list[str]) -> str:
    return ", ".join(_first(items))
