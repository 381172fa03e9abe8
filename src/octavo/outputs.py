"""Detections: what a detector says of one image. Checked once, then unchangeable, and indexed like an array.

Boxes are x1, y1, x2, y2 in pixels of the given image: x to the right, y down, (0, 0) the upper left corner
of the upper left pixel, so that a box around the whole image is (0, 0, width, height). Boxes may leave it.
Nothing found is an empty Detections, never None.

In texts, pixels have 3 decimals and a confidence the fewest digits that give the same float32 back, so that
an average precision computed from a file is the one computed from memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np

from octavo import images
from octavo.folder import atomic


class Output(Protocol):
    """What a model says of one image, whatever it is for: a frozen dataclass with an `image` to draw on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def image(self) -> np.ndarray | None: ...
    def lines(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def draw(self, image: Any = None) -> np.ndarray: ...
    def save(self, path: str | Path, image: Any = None) -> None: ...
    def shrunk(self, longest: int) -> Output: ...


@dataclass(frozen=True, eq=False)
class Detections:
    """n found things. Arrays are copied, converted, checked (ValueError) and made read-only."""

    xyxy: np.ndarray  # (n, 4) float32, pixels, x1 <= x2 and y1 <= y2
    confidence: np.ndarray  # (n,) float32
    class_id: np.ndarray  # (n,) int64
    keypoints: np.ndarray | None = None  # (n, k, 2) float32: x, y, pixels
    image: np.ndarray | None = field(default=None, repr=False)  # (h, w, 3) uint8 RGB to draw on; not compared
    classes: tuple[str, ...] = field(
        default=(), repr=False
    )  # names by class_id, where there is more than one

    def __post_init__(self) -> None:
        xyxy = _numbers("xyxy", self.xyxy, np.float32, "n", 4)
        n = len(xyxy)
        fields = {
            "xyxy": xyxy,
            "confidence": _numbers("confidence", self.confidence, np.float32, n),
            "class_id": _numbers("class_id", self.class_id, np.int64, n),
        }
        if self.keypoints is not None:
            fields["keypoints"] = _numbers("keypoints", self.keypoints, np.float32, n, "k", 2)
        wrong = (xyxy[:, 2] < xyxy[:, 0]) | (xyxy[:, 3] < xyxy[:, 1])
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"xyxy row {row} is {xyxy[row].tolist()}: expected x1 <= x2 and y1 <= y2")
        for name, value in fields.items():
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        kind = getattr(self.image, "dtype", None), getattr(self.image, "shape", ())[2:]
        if self.image is not None and kind != (np.uint8, (3,)):
            raise ValueError("image must be (height, width, 3) uint8 RGB, as images.read returns it, or None")

    @classmethod
    def empty(cls, k: int | None = None, image: np.ndarray | None = None) -> Detections:
        """Nothing found; `k` keypoints each for a model that has keypoints."""
        keypoints = None if k is None else np.zeros((0, k, 2), np.float32)
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), keypoints, image)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: Any) -> Detections:
        """The rows of an integer (one row, still Detections), a slice, a mask or an array of indices."""
        if isinstance(index, tuple):
            raise IndexError(f"Detections have one axis, {len(index)} indices were given")
        if np.ndim(index) == 0 and not isinstance(index, slice):
            index = [range(len(self))[index]]  # IndexError outside, TypeError for other things
        elif not isinstance(index, slice) and len(index) == 0:
            index = slice(0)
        keypoints = None if self.keypoints is None else self.keypoints[index]
        parts = (self.xyxy[index], self.confidence[index], self.class_id[index])
        return Detections(*parts, keypoints, self.image, self.classes)

    def __iter__(self) -> Iterator[Detections]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        mine, theirs = ((d.xyxy, d.confidence, d.class_id, d.keypoints) for d in (self, other))
        return all(
            a is b or (a is not None and b is not None and np.array_equal(a, b))
            for a, b in zip(mine, theirs, strict=True)
        )

    def name(self, row: int) -> str:
        """Of the class of a row, "" where classes have no names."""
        label = int(self.class_id[row])
        return self.classes[label] if label < len(self.classes) else ""

    # As a picture

    def shrunk(self, longest: int) -> Detections:
        """With an image whose sides are at most so many pixels: lines and letters drawn on it keep their width."""
        assert self.image is not None
        scale = min(1.0, longest / max(self.image.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in self.image.shape[:2])
        return replace(
            self,
            xyxy=self.xyxy * np.float32(scale),
            keypoints=None if self.keypoints is None else self.keypoints * np.float32(scale),
            image=cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
            if scale < 1
            else self.image,
        )

    def draw(self, image: Any = None) -> np.ndarray:
        """(h, w, 3) uint8 RGB: a copy of the image with boxes, keypoints and confidences.

        image: anything that images.read reads; without it, the image that the things were found in. A
        confidence for which there is no place without covering something else that was found is left out.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("there is no image to draw on: give one, as in .save(path, image)")
        return _draw(images.read(image), self)

    def save(self, path: str | Path, image: Any = None) -> None:
        """Draw (see `draw`) and write, in the format of the suffix. Folders are made where missing."""
        _write(Path(path), self.draw(image))

    # As text

    def lines(self) -> list[str]:
        """For people: how many were found, then a line for each."""
        return [
            f"{len(self)} found",
            *(
                f"{confidence:.3f}  {' '.join(f'{v:7.1f}' for v in xyxy)}  {self.name(row)}".rstrip()
                for row, (xyxy, confidence) in enumerate(zip(self.xyxy, self.confidence, strict=True))
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists. `keypoints` is None for a model without; `class` are names, where there are."""
        names = {"class": [self.name(row) for row in range(len(self))]} if self.classes else {}
        return {
            "xyxy": _pixels(self.xyxy),
            "confidence": _shortest(self.confidence),
            "class_id": self.class_id.tolist(),
            "keypoints": None if self.keypoints is None else _pixels(self.keypoints),
            **names,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Detections:
        """The inverse of `to_dict`; other entries, as in a line of `octavo predict`, are ignored."""
        return cls(values["xyxy"], values["confidence"], values["class_id"], values["keypoints"])

    def to_json(self) -> str:
        """`to_dict` on one line."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_id: int, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO result file: bbox is x, y, width, height; keypoints are x, y, 1 in one row.

        categories: the category id of each class_id; without it class_id + 1, since COCO counts from 1.
        """
        entries, scores = [], _shortest(self.confidence)
        for row, box in enumerate(_pixels(_xywh(self.xyxy))):
            label = int(self.class_id[row])
            category = label + 1 if categories is None else categories[label]
            entry = {"image_id": image_id, "category_id": category, "bbox": box, "score": scores[row]}
            if self.keypoints is not None:
                entry["keypoints"] = [value for x, y in _pixels(self.keypoints[row]) for value in (x, y, 1)]
            entries.append(entry)
        return entries

    def to_wider(self, name: str) -> str:
        """The text of a WIDER FACE prediction file: the image's name, the count, lines of x y w h score."""
        if "\n" in name or not name.strip():
            raise ValueError(f"the name of the image must be one line, not {name!r}")
        scored = zip(_xywh(self.xyxy), _shortest(self.confidence), strict=True)
        rows = (f"{x:.3f} {y:.3f} {w:.3f} {h:.3f} {score}" for (x, y, w, h), score in scored)
        return "\n".join([name, str(len(self)), *rows]) + "\n"

    def to_supervision(self) -> Any:
        """supervision.Detections; keypoints stand in its `data`."""
        try:
            import supervision
        except ImportError:
            raise ImportError("to_supervision needs a library: pip install supervision") from None
        data = {} if self.keypoints is None else {"keypoints": self.keypoints.copy()}
        return supervision.Detections(
            self.xyxy.copy(), None, self.confidence.copy(), self.class_id.copy(), data=data
        )


@dataclass(frozen=True)
class Text:
    """What a reader says of one line: its text, "" where it saw none, and how sure it is of each character."""

    text: str
    confidence: float  # 0 to 1: the geometric mean over the characters
    image: np.ndarray | None = field(default=None, repr=False, compare=False)  # (h, w, 3) uint8 RGB

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or len(self.text.splitlines()) > 1:
            raise ValueError(f"text must be one line, not {self.text!r}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be from 0 to 1, not {self.confidence}")

    def __len__(self) -> int:
        """Characters."""
        return len(self.text)

    def shrunk(self, longest: int) -> Text:
        """With an image whose sides are at most so many pixels."""
        assert self.image is not None
        scale = min(1.0, longest / max(self.image.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in self.image.shape[:2])
        image = (
            cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else self.image
        )
        return replace(self, image=image)

    def draw(self, image: Any = None) -> np.ndarray:
        """(h, w, 3) uint8 RGB: the line as it is. Its text stands beside it, not on it: OpenCV's letters have no marks.

        image: anything that images.read reads; without it, the image that was read.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("there is no image to draw: give one, as in .save(path, image)")
        return images.read(image)

    def save(self, path: str | Path, image: Any = None) -> None:
        """Write the picture, in the format of the suffix, and the text beside it, with the suffix .txt."""
        _write(Path(path), self.draw(image))
        with atomic(Path(path).with_suffix(".txt")) as temporary:
            temporary.write_text(self.text + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """As `octavo predict` prints it."""
        return [f"{self.text}  {self.confidence:.2f}"]

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "confidence": float(f"{self.confidence:.6g}")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Text:
        """The inverse of `to_dict`; other entries, as in a line of `octavo predict`, are ignored."""
        return cls(values["text"], values["confidence"])

    def to_json(self) -> str:
        """`to_dict` on one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def write_wider(path: str | Path, name: str, detections: Detections) -> None:
    """Write a WIDER FACE prediction file, atomically. Folders are made where missing."""
    text = detections.to_wider(name)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_wider(path: str | Path) -> tuple[str, Detections]:
    """Read a WIDER FACE prediction file: the image's name in it, and what was found (class 0)."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < 2 or not lines[1].strip().isdecimal():
        raise ValueError(f"{path}: expected a line with the image's name and a line with the number of boxes")
    name, count, rows = lines[0].strip(), int(lines[1]), lines[2:]
    if len(rows) != count:
        raise ValueError(f"{path}: line 2 promises {count} boxes, {len(rows)} lines follow")
    values = np.zeros((count, 5))
    for row, line in enumerate(rows):
        try:
            x, y, w, h, score = map(float, line.split())
            values[row] = x, y, x + w, y + h, score
            if not np.isfinite(values[row]).all() or w < 0 or h < 0:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{path}: line {row + 3} is {line!r}, expected: x y width height score"
            ) from None
    return name, Detections(values[:, :4], values[:, 4], np.zeros(count, np.int64))


def _numbers(name: str, value: Any, dtype: type, *shape: int | str) -> np.ndarray:
    """A new array of this type and shape (letters: any length)."""
    expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    try:
        given = np.asarray(value)
        if given.size == 0 and given.ndim == 1 and shape[0] in ("n", 0):  # [] holds no rows, of any kind
            given = given.reshape([0 if isinstance(length, str) else length for length in shape])
        with np.errstate(all="ignore"):
            array: np.ndarray = np.array(given, dtype, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected numbers of shape {expected}: {error}") from None
    if array.ndim != len(shape) or any(
        isinstance(b, int) and a != b for a, b in zip(array.shape, shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN, infinity, or a number too large for {np.dtype(dtype).name}")
    if dtype is np.int64 and not np.array_equal(array, given):
        raise ValueError(f"{name} must be whole numbers")
    return array


def _xywh(xyxy: np.ndarray) -> np.ndarray:
    corners = xyxy.astype(np.float64)
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])


def _pixels(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(np.float64), 3).tolist()


def _shortest(values: np.ndarray) -> list[float]:
    return [
        float(str(value)) for value in values
    ]  # NumPy prints a float32 with the fewest digits that suffice


# The picture. All lengths grow with the image: `unit` is 1 pixel in one of 1000x1000.

_LINE = (0, 230, 118)  # RGB: a green that neither skin nor sky has
_POINT = (255, 214, 0)
_DARK = (0, 40, 20)
_SHIFT = 4  # cv2 draws at 1/16 pixel


def _write(path: Path, picture: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB into a file, in the format of the suffix. Folders are made where missing."""
    suffix = path.suffix.lower()
    if suffix not in images.SUFFIXES:
        raise ValueError(
            f"{path}: cannot write {suffix or 'without a suffix'}: use one of {' '.join(images.SUFFIXES)}"
        )
    try:
        with images.quiet():
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode(".jpg" if suffix == ".jfif" else suffix, bgr)
    except cv2.error:
        done = False
    if not done:
        height, width = picture.shape[:2]
        raise ValueError(f"{path}: {width}x{height} pixels do not fit into a {suffix} file: use .png")
    with atomic(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _draw(image: np.ndarray, found: Detections) -> np.ndarray:
    picture = image.copy()
    height, width = picture.shape[:2]
    unit = (height * width) ** 0.5 / 1000
    # Far outside nothing shows, and cv2 takes 32-bit coordinates only.
    reach = 100 * unit + 10
    boxes = np.clip(found.xyxy, -reach, np.array([width, height] * 2, np.float32) + np.float32(reach))
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    order = np.argsort(found.confidence, kind="stable")  # the surest on top
    for row in order:
        line = int(np.clip(round(sides[row] / 28), 1, round(1 + 1.4 * unit)))
        x1, y1, x2, y2 = _fixed(boxes[row])
        if line > 1:  # a dark rim: visible on any ground
            cv2.rectangle(
                picture, (x1, y1), (x2, y2), _DARK, line + 2 * ((line + 2) // 4), cv2.LINE_AA, _SHIFT
            )
        cv2.rectangle(picture, (x1, y1), (x2, y2), _LINE, line, cv2.LINE_AA, _SHIFT)
    if found.keypoints is not None:
        points = np.clip(found.keypoints, -reach, max(width, height) + reach)
        for row in order[sides[order] >= 12]:  # on a smaller face five points would hide it
            radius = float(np.clip(sides[row] / 40, 0.7, max(1.0, 5 * unit)))
            for x, y in map(_fixed, points[row]):
                if radius > 1.5:
                    cv2.circle(picture, (x, y), _fixed_length(radius * 1.4), _DARK, -1, cv2.LINE_AA, _SHIFT)
                cv2.circle(picture, (x, y), _fixed_length(radius), _POINT, -1, cv2.LINE_AA, _SHIFT)
    placed = np.zeros((0, 4))
    for row in order[::-1]:
        tall = np.clip((boxes[row, 2] - boxes[row, 0]) / 8, max(7, 10 * unit), max(9, 18 * unit))
        plate = _plate(f"{found.name(row)} {found.confidence[row]:.2f}".strip(), round(float(tall)))
        spot = _place(
            plate.shape[:2], boxes[row], np.vstack([np.delete(boxes, row, axis=0), placed]), (height, width)
        )
        if spot is None:
            continue
        x, y = spot
        picture[y : y + plate.shape[0], x : x + plate.shape[1]] = plate
        placed = np.vstack([placed, [x, y, x + plate.shape[1], y + plate.shape[0]]])
    return picture


def _fixed(values: np.ndarray) -> list[int]:
    """Coordinates for cv2, in which (0, 0) is the middle of the first pixel."""
    return np.rint((values - 0.5) * (1 << _SHIFT)).astype(int).tolist()


def _fixed_length(value: float) -> int:
    return round(value * (1 << _SHIFT))


@lru_cache(maxsize=512)
def _plate(text: str, tall: int) -> np.ndarray:
    """(h, w, 3): the text in letters `tall` pixels high, dark on green.

    Drawn large, cut out where the ink is, then made small: cv2's fonts have other measures in other versions.
    """
    scale = max(2.0, tall / 20)
    canvas = np.zeros((int(60 * scale), int(40 * scale * len(text))), np.uint8)
    start, weight = (int(10 * scale), int(45 * scale)), round(1.5 * scale)
    cv2.putText(canvas, text, start, cv2.FONT_HERSHEY_DUPLEX, scale, 255, weight, cv2.LINE_AA)
    rows, columns = np.flatnonzero(canvas.max(axis=1)), np.flatnonzero(canvas.max(axis=0))
    large = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    wide = round(large.shape[1] * tall / large.shape[0])
    ink = cv2.resize(large, (wide, tall), interpolation=cv2.INTER_AREA)
    pad = max(1, round(tall / 4))
    share = np.pad(ink, pad)[:, :, None] / 255
    return np.rint(np.array(_LINE) * (1 - share) + np.array(_DARK) * share).astype(np.uint8)


def _place(
    size: tuple[int, int], box: np.ndarray, others: np.ndarray, image: tuple[int, int]
) -> tuple[int, int] | None:
    """Upper left corner (x, y) of a plate of this (height, width) at the box that covers no other one."""
    tall, wide = size
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    right, low = image[1] - wide, image[0] - tall  # the last places inside the image
    spots = [(min(max(x, 0), right), y) for y in (y1 - tall, y2) for x in (x1, x2 - wide)]
    spots += [(x, min(max(y, 0), low)) for x in (x2, x1 - wide) for y in (y1, y2 - tall)]
    if x2 - x1 >= 3 * wide and y2 - y1 >= 5 * tall:  # large enough to spare a corner
        spots += [(max(x1, 0), max(y1, 0)), (max(x1, 0), min(y2 - tall, low))]
    for x, y in spots:
        if not (0 <= x <= right and 0 <= y <= low):
            continue
        free = (
            (others[:, 0] >= x + wide)
            | (others[:, 2] <= x)
            | (others[:, 1] >= y + tall)
            | (others[:, 3] <= y)
        )
        if free.all():
            return x, y
    return None
