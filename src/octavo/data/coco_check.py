"""Look at a data set in the layout of COCO before hours are spent on it: `octavo data DIR`.

Every annotated image is read and decoded once, and compared with its annotation: files that are missing, broken, or of
another size than the annotation says; boxes that leave the image or have no area; files listed nowhere; the same file
twice, above all once in train and once in val.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from octavo import images
from octavo.boxes import area
from octavo.data import DatasetError
from octavo.data import files as checked
from octavo.data.coco import Entry, annotation_file, image_folder, read, splits
from octavo.data.files import File, Tables, look_at_all, twins


@dataclass(frozen=True)
class Split:
    name: str
    images: int
    objects: dict[str, int]  # of each class that occurs, the most frequent first; crowds left out
    crowds: int
    empty: int  # images without an object
    # Findings: names of images, with the object or the reason where there is one.
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(checked.Report):
    SAID: ClassVar[Mapping[str, str]] = {
        "missing": "images are missing",
        "broken": "images cannot be read",
        "resized": "images have another size than annotated",
        "outside": "boxes lie outside their image by half or more",
        "flat": "boxes have no area",
        "unlisted": "image files are not in the annotations",
    }

    def tables(self) -> Tables:
        """The splits, then their ten most frequent classes."""
        columns = ("split", "images", "objects", "crowds", "images without")
        counts = [(s.name, s.images, sum(s.objects.values()), s.crowds, s.empty) for s in self.splits]
        frequent = [(s.name, ("class", "objects"), [*s.objects.items()][:10]) for s in self.splits]
        return [("", columns, [*counts]), *frequent]


def check(
    root: str | Path,
    split: str | None = None,
    contact_sheet: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check one split, or all that have annotations.

    progress: called with the number of images done and of all. Raises DatasetError where `root` has no such split,
    and ValueError for a contact sheet, of which there is none for objects; what is wrong inside is in the report.
    """
    if contact_sheet is not None:
        raise ValueError("there is no contact sheet of data sets in COCO's layout")
    names = splits(root) if split is None else [split]
    if not names or annotation_file(root, names[0]) is None:
        read(root, split or "train")  # raises, and says what is expected
    entries: dict[str, list[Entry]] = {}
    errors = []
    for name in names:
        try:
            entries[name] = read(root, name, missing="keep")
        except DatasetError as error:
            errors.append(str(error))
    paths = [entry.path for of_split in entries.values() for entry in of_split]
    files = look_at_all(paths, progress)
    return Report(
        str(root),
        tuple(_split(name, of_split, files, Path(root)) for name, of_split in entries.items()),
        tuple(errors),
        twins(entries, files),
    )


def _split(name: str, entries: Sequence[Entry], files: dict[Path, File], root: Path) -> Split:
    found: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        file = files[entry.path]
        if file.missing:
            found["missing"].append(entry.name)
        elif file.error:
            found["broken"].append(f"{entry.name} ({file.error})")
        elif (file.width, file.height) != entry.size:
            said = "{}x{}".format(*entry.size)
            found["resized"].append(f"{entry.name} ({said} annotated, {file.width}x{file.height} there)")
        size = area(entry.xyxy)
        inner = area(np.clip(entry.xyxy, 0, np.tile(entry.size, 2)))
        found["outside"] += _objects(entry, inner < 0.5 * size)
        found["flat"] += _objects(entry, size == 0)
    source = annotation_file(root, name)
    assert source is not None
    listed = {entry.name for entry in entries}
    there = image_folder(root, source)
    files_there = (p.relative_to(there).as_posix() for p in sorted(there.rglob("*")))
    found["unlisted"] = [p for p in files_there if p.lower().endswith(images.SUFFIXES) and p not in listed]
    labels = Counter(entry.classes[label] for entry in entries for label in entry.class_id[~entry.crowd])
    return Split(
        name=name,
        images=len(entries),
        objects=dict(labels.most_common()),
        crowds=int(sum(entry.crowd.sum() for entry in entries)),
        empty=sum(not len(entry.xyxy) for entry in entries),
        **{kind: tuple(names) for kind, names in found.items()},
    )


def _objects(entry: Entry, mask: np.ndarray) -> list[str]:
    return [f"{entry.name} object {i + 1}" for i in np.flatnonzero(mask)]
