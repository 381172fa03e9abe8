"""What slim and RFB learn: which priors see a face, how its box and its points lie to them (SSD's multibox loss).

    loss = face + w_box · box + w_landmarks · landmarks          each a mean over the priors that have it

    face       cross-entropy of all positives and, image by image, of the hardest negatives, 7 to a positive
    box        smooth L1 of the offsets that `predict.decode` turns into a box, of positives
    landmarks  the same of ten coordinates, of positives whose face has them

`match` says, before, what each prior has to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.boxes import intersection, iou

from .predict import VARIANCE
from .recipe import Matching, Weights

IGNORED, NEGATIVE, POSITIVE = -1, 0, 1  # kinds of priors


@dataclass(frozen=True)
class Targets:
    """For the priors of one image: kind (P,), box (P, 4) and landmarks (P, 10) offsets, NaN where not known."""

    kind: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray


def match(
    priors: np.ndarray, faces: np.ndarray, points: np.ndarray, unsure: np.ndarray, matching: Matching
) -> Targets:
    """Priors (P, 3) centre, side; faces (n, 4) and their points (n, 5, 2), NaN where unknown; unsure boxes (m, 4).

    A prior takes the face it overlaps most, if by `matching.positive`. Besides, each face, the best overlapped
    one first, claims the prior that overlaps it most and is not claimed yet. A face that no prior overlaps by
    `matching.claimed` is too small or too long to be learned: it is unsure.
    """
    squares = corners(priors)
    kind = np.full(len(priors), NEGATIVE, np.int64)
    box = np.zeros((len(priors), 4), np.float32)
    landmarks = np.full((len(priors), 10), np.nan, np.float32)
    if len(faces):
        overlap = iou(squares, faces)
        learned = overlap.max(0) >= matching.claimed
        unsure = np.concatenate([unsure.reshape(-1, 4), faces[~learned]])
        faces, points, overlap = faces[learned], points[learned], overlap[:, learned]
    if len(unsure):
        share = intersection(squares, unsure) / (priors[:, 2:] ** 2)
        kind[share.max(1) >= matching.ignored] = IGNORED
    if len(faces):
        best, top = overlap.argmax(1), overlap.max(1)
        for face in np.argsort(-overlap.max(0), kind="stable"):
            free = np.where(top <= 1, overlap[:, face], 0)
            prior = int(free.argmax())
            best[prior], top[prior] = face, 2.0  # above any overlap: claimed
        positive = top >= matching.positive
        kind[positive] = POSITIVE
        box[positive] = encode(faces[best[positive]], priors[positive])
        landmarks[positive] = encode_points(points[best[positive]], priors[positive])
    return Targets(kind, box, landmarks)


def corners(priors: np.ndarray) -> np.ndarray:
    """Priors (P, 3) as boxes (P, 4)."""
    half = priors[:, 2:] / 2
    return np.concatenate([priors[:, :2] - half, priors[:, :2] + half], axis=1)


def encode(faces: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Offsets (n, 4) of boxes (n, 4) from their priors (n, 3): the inverse of `predict.decode`."""
    centre, sides = (faces[:, :2] + faces[:, 2:]) / 2, faces[:, 2:] - faces[:, :2]
    moved = (centre - priors[:, :2]) / (VARIANCE[0] * priors[:, 2:])
    grown = np.log(np.maximum(sides, 1e-3) / priors[:, 2:]) / VARIANCE[1]
    return np.concatenate([moved, grown], axis=1)


def encode_points(points: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Offsets (n, 10) of points (n, 5, 2) from their priors (n, 3): the inverse of `predict.decode_points`."""
    return ((points - priors[:, None, :2]) / (VARIANCE[0] * priors[:, None, 2:])).reshape(-1, 10)


def loss(outputs: tuple[Tensor, ...], targets: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The weighted parts of the loss; their sum is minimised.

    outputs  face (n, P, 2), box (n, P, 4), landmarks (n, P, 10)
    targets  kind (n, P) int64, box (n, P, 4), landmarks (n, P, 10) with NaN where unknown
    """
    face, box, landmarks = (output.float() for output in outputs)
    positive = targets["kind"] == POSITIVE
    known = positive & ~targets["landmarks"].isnan().any(dim=2)
    box_error = F.smooth_l1_loss(box[positive], targets["box"][positive], reduction="sum")
    points_error = F.smooth_l1_loss(landmarks[known], targets["landmarks"][known], reduction="sum")
    return {
        "face": weights.face * face_loss(face, targets["kind"], weights.matching),
        "box": weights.box * box_error / positive.sum().clamp(min=1),
        "landmarks": weights.landmarks * points_error / known.sum().clamp(min=1),
    }


def face_loss(face: Tensor, kind: Tensor, matching: Matching) -> Tensor:
    """Cross-entropy of positives and of each image's hardest negatives, over the number of positives."""
    positive = kind == POSITIVE
    losses = F.cross_entropy(face.flatten(0, 1), positive.flatten().long(), reduction="none").reshape(
        kind.shape
    )
    hardness = torch.where(kind == NEGATIVE, losses.detach(), -1.0)
    rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
    wanted = (matching.negatives * positive.sum(1, keepdim=True)).clamp(min=matching.fewest_negatives)
    counted = positive | ((rank < wanted) & (kind == NEGATIVE))
    return (losses * counted).sum() / positive.sum().clamp(min=1)
