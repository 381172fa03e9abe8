"""Look at a data set in the layout of COCO before hours are spent on it: `octavo data DIR`.

Every annotated image is read and decoded once, and compared with its annotation: files that are missing, broken, or of
another size than the annotation says; boxes that leave the image or have no area; files listed nowhere; the same file
twice, above all once in train and once in val.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo import images
from octavo.boxes import area
from octavo.data.check import THREADS, File, look_at
from octavo.data.coco import DatasetError, Entry, annotation_file, image_folder, read, splits

_SHOWN = 3  # names per finding in the text; `to_dict` has all


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


# What is said of each kind of finding.
SAID = {
    "missing": "images are missing",
    "broken": "images cannot be read",
    "resized": "images have another size than annotated",
    "outside": "boxes lie outside their image by half or more",
    "flat": "boxes have no area",
    "unlisted": "image files are not in the annotations",
}


@dataclass(frozen=True)
class Report:
    root: str
    splits: tuple[Split, ...]
    errors: tuple[str, ...] = ()  # annotations that cannot be read at all
    twins: tuple[tuple[str, ...], ...] = ()  # groups of identical files, as "split/NAME.jpg"

    @property
    def ok(self) -> bool:
        """Whether training and evaluation can read everything; the other findings are for judgement."""
        return not self.errors and not any(split.missing or split.broken for split in self.splits)

    def findings(self) -> list[str]:
        """A sentence for each kind of thing found, the worst first."""
        out = list(self.errors)
        for split in self.splits:
            for kind, said in SAID.items():
                if names := getattr(split, kind):
                    out.append(f"{split.name}: {len(names)} {said}: {_some(names)}")
        leaks = [group for group in self.twins if len({name.split("/")[0] for name in group}) > 1]
        for groups, said in (
            (leaks, "are in both splits"),
            ([group for group in self.twins if group not in leaks], "exist more than once"),
        ):
            if groups:
                out.append(f"{len(groups)} images {said}: {_some([' = '.join(group) for group in groups])}")
        return out

    def tables(self) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
        """What is in it, for people: the splits, then their ten most frequent classes."""
        rows = [(s.name, s.images, sum(s.objects.values()), s.crowds, s.empty) for s in self.splits]
        made: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = [
            (("split", "images", "objects", "crowds", "images without"), list(rows))
        ]
        for split in self.splits:
            made.append(((f"{split.name}: class", "objects"), list(split.objects.items())[:10]))
        return made

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "findings": self.findings()}


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
    files: dict[Path, File] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, file in zip(paths, pool.map(look_at, paths), strict=True):
            files[path] = file
            if progress is not None:
                progress(len(files), len(paths))
    return Report(
        str(root),
        tuple(_split(name, of_split, files, Path(root)) for name, of_split in entries.items()),
        tuple(errors),
        _twins(entries, files),
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


def _twins(entries: dict[str, list[Entry]], files: dict[Path, File]) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for split, of_split in entries.items():
        for entry in of_split:
            if files[entry.path].digest:
                groups[files[entry.path].digest].append(f"{split}/{entry.name}")
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
