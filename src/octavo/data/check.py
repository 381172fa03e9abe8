"""Look at a data set in the layout of WIDER FACE before hours are spent on it: `octavo data DIR`.

Every annotated image is read and decoded once (in a few threads; only its size and a hash are kept), and
compared with its annotation. What a training run would stumble over, or silently learn from, is listed:
files that are missing, broken or listed nowhere; boxes that leave the image; the same box twice; points far
from their face; the same file twice, above all once in train and once in val.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from octavo import images
from octavo.boxes import area
from octavo.data import DatasetError, sheet
from octavo.data import files as checked
from octavo.data.files import File, Tables, look_at_all, twins
from octavo.data.widerface import Entry, annotation_file, image_folder, read, size_bins, splits


@dataclass(frozen=True)
class Event:
    images: int = 0
    faces: int = 0  # valid ones
    invalid: int = 0
    landmarks: int = 0  # valid faces with all five points


@dataclass(frozen=True)
class Split:
    name: str
    events: dict[str, Event]
    sizes: dict[str, int]  # valid faces by sqrt(w h) in pixels
    without_faces: int  # images
    # Findings: names of images, with the face or the reason where there is one.
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()  # image files that no annotation names
    outside: tuple[str, ...] = ()  # valid boxes with no part, or less than half of it, in the image
    repeated: tuple[str, ...] = ()  # valid boxes listed twice in an image
    strayed: tuple[str, ...] = ()  # faces with a landmark farther from the box than half its size

    @property
    def total(self) -> Event:
        return Event(*(sum(getattr(e, f) for e in self.events.values()) for f in Event.__dataclass_fields__))


@dataclass(frozen=True)
class Report(checked.Report):
    notes: tuple[str, ...] = ()  # what the reader warned of

    SAID: ClassVar[Mapping[str, str]] = {
        "missing": "images are missing",
        "broken": "images cannot be read",
        "outside": "boxes lie outside their image by half or more",
        "repeated": "boxes are listed twice in their image",
        "strayed": "faces have a landmark far from their box",
        "unlisted": "image files are not in the annotations",
    }

    def findings(self) -> list[str]:
        return super().findings() + list(self.notes)

    def tables(self) -> Tables:
        made: Tables = []
        columns = ("event", "images", "faces", "marked invalid", "with landmarks")
        for split in self.splits:
            events = {**split.events, "all": split.total}
            rows = [(name, e.images, e.faces, e.invalid, e.landmarks) for name, e in events.items()]
            made.append((split.name, columns, rows))
            made.append(("", ("face size, px", "faces"), list(split.sizes.items())))
        return made

    def to_dict(self) -> dict[str, Any]:
        totals = {split.name: asdict(split.total) for split in self.splits}
        return {
            **asdict(self),
            "ok": self.ok,
            "leaks": self.leaks,
            "total": totals,
            "findings": self.findings(),
        }


def check(
    root: str | Path,
    split: str | None = None,
    contact_sheet: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check one split, or all that have annotations.

    contact_sheet: where to write a picture of samples (.jpg or .png).
    progress: called with the number of images done and of all, from this thread.
    Raises DatasetError where `root` has no such split; what is wrong inside it is in the report.
    """
    if contact_sheet is not None:
        sheet.check_suffix(contact_sheet)
    names = splits(root) if split is None else [split]
    if not names or not annotation_file(root, names[0]).is_file():
        read(root, split or "train", missing="keep")  # raises, and says what is expected
    entries: dict[str, list[Entry]] = {}
    errors: list[str] = []
    notes: list[str] = []
    for name in names:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                entries[name] = read(root, name, missing="keep")
            notes += [str(warning.message) for warning in caught]
        except DatasetError as error:
            errors.append(str(error))

    paths = [entry.path for of_split in entries.values() for entry in of_split]
    files = look_at_all(paths, progress)
    report = Report(
        root=str(root),
        splits=tuple(_split(name, of_split, files, root) for name, of_split in entries.items()),
        errors=tuple(errors),
        twins=twins(entries, files),
        notes=tuple(notes),
    )
    if contact_sheet is not None:
        good = {
            name: [entry for entry in of_split if not files[entry.path].error]
            for name, of_split in entries.items()
        }
        sheet.write(contact_sheet, good)
    return report


def _split(name: str, entries: list[Entry], files: dict[Path, File], root: str | Path) -> Split:
    by_event: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_event[entry.event].append(entry)
    sizes = np.concatenate([entry.sizes[~entry.invalid] for entry in entries])
    missing, broken, outside, repeated, strayed = [], [], [], [], []
    for entry in entries:
        file = files[entry.path]
        if file.missing:
            missing.append(entry.name)
        elif file.error:
            broken.append(f"{entry.name} ({file.error})")
        else:
            outside += _faces(entry, _mostly_outside(entry, file.width, file.height))
        repeated += _faces(entry, _repeated(entry))
        strayed += _faces(entry, _strayed(entry))
    return Split(
        name=name,
        events={event: _event(members) for event, members in by_event.items()},
        sizes={k: int(((low <= sizes) & (sizes < high)).sum()) for k, (low, high) in size_bins().items()},
        without_faces=sum(not len(entry.xyxy) for entry in entries),
        missing=tuple(missing),
        broken=tuple(broken),
        unlisted=tuple(_unlisted(image_folder(root, name), {entry.name for entry in entries})),
        outside=tuple(outside),
        repeated=tuple(repeated),
        strayed=tuple(strayed),
    )


def _event(entries: Sequence[Entry]) -> Event:
    invalid = np.concatenate([entry.invalid for entry in entries])
    marked = np.concatenate([np.isfinite(entry.keypoints).all(axis=(1, 2)) for entry in entries])
    return Event(len(entries), int((~invalid).sum()), int(invalid.sum()), int((marked & ~invalid).sum()))


def _faces(entry: Entry, mask: np.ndarray) -> list[str]:
    return [f"{entry.name} face {i + 1}" for i in np.flatnonzero(mask & ~entry.invalid)]


def _mostly_outside(entry: Entry, width: int, height: int) -> np.ndarray:
    inner = np.clip(entry.xyxy, 0, [width, height, width, height])
    return area(inner) < 0.5 * area(entry.xyxy)


def _repeated(entry: Entry) -> np.ndarray:
    seen: set[bytes] = set()
    out = np.zeros(len(entry.xyxy), bool)
    for i, box in enumerate(entry.xyxy):
        out[i] = box.tobytes() in seen
        seen.add(box.tobytes())
    return out


def _strayed(entry: Entry) -> np.ndarray:
    room = entry.sizes[:, None, None] / 2
    low, high = entry.xyxy[:, None, :2] - room, entry.xyxy[:, None, 2:] + room
    far = (entry.keypoints < low) | (entry.keypoints > high)  # NaN is on neither side
    return np.asarray(far.any(axis=(1, 2)))


def _unlisted(folder: Path, listed: set[str]) -> list[str]:
    out = []
    for at, _, names in os.walk(folder):
        event = os.path.relpath(at, folder).replace(os.sep, "/")
        paths = [name if event == "." else f"{event}/{name}" for name in names]
        out += [path for path in paths if path.lower().endswith(images.SUFFIXES) and path not in listed]
    return sorted(out)
