"""Landmark error: how far the five points of found faces are from the annotated ones.

    NME = mean over faces of  mean over 5 points |p - q| / normaliser

The normaliser is sqrt(w h) of the annotated box ("size": it means the same for profiles, whose eyes almost
coincide), or the distance of the annotated eyes ("interocular", as in the 300-W tables). A fraction, not %.

Measured on valid faces with all five points annotated that were found: the detection with the best score
among those that overlap the face most, with IoU >= .5, as in `evaluate/widerface.py`. Faces that were not
found have no error: read the number together with `found` of `faces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.data.widerface import POINTS, Entry
from octavo.evaluate.events import align
from octavo.outputs import Detections

NORMALISERS = ("size", "interocular")


@dataclass(frozen=True, slots=True)
class LandmarkError:
    nme: float | None  # None where no face was found
    found: int
    faces: int  # valid, with five annotated points


def nme(
    entries: Sequence[Entry], detections: Mapping[str, Detections], normaliser: str = "size"
) -> dict[str, float]:
    """{event: NME, ..., "all": NME}; events without a found face with landmarks are left out."""
    measured = measure(entries, detections, normaliser)
    return {event: error.nme for event, error in measured.items() if error.nme is not None}


def measure(
    entries: Sequence[Entry], detections: Mapping[str, Detections], normaliser: str = "size"
) -> dict[str, LandmarkError]:
    """{event: LandmarkError, ..., "all": ...}; see `errors`."""
    return {name: summed(error) for name, error in errors(entries, detections, normaliser).items()}


def summed(error: np.ndarray) -> LandmarkError:
    """The mean over the found faces of an array of `errors`."""
    found = error[~np.isnan(error)]
    return LandmarkError(float(found.mean()) if len(found) else None, len(found), len(error))


def errors(
    entries: Sequence[Entry], detections: Mapping[str, Detections], normaliser: str = "size"
) -> dict[str, np.ndarray]:
    """{event: (faces,) error of each valid face with five annotated points, ..., "all": ...}.

    NaN where the face was not found; events without any annotated landmark are left out.
    detections: {entry.name: Detections with keypoints (n, 5, 2)}, in the order of the annotation: left eye,
    right eye, nose, left and right corner of the mouth (left as seen in the image).
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser {normaliser!r} is not known: give one of {', '.join(NORMALISERS)}")
    pairs = align(entries, detections)
    truth = np.concatenate([entry.keypoints for entry in entries]).astype(np.float64)  # (faces, 5, 2)
    known = pairs.valid & np.isfinite(truth).all(axis=(1, 2))
    length = pairs.size if normaliser == "size" else np.linalg.norm(truth[:, 0] - truth[:, 1], axis=1)
    known &= length > 0  # eyes on the same pixel have no distance to divide by

    matches = pairs.matches
    used = np.flatnonzero(matches.first)
    used = used[known[matches.face[used]]]
    face, image, index = matches.face[used], matches.image[used], matches.index[used]
    found = np.empty((len(used), *truth.shape[1:]))
    for i in np.unique(image):
        of_image = image == i
        found[of_image] = _keypoints(entries[i].name, detections[entries[i].name])[index[of_image]]
    error = np.full(len(truth), np.nan)  # of each annotated face
    error[face] = np.linalg.norm(found - truth[face], axis=2).mean(axis=1) / length[face]

    members = {name: known & (pairs.event == name) for name in dict.fromkeys(pairs.event.tolist())}
    return {name: error[which] for name, which in {**members, "all": known}.items() if which.any()}


def _keypoints(name: str, detections: Detections) -> np.ndarray:
    """(n, 5, 2) by descending confidence, as the matches count."""
    points = detections.keypoints
    if points is None or points.shape[1:] != (POINTS, 2):
        found = "none" if points is None else f"an array of shape {points.shape}"
        raise ValueError(f"{name}: expected keypoints of shape (n, {POINTS}, 2), found {found}")
    return points[np.argsort(-detections.confidence.astype(np.float64), kind="stable")]
