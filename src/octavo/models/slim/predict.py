"""One look at the image, then boxes from priors (Liu et al. 2016, SSD).

    image, its own size or scaled -> a frame of one pixel -> detector -> for each prior: face?, box, landmarks
          -> those above the confidence -> decode -> NMS

A prior is a square of a known place and size; the network says how far the face's box and points are from it.
Level by level (a grid of cells every 8, 16, 32, 64 pixels), row by row, cell by cell, each cell has priors of
the sides in LEVELS, which fit faces from about 7 to 360 pixels. Only NumPy and OpenCV: `run` maps a network's name
to a function of uint8 NCHW pixels (see octavo.run), so the same lines serve every runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from math import log
from typing import Any

import cv2
import numpy as np

from octavo.boxes import nms
from octavo.outputs import Detections

# Distance of the cells and sides of their priors, pixels: Face-Detector-1MB-with-landmark.
LEVELS = ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256)))
VARIANCE = (0.1, 0.2)  # units of the offsets: of the centre in prior sides, of the side's logarithm
MEAN = (123, 117, 104)  # RGB: what the published network subtracts, and so what its padding looks like
BEFORE_NMS = 5000  # the surest candidates, which bounds the time that a noisy image costs; as published

TASK = "faces"
# What AP is measured with unless a caller says otherwise: low, since a face that was cut off can't be found.
MEASURING = {"confidence": 0.02}

Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Settings:
    """What a user may change at prediction time.

    confidence  lowest face probability reported
    nms         largest overlap (IoU) of two faces
    long_side   the image is scaled to this longer side, pixels; 0: looked at in its own size
    most        faces reported, the surest first
    """

    confidence: float = 0.6
    nms: float = 0.4
    long_side: int = 0
    most: int = 750

    def __post_init__(self) -> None:
        if isinstance(self.nms, (tuple, list)) and len(self.nms) == 1:  # as the command line gives it
            object.__setattr__(self, "nms", self.nms[0])
        for name in ("confidence", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a number from 0 to 1, not {getattr(self, name)}")
        if self.long_side != 0 and not 16 <= self.long_side <= 16384:
            raise ValueError(
                f"long_side is 16 to 16384 pixels, or 0 for the image's own size, not {self.long_side}"
            )
        if self.most < 1:
            raise ValueError(f"most is how many faces may be reported, from 1 up, not {self.most}")

    @classmethod
    def of(cls, stored: Mapping[str, Any], **overrides: Any) -> Settings:
        """A model's stored settings with a call's overrides (None means: not given)."""
        given = {name: value for name, value in overrides.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"slim and RFB have no setting {', '.join(sorted(unknown))}; they have {known}")
        return replace(cls(**stored), **given)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(image: np.ndarray, run: Mapping[str, Network], settings: Settings) -> Detections:
    """The faces in an image (h, w, 3) uint8 RGB, surest first, with five landmarks each."""
    scaled, scale = resized(image, settings.long_side)
    face, box, landmarks = (output[0] for output in run["detector"](framed(scaled)))
    margin = face[:, 1] - face[:, 0]
    chosen = np.flatnonzero(margin > logit(settings.confidence))
    if len(chosen) > BEFORE_NMS:
        chosen = chosen[np.argpartition(-margin[chosen], BEFORE_NMS)[:BEFORE_NMS]]
    if not len(chosen):
        return Detections.empty(5)
    own = priors(*scaled.shape[:2])[chosen]
    xyxy, margin = decode(box[chosen], own), margin[chosen]
    keep = nms(xyxy, margin, settings.nms)[: settings.most]
    points = decode_points(landmarks[chosen[keep]], own[keep])
    return Detections(
        xyxy=xyxy[keep] / np.tile(scale, 2),
        confidence=1 / (1 + np.exp(-margin[keep])),
        class_id=np.zeros(len(keep), np.int64),
        keypoints=points / scale,
    )


def resized(image: np.ndarray, long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """The image with its longer side so long, and the scales (2,) of x and y, exact although sides are whole."""
    height, width = image.shape[:2]
    if long_side in (0, max(height, width)):
        return image, np.ones(2, np.float32)
    ratio = long_side / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    return cv2.resize(image, size, interpolation=how), scale


def framed(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> contiguous (1, 3, h + 2, w + 2) uint8: the image in a frame of MEAN, to even sides.

    Sides are even, so that the stem can be computed for four pixels at once (octavo.lower).
    """
    height, width = image.shape[:2]
    planes = np.empty((1, 3, (height + 3) // 2 * 2, (width + 3) // 2 * 2), np.uint8)
    for plane, pixels, colour in zip(planes[0], cv2.split(image), MEAN, strict=True):
        plane[0], plane[height + 1 :] = colour, colour
        plane[:, 0], plane[:, width + 1 :] = colour, colour
        plane[1 : height + 1, 1 : width + 1] = pixels
    return planes


@lru_cache(64)
def priors(height: int, width: int) -> np.ndarray:
    """The priors (P, 3) of an image: centre x, centre y, side; pixels. Read-only, since it is kept."""
    levels = []
    for stride, sides in LEVELS:
        rows, columns = -(-height // stride), -(-width // stride)
        cells = np.empty((rows, columns, len(sides), 3), np.float32)
        cells[..., 0] = (np.arange(columns)[None, :, None] + 0.5) * stride
        cells[..., 1] = (np.arange(rows)[:, None, None] + 0.5) * stride
        cells[..., 2] = sides
        levels.append(cells.reshape(-1, 3))
    joined = np.concatenate(levels)
    joined.flags.writeable = False
    return joined


def decode(offsets: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) x1, y1, x2, y2 from offsets (n, 4) and their priors (n, 3); they may leave the image.

    offsets: dx, dy, log dw, log dh, in units of the prior's side times VARIANCE.
    """
    centre = priors[:, :2] + offsets[:, :2] * VARIANCE[0] * priors[:, 2:]
    half = priors[:, 2:] * np.exp(offsets[:, 2:] * VARIANCE[1]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def decode_points(offsets: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Landmarks (n, 5, 2) from offsets (n, 10) x1, y1, x2, ... and their priors (n, 3)."""
    return priors[:, None, :2] + offsets.reshape(-1, 5, 2) * VARIANCE[0] * priors[:, None, 2:]


def logit(probability: float) -> float:
    """The difference of the two logits at which softmax gives this probability."""
    return log(max(probability, 1e-9) / max(1 - probability, 1e-9))
