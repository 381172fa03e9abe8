"""Data sets in the layout of COCO (Lin et al. 2014, arXiv 1405.0312): annotations to arrays, no image decoded.

    ROOT/annotations/instances_{train,val}2017.json     one file per split; the year may be another, or none
    ROOT/images/{train,val}2017/NAME.jpg                or ROOT/{train,val}2017/NAME.jpg, as the archives unpack

The JSON holds "images" (id, file_name, width, height), "annotations" (image_id, category_id, bbox as x, y, w, h,
area, iscrowd) and "categories" (id, name). A class is a category's place in the order of their ids, since the ids of
COCO have gaps. A crowd is a box around more objects than were counted: neither to be found one by one, nor wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from octavo.data import DatasetError

SPLITS = ("train", "val")
_SHOWN = 3  # names in a message; the rest is a count


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One image and its objects."""

    path: Path
    name: str  # "000000000139.jpg"
    image_id: int
    size: tuple[int, int]  # width, height as annotated
    xyxy: np.ndarray  # (n, 4) float32, pixels, x2 = x + w
    class_id: np.ndarray  # (n,) int64
    crowd: np.ndarray  # (n,) bool
    area: np.ndarray  # (n,) float32: of the outline, by which COCO calls objects small, medium or large
    classes: tuple[str, ...]  # names by class id, of the whole data set
    categories: tuple[int, ...]  # their ids in the file

    @property
    def invalid(self) -> np.ndarray:
        """(n,) bool: what is not to be found one by one, as in octavo.data.widerface."""
        return self.crowd


def annotation_file(root: str | Path, split: str) -> Path | None:
    """instances_SPLIT*.json; the first by name where there are several years."""
    return next(iter(sorted((Path(root) / "annotations").glob(f"instances_{split}*.json"))), None)


def splits(root: str | Path) -> list[str]:
    return [split for split in SPLITS if annotation_file(root, split)]


def image_folder(root: str | Path, source: Path) -> Path:
    """Where the images of an annotation file are: images/train2017 or train2017."""
    name = source.stem.removeprefix("instances_")
    inner = Path(root) / "images" / name
    return inner if inner.is_dir() else Path(root) / name


def read(root: str | Path, split: str, *, missing: str = "error") -> list[Entry]:
    """All images of a split in the order of the file, those without an object too.

    missing: "error" where an image is not on the disk, or "keep" to not look. Raises DatasetError, which names the
    file, and the annotation that is at fault.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} is not known: give one of {', '.join(SPLITS)}")
    source = annotation_file(root, split)
    if source is None:
        there = f"it has the split {' and '.join(splits(root))}" if splits(root) else "it has no split at all"
        raise DatasetError(
            f"{root} has no annotations of the split {split!r}, and {there}. Expected the layout of COCO: "
            f"annotations/instances_{split}2017.json and images/{split}2017/NAME.jpg"
        )
    content = load(source)
    names = categories(content, source)
    folder = image_folder(root, source)
    images: dict[int, Mapping[str, Any]] = {}
    for number, image in enumerate(content["images"]):
        where = f"{source}: image {number}"
        name = _given(image, "file_name", str, where)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise DatasetError(f"{where}: {name!r} leads out of the folder of images")
        if images.setdefault(_given(image, "id", int, where), image) is not image:
            raise DatasetError(f"{where}: {name} has the id {image['id']} of another image")
        for side in ("width", "height"):
            if _given(image, side, int, where) < 1:
                raise DatasetError(f"{where}: {name} has the {side} {image[side]}")
    if not images:
        raise DatasetError(f"{source} lists no image")
    places = {key: place for place, key in enumerate(names)}
    objects: dict[int, list[tuple[Any, ...]]] = {key: [] for key in images}
    for number, annotation in enumerate(content["annotations"]):
        where = f"{source}: annotation {number}"
        image_id = _given(annotation, "image_id", int, where)
        if image_id not in objects:
            raise DatasetError(f"{where}: there is no image {image_id}")
        objects[image_id].append(_object(annotation, places, where))
    entries = [_entry(folder, image, objects[key], names) for key, image in images.items()]
    listed = Counter(entry.name for entry in entries)
    if len(listed) < len(entries):
        raise DatasetError(f"{source}: {listed.most_common(1)[0][0]} is listed twice, under two ids")
    absent = [entry for entry in entries if not entry.path.is_file()] if missing == "error" else []
    if absent:
        shown = ", ".join(entry.name for entry in absent[:_SHOWN])
        raise DatasetError(
            f"{len(absent)} of the {len(entries)} images of {source} are not in {folder}, for instance {shown}"
        )
    return entries


def load(source: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The lists "images", "annotations" and "categories" of an annotation file."""
    try:
        content = json.loads(source.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{source} is not JSON: {error}") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DatasetError(
                f'{source} has no list "{name}": expected COCO\'s images, annotations, categories'
            )
        if not all(isinstance(item, dict) for item in content[name]):
            raise DatasetError(f'{source}: something in "{name}" is no object of names and values')
    return content


def categories(content: Mapping[str, Sequence[Mapping[str, Any]]], source: Path) -> dict[int, str]:
    """{category id: name}, by rising ids."""
    listed: dict[int, str] = {}
    for number, category in enumerate(content["categories"]):
        where = f"{source}: category {number}"
        key = _given(category, "id", int, where)
        if key in listed:
            raise DatasetError(f"{where}: the id {key} was {listed[key]!r} before")
        listed[key] = _given(category, "name", str, where)
    if not listed:
        raise DatasetError(f"{source} lists no category")
    return dict(sorted(listed.items()))


def _object(annotation: Mapping[str, Any], places: Mapping[int, int], where: str) -> tuple[Any, ...]:
    """x1, y1, x2, y2, class, crowd, area."""
    category = _given(annotation, "category_id", int, where)
    if category not in places:
        raise DatasetError(f"{where}: there is no category {category}")
    box = _given(annotation, "bbox", list, where)
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        raise DatasetError(f"{where}: bbox is {box!r}, expected x, y, width, height") from None
    if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
        raise DatasetError(f"{where}: bbox is {box}, which is no box")
    area = annotation.get("area", width * height)
    if not isinstance(area, (int, float)) or not 0 <= area < np.inf:
        raise DatasetError(f"{where}: area is {area!r}, expected square pixels")
    return x, y, x + width, y + height, places[category], bool(annotation.get("iscrowd", 0)), area


def _entry(
    folder: Path, image: Mapping[str, Any], objects: Sequence[tuple[Any, ...]], names: Mapping[int, str]
) -> Entry:
    values = np.array(objects, np.float64).reshape(-1, 7)
    return Entry(
        path=folder / image["file_name"],
        name=image["file_name"],
        image_id=image["id"],
        size=(image["width"], image["height"]),
        xyxy=values[:, :4].astype(np.float32),
        class_id=values[:, 4].astype(np.int64),
        crowd=values[:, 5] != 0,
        area=values[:, 6].astype(np.float32),
        classes=tuple(names.values()),
        categories=tuple(names),
    )


def _given(item: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = item.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {int: "a whole number", str: "a string", list: "a list"}[kind]
        raise DatasetError(f"{where}: {name} is {value!r}, expected {expected}")
    return value
