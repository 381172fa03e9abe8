"""The cascade (Zhang et al. 2016, section II): P-Net proposes, R-Net refines, O-Net decides.

    image -> pyramid -> P-Net per level -> NMS within a level -> moved boxes -> NMS across levels
          -> square crops 24x24 -> R-Net -> moved boxes -> NMS
          -> square crops 48x48 -> O-Net -> moved boxes and landmarks -> NMS by the smaller area

A P-Net cell (i, j) of a level looks at the 12x12 pixels from (2j, 2i) of that level. Boxes are moved by the networks'
offsets in units of their own side, and compared after that, as the paper has it (its code compares the windows): at
equal AP, R- and O-Net have an eighth less to look at. Only NumPy and OpenCV: `run` maps a network's name to a function
of uint8 NCHW pixels (see octavo.run), so the same lines serve every runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import chain, repeat
from math import ceil, log
from typing import Any

import cv2
import numpy as np

from octavo.boxes import crop_resize, nms, square
from octavo.outputs import Detections

CELL, STRIDE = 12, 2  # P-Net's window and step, pixels
REACH = CELL // STRIDE  # cells so many steps apart don't overlap
BATCH = 64  # crops given to R-Net or O-Net at once: bounds memory in a crowd; larger ones are no faster

TASK = "faces"
# What AP is measured with unless a caller says otherwise: low thresholds, since a face that was cut off can't be found,
# the paper's pyramid and a loose NMS. .5 and .5 are those of the published re-runs (FACTS, section 1); .8 and .9 find
# of boxes what .7 of the published code finds of windows, which have not come together yet (held-out images, LOG.md).
MEASURING: dict[str, Any] = {
    "thresholds": (0.5, 0.5, 0.02),
    "factor": 0.709,
    "nms": (0.5, 0.8, 0.9, 0.7),
}

Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Settings:
    """What a user may change at prediction time. Defaults are the paper's, with its code's NMS.

    min_face    shortest face searched for, pixels of the image
    factor      ratio of one pyramid level to the one before, or several: of the second to the first, of the third to
                the second, ..., the last one for all that follow
    thresholds  lowest face probability that P-Net, R-Net and O-Net let pass
    nms         largest overlap kept: within a level, across levels, after R-Net, after O-Net
    confidence  lowest probability reported, on top of the thresholds
    """

    min_face: float = 20
    factor: float | tuple[float, ...] = 0.709
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    nms: tuple[float, float, float, float] = (0.5, 0.7, 0.7, 0.7)
    confidence: float = 0.0

    def __post_init__(self) -> None:
        for name, count in (("thresholds", 3), ("nms", 4)):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != count or not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name} takes {count} numbers from 0 to 1, not {values}")
        if not self.min_face > 0:
            raise ValueError(f"min_face is a length in pixels above 0, not {self.min_face}")
        factors = tuple(map(float, self.factors))
        object.__setattr__(self, "factor", factors[0] if len(factors) == 1 else factors)
        if not factors or not all(0.1 <= factor <= 0.95 for factor in factors):
            raise ValueError(f"factor is the ratio of two pyramid levels, .1 to .95, not {self.factor}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence is a probability, 0 to 1, not {self.confidence}")

    @property
    def factors(self) -> tuple[float, ...]:
        """One number or more."""
        return tuple(self.factor) if isinstance(self.factor, Iterable) else (self.factor,)

    @classmethod
    def of(cls, stored: Mapping[str, Any], **overrides: Any) -> Settings:
        """A model's stored settings with a call's overrides (None means: not given).

        A confidence without thresholds asks for everything that sure and more, so it takes the last
        threshold's place; beside thresholds it only filters what they let through.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"MTCNN has no setting {', '.join(sorted(unknown))}; it has {known}")
        settings = replace(cls(**stored), **given)
        if "confidence" in given and "thresholds" not in given:
            first, second, _ = settings.thresholds
            settings = replace(settings, thresholds=(first, second, given["confidence"]))
        return settings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(image: np.ndarray, run: Mapping[str, Network], settings: Settings) -> Detections:
    """Faces in an image (h, w, 3) uint8 RGB of any size, surest first, with five landmarks each.

    Landmarks: the eyes, the nose, the corners of the mouth, each pair in the order left, right as seen.
    """
    boxes = propose(image, run["pnet"], settings)
    boxes = refine(image, boxes, run["rnet"], settings)
    boxes, confidence, keypoints = decide(image, boxes, run["onet"], settings)
    sure = confidence >= settings.confidence
    return Detections(
        xyxy=boxes[sure],
        confidence=confidence[sure],
        class_id=np.zeros(int(sure.sum()), np.int64),
        keypoints=keypoints[sure],
        image=image,
    )


def propose(image: np.ndarray, pnet: Network, settings: Settings) -> np.ndarray:
    """The boxes (n, 4) in which P-Net sees a face, moved, surest first. Not squared, may leave the image."""
    found = scan(image, pnet, settings)
    return found[proposed(found, *settings.nms[:2])].boxes


@dataclass(frozen=True, eq=False)
class Cells:
    """What P-Net takes for a face, in all levels: n cells.

    places   (n, 2) row and column in a table in which the levels lie side by side, REACH apart
    windows  (n, 4) pixels of the image
    scores   (n,) difference of the two logits
    offsets  (n, 4) in units of the cell's side
    """

    places: np.ndarray
    windows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) the windows, moved."""
        return move(self.windows, self.offsets)

    def __getitem__(self, rows: np.ndarray) -> Cells:
        return Cells(self.places[rows], self.windows[rows], self.scores[rows], self.offsets[rows])


def scan(image: np.ndarray, pnet: Network, settings: Settings) -> Cells:
    """All cells of all levels that pass P-Net's threshold."""
    limit = logit(settings.thresholds[0])
    found = []
    levels: list[tuple[float, ...]] = []  # of each: columns before it in the table, columns of it, its scale
    start = 0
    for level, scale in pyramid(image, settings):
        face, box = pnet(to_planes(level))
        margin = face[0, 1] - face[0, 0]
        passed = np.flatnonzero(margin > limit)
        width = margin.shape[1]
        found.append(
            (passed, np.full(len(passed), len(levels)), margin.ravel()[passed], box.reshape(4, -1)[:, passed])
        )
        levels.append((start, width, *scale))
        start += width + REACH
    if not found:
        return Cells(
            np.empty((0, 2), np.intp), *(np.empty(shape, np.float32) for shape in ((0, 4), 0, (0, 4)))
        )
    passed, level_of, scores, offsets = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
    starts, widths = np.array(levels)[level_of, :2].astype(np.intp).T
    y, x = np.divmod(passed, widths)
    corner = np.stack([x, y, x, y], axis=1).astype(np.float32) * STRIDE
    corner[:, 2:] += CELL
    scales = np.array(levels, np.float32)[level_of, 2:]
    return Cells(np.stack([y, x + starts], axis=1), corner / scales, scores, offsets.T)


def proposed(found: Cells, within: float, across: float) -> np.ndarray:
    """The rows that NMS within the levels and then across them keeps, surest first."""
    rows = thin(found, within)
    left = found[rows]
    return rows[nms(left.boxes, left.scores, across)]


def thin(found: Cells, threshold: float) -> np.ndarray:
    """Non-maximum suppression within the levels: the rows kept, surest first, those that octavo.boxes.nms keeps.

    On a grid it is known beforehand which neighbours a cell overlaps by more than the threshold, so all cells are
    decided together: one without a surer neighbour stays and its neighbours go, again and again until none is left.
    """
    order = np.argsort(-found.scores, kind="stable")
    count = len(order)
    height, width = found.places.max(axis=0, initial=0) + 1 + 2 * REACH
    at = (found.places[order] + REACH) @ (width, 1)
    table = np.full(height * width, count)
    table[at] = np.arange(count)  # now a number is the cell's rank
    near = table[at[:, None] + neighbours(threshold) @ (width, 1)]
    one, which = np.nonzero(near < count)
    two = near[one, which]
    surer, other = np.minimum(one, two), np.maximum(one, two)
    kept, open_ = np.zeros(count, bool), np.ones(count, bool)
    while len(surer):
        stays = open_.copy()
        stays[other] = False
        kept |= stays
        open_ &= ~stays
        open_[other[stays[surer]]] = False
        undecided = open_[surer] & open_[other]
        surer, other = surer[undecided], other[undecided]
    return order[kept | open_]


@cache
def neighbours(threshold: float) -> np.ndarray:
    """(k, 2) rows and columns from a cell to those behind it that it overlaps (IoU) by more than the threshold."""
    near = range(1 - REACH, REACH)
    shared = {(y, x): (CELL - STRIDE * abs(y)) * (CELL - STRIDE * abs(x)) for y in near for x in near}
    wanted = [at for at, s in shared.items() if at > (0, 0) and s / (2 * CELL**2 - s) > threshold]
    return np.array(wanted, np.intp).reshape(-1, 2)


def refine(image: np.ndarray, boxes: np.ndarray, rnet: Network, settings: Settings) -> np.ndarray:
    """The boxes (n, 4) that R-Net believes in, moved, surest first."""
    windows = np.rint(square(boxes))  # whole pixels, so that what is cut out is what is moved
    face, offsets = look(image, windows, rnet, 24, (2, 4))
    margin = face[:, 1] - face[:, 0]
    passed = margin > logit(settings.thresholds[1])
    boxes = move(windows[passed], offsets[passed])
    return boxes[nms(boxes, margin[passed], settings.nms[2])]


def decide(
    image: np.ndarray, boxes: np.ndarray, onet: Network, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """O-Net's boxes (n, 4), face probabilities (n,) and landmarks (n, 5, 2), surest first."""
    windows = np.rint(square(boxes))  # whole pixels, so that what is cut out is what is moved
    face, offsets, points = look(image, windows, onet, 48, (2, 4, 10))
    margin = face[:, 1] - face[:, 0]
    passed = margin > logit(settings.thresholds[2])
    windows, margin, offsets, points = windows[passed], margin[passed], offsets[passed], points[passed]
    boxes = move(windows, offsets)
    keep = nms(boxes, margin, settings.nms[3], "min")
    return boxes[keep], probability(margin[keep]), landmarks(windows[keep], points[keep])


def pyramid(image: np.ndarray, settings: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Levels (h, w, 3) on which faces from min_face up are 12 pixels, and their scales.

    A scale is (4,): level over image, for x, y, x, y, exact although sizes are whole pixels. Sides are even,
    so that P-Net's first layers can be computed for four pixels at once (octavo.lower). Each level is made
    from the one before, which costs a third of resizing the image for each. An image in which not even one
    12 pixel cell fits has no level.
    """
    height, width = image.shape[:2]
    levels: list[tuple[np.ndarray, np.ndarray]] = []
    scale, level = CELL / settings.min_face, image
    for factor in chain(settings.factors, repeat(settings.factors[-1])):
        if min(height, width) * scale < CELL:
            break
        size = (2 * ceil(width * scale / 2), 2 * ceil(height * scale / 2))
        if size != (level.shape[1], level.shape[0]):
            shrinks = size[0] < 0.6 * level.shape[1]
            level = cv2.resize(level, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        levels.append((level, np.array([size[0] / width, size[1] / height] * 2, np.float32)))
        scale *= factor
    return levels


def look(
    image: np.ndarray, windows: np.ndarray, network: Network, size: int, widths: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """A network's answers (n, width) for square windows (n, 4) of the image, in bounded batches."""
    if not len(windows):
        return tuple(np.empty((0, width), np.float32) for width in widths)
    batches = [
        network(to_nchw(crop_resize(image, windows[start : start + BATCH], size)))
        for start in range(0, len(windows), BATCH)
    ]
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def move(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) with their corners moved by offsets (n, 4) in units of the box's own width and height."""
    side = boxes[:, 2:] - boxes[:, :2]
    return (boxes + offsets * np.tile(side, 2)).astype(np.float32)


def landmarks(windows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 5, 2) pixels of O-Net's points (n, 10), x1..x5 y1..y5 in units of the window's side, of windows (n, 4)."""
    side = (windows[:, 2:] - windows[:, :2])[:, None]
    return windows[:, None, :2] + points.reshape(-1, 2, 5).transpose(0, 2, 1) * side


def to_planes(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> contiguous (1, 3, h, w), uint8: five times faster than a transposed copy for whole images."""
    planes = np.empty((1, 3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes[0]))
    return planes


def to_nchw(pixels: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) -> contiguous (n, 3, h, w), uint8."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def probability(margin: np.ndarray) -> np.ndarray:
    """What softmax makes of differences of two logits."""
    return 1 / (1 + np.exp(-margin))


def logit(probability: float) -> float:
    """The difference of the two logits at which softmax gives this probability."""
    return log(max(probability, 1e-9) / max(1 - probability, 1e-9))
