"""One look at the image, then boxes from anchors (Redmon and Farhadi 2016, arXiv 1612.08242).

    image -> scaled to a long side of 640, grey around it up to multiples of 32 -> detector -> logits of three strides
          -> those above the confidence -> decode -> NMS, class by class -> boxes in the image

At each cell of each stride s the network answers for three anchors, boxes of a known size (a_w, a_h). With the
sigmoids x, y, w, h, o, c of its logits:

    centre = (2 (x, y) - .5 + cell) · s        size = (2 (w, h))^2 · (a_w, a_h)        confidence = o · c

Only NumPy and OpenCV: `run` maps a network's name to a function of uint8 NCHW pixels (see octavo.run), so the same
lines serve every runtime. A network exported with the decoding in it (net.Decoded) is understood as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import log
from typing import Any

import cv2
import numpy as np

from octavo.boxes import nms
from octavo.outputs import Detections

TASK = "objects"

# As published with the weights; pixels.
STRIDES = (8, 16, 32)
ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
MULTIPLE = STRIDES[-1]  # of which sides must be multiples
GREY = 114  # what lies around the image, as the published weights were trained
BEFORE_NMS = 30000  # the surest candidates, which bounds the time that a noisy image costs
# The classes of COCO in the order of their ids, 1 to 90 with gaps.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *(
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "backpack",
        "umbrella",
        "handbag",
        "tie",
        "suitcase",
        "frisbee",
    ),
    *(
        "skis",
        "snowboard",
        "sports ball",
        "kite",
        "baseball bat",
        "baseball glove",
        "skateboard",
        "surfboard",
    ),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
    *("scissors", "teddy bear", "hair drier", "toothbrush"),
)

# What AP is measured with unless a caller says otherwise: what is cut off can't be found, and a box that may be of two
# classes counts for both. The values of the published figures.
MEASURING = {"confidence": 0.001, "nms": 0.6, "every_class": True}

Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Settings:
    """What a user may change at prediction time.

    confidence   lowest probability reported, of an object times of its class
    nms          largest overlap (IoU) of two objects of a class
    long_side    the image is scaled to this longer side, pixels; 0: looked at in its own size
    most         objects reported, the surest first
    every_class  a box is reported for each class above the confidence, not only for its likeliest
    """

    confidence: float = 0.25
    nms: float = 0.45
    long_side: int = 640
    most: int = 300
    every_class: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.nms, (tuple, list)) and len(self.nms) == 1:  # as the command line gives it
            object.__setattr__(self, "nms", self.nms[0])
        for name in ("confidence", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a number from 0 to 1, not {getattr(self, name)}")
        if self.long_side != 0 and not MULTIPLE <= self.long_side <= 16384:
            raise ValueError(
                f"long_side is {MULTIPLE} to 16384 pixels, or 0 for the image's own size, not {self.long_side}"
            )
        if self.most < 1:
            raise ValueError(f"most is how many objects may be reported, from 1 up, not {self.most}")

    @classmethod
    def of(cls, stored: Mapping[str, Any], **overrides: Any) -> Settings:
        """A model's stored settings with a call's overrides (None means: not given)."""
        given = {name: value for name, value in overrides.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"YOLOv5 has no setting {', '.join(sorted(unknown))}; it has {known}")
        return replace(cls(**stored), **given)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Letterbox:
    """An image scaled and put into the middle of a grey one: x' = x · scale + left, y' = y · scale + top."""

    pixels: np.ndarray  # (1, 3, h, w) uint8, sides multiples of 32
    scale: tuple[float, float]  # of x and y: sides are whole, so they differ a little
    corner: tuple[int, int]  # left, top

    def back(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in pixels of the letterbox -> of the image."""
        return (xyxy - np.tile(self.corner, 2)) / np.tile(self.scale, 2)


def predict(image: np.ndarray, run: Mapping[str, Network], settings: Settings) -> Detections:
    """The objects in an image (h, w, 3) uint8 RGB, surest first."""
    box = letterbox(image, settings.long_side)
    outputs = run["detector"](box.pixels)
    decoded = outputs[0].ndim == 3
    candidates = rows(outputs[0][0], settings) if decoded else decode([o[0] for o in outputs], settings)
    xyxy, confidence, class_id = candidates
    if len(confidence) > BEFORE_NMS:
        surest = np.argpartition(-confidence, BEFORE_NMS)[:BEFORE_NMS]
        xyxy, confidence, class_id = xyxy[surest], confidence[surest], class_id[surest]
    keep = nms_by_class(xyxy, confidence, class_id, settings.nms)[: settings.most]
    height, width = image.shape[:2]
    edges = np.array([width, height, width, height], np.float32)
    return Detections(np.clip(box.back(xyxy[keep]), 0, edges), confidence[keep], class_id[keep])


def letterbox(image: np.ndarray, long_side: int) -> Letterbox:
    """The image with its longer side so long (0: as it is), in the smallest frame with sides of multiples of 32."""
    height, width = image.shape[:2]
    ratio = long_side / max(height, width) if long_side else 1.0
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    if size != (width, height):
        how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=how)
    frame = [-(-side // MULTIPLE) * MULTIPLE for side in size]
    left, top = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    planes = np.full((1, 3, frame[1], frame[0]), GREY, np.uint8)
    for plane, pixels in zip(planes[0], cv2.split(image), strict=True):
        plane[top : top + size[1], left : left + size[0]] = pixels
    return Letterbox(planes, (size[0] / width, size[1] / height), (left, top))


Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # xyxy (n, 4), confidence (n,), class_id (n,)


def decode(levels: Sequence[np.ndarray], settings: Settings) -> Candidates:
    """Boxes above the confidence from the logits (255, h / s, w / s) of each stride, in pixels of the network's input.

    Most cells hold nothing, and o · c <= o: the logits of the classes are looked at where o is above the confidence.
    """
    found = []
    lowest = logit(settings.confidence)
    for logits, stride, anchors in zip(levels, STRIDES, ANCHORS, strict=True):
        each = logits.reshape(len(anchors), -1, *logits.shape[1:])
        anchor, row, column = np.nonzero(each[:, 4] > lowest)
        values = sigmoid(each[anchor, :, row, column])  # (n, 5 + classes)
        cell = np.stack([column, row], 1)
        centre = (values[:, :2] * 2 - 0.5 + cell) * stride
        size = (values[:, 2:4] * 2) ** 2 * np.array(anchors, np.float32)[anchor]
        found.append(np.concatenate([centre, size, values[:, 4:]], 1, dtype=np.float32))
    return rows(np.concatenate(found), settings)


def rows(decoded: np.ndarray, settings: Settings) -> Candidates:
    """Boxes above the confidence from rows of centre, size, object and classes: (n, 5 + classes), pixels."""
    decoded = decoded[decoded[:, 4] > settings.confidence]
    scores = decoded[:, 5:] * decoded[:, 4:5]
    if settings.every_class:
        chosen, class_id = np.nonzero(scores > settings.confidence)
    else:
        chosen = np.flatnonzero(scores.max(1, initial=0) > settings.confidence)
        class_id = scores[chosen].argmax(1) if len(chosen) else np.empty(0, np.int64)
    half = decoded[chosen, 2:4] / 2
    centre = decoded[chosen, :2]
    return np.concatenate([centre - half, centre + half], 1), scores[chosen, class_id], class_id


def nms_by_class(
    xyxy: np.ndarray, confidence: np.ndarray, class_id: np.ndarray, threshold: float
) -> np.ndarray:
    """Indices of what is kept, surest first; objects of different classes don't compete."""
    kept = [np.empty(0, np.int64)]
    for one in np.unique(class_id):
        own = np.flatnonzero(class_id == one)
        kept.append(own[nms(xyxy[own], confidence[own], threshold)])
    every = np.concatenate(kept)
    return every[np.argsort(-confidence[every], kind="stable")]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def logit(probability: float) -> float:
    """Where the sigmoid has this value."""
    return log(max(probability, 1e-9) / max(1 - probability, 1e-9))
