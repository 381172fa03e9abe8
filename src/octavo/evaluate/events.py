"""Average precision for data sets without the benchmark's lists: by event and by size of the face.

The protocol is the one of `evaluate/widerface.py`; only the subsets are others. A subset has the valid faces
of one event (or of all), or those of one size. An invalid face is an annotated face outside every subset:
a detection that overlaps it most is ignored, neither right nor wrong. Scores are normalised over all
detections, so that one threshold means the same in every event.

By size, a detection that looks at no face is a false positive in the bin of its own size (as in COCO): small
false alarms say nothing of large faces.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.data.widerface import SIZES, Entry, size_bins
from octavo.evaluate.tuning import Scores
from octavo.evaluate.widerface import Curve, Matches, curve, from_memory, match
from octavo.outputs import Detections


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Detections matched with the faces of all images, and what subsets of faces are made of."""

    matches: Matches
    shown: np.ndarray  # (p,) float64: sqrt(w h) of the matched detections, pixels
    valid: np.ndarray  # (faces,) bool
    event: np.ndarray  # (faces,) str
    size: np.ndarray  # (faces,) float32: sqrt(w h), pixels


def align(entries: Sequence[Entry], detections: Mapping[str, Detections]) -> Pairs:
    """Match {entry.name: Detections} with the faces of the entries; names of other images are not looked at.

    Entries without detections in the mapping count as if nothing was found, with a warning.
    """
    if not any((~entry.invalid).any() for entry in entries):
        raise ValueError(f"{len(entries)} images without a single valid face: there is nothing to measure")
    absent = [entry.name for entry in entries if entry.name not in detections]
    if absent:
        warnings.warn(
            f"{len(absent)} of {len(entries)} images have no detections given and count as if nothing was "
            f"found, for instance {absent[0]}",
            stacklevel=3,
        )
    known = {entry.name: detections[entry.name] for entry in entries if entry.name in detections}
    rows, _ = from_memory(known, [entry.name for entry in entries])
    matches = match(rows, [entry.xyxy for entry in entries])
    sizes = [np.sqrt(np.prod(row[:, 2:4] - row[:, :2], axis=1)) for row in rows]
    start = np.cumsum([0] + [len(row) for row in rows])
    return Pairs(
        matches=matches,
        shown=np.concatenate(sizes)[start[matches.image] + matches.index],
        valid=~np.concatenate([entry.invalid for entry in entries]),
        event=np.repeat([entry.event for entry in entries], [len(entry.xyxy) for entry in entries]),
        size=np.concatenate([entry.sizes for entry in entries]),
    )


def by_event(entries: Sequence[Entry], detections: Mapping[str, Detections]) -> dict[str, float]:
    """{event: AP, ..., "all": AP} over the valid faces; see `curves`."""
    return {name: of_event.ap for name, of_event in curves(entries, detections).items()}


def curves(entries: Sequence[Entry], detections: Mapping[str, Detections]) -> dict[str, Curve]:
    """{event: Curve, ..., "all": Curve} over the valid faces.

    detections: {entry.name: Detections}. Events without a valid face are left out: there is nothing to find.
    Images without any annotated face say nothing of precision, as in the benchmark.
    """
    pairs = align(entries, detections)
    event = np.array([entry.event for entry in entries])
    out = {}
    for name in dict.fromkeys(event.tolist()):
        of_event = curve(
            pairs.matches, pairs.valid & (pairs.event == name), event[pairs.matches.image] == name
        )
        if of_event.faces:
            out[name] = of_event
    return {**out, "all": curve(pairs.matches, pairs.valid)}


def by_size(
    entries: Sequence[Entry], detections: Mapping[str, Detections], edges: Sequence[float] = SIZES
) -> dict[str, float]:
    """{"0-16": AP, ..., "256+": AP} over the valid faces with edge <= sqrt(w h) < next edge, in pixels.

    Bins without a face are left out.
    """
    pairs = align(entries, detections)
    out = {}
    for name, (low, high) in size_bins(edges).items():
        faces = pairs.valid & (low <= pairs.size) & (pairs.size < high)
        if faces.any():
            of_size = curve(pairs.matches, faces, (low <= pairs.shown) & (pairs.shown < high))
            out[name] = of_size.ap
    return out


def reported(pairs: Pairs) -> tuple[float, float]:
    """Precision and recall of all detections taken together; those on invalid faces count for neither.

    Precision is 1 where nothing was found: nothing was said that is wrong.
    """
    looking = pairs.matches.face >= 0
    judged = ~looking
    judged[looking] = pairs.valid[pairs.matches.face[looking]]
    right = int((pairs.matches.first & looking & judged).sum())
    return right / int(judged.sum()) if judged.any() else 1.0, right / int(pairs.valid.sum())


def scores(entries: Sequence[Entry], detections: Mapping[str, Detections]) -> Scores:
    """AP, precision and recall over all valid faces."""
    pairs = align(entries, detections)
    return Scores(curve(pairs.matches, pairs.valid).ap, *reported(pairs))
