"""Look at a data set of text lines before hours are spent on it: `octavo data DIR`.

Every annotated picture is read once and held against its text: files that are missing or broken; pictures that hold
more than a line, to judge by their shape; the same file twice, above all once in train and once in val.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from octavo import images
from octavo.data import DatasetError, sheet
from octavo.data import files as checked
from octavo.data.files import File, Tables, look_at_all, twins
from octavo.data.textlines import Line, read, splits
from octavo.folder import atomic

SHEET = (24, 32, 900)  # lines of a split on the contact sheet, their height, its width


@dataclass(frozen=True)
class Split:
    name: str
    lines: int
    characters: dict[str, int]  # how often each occurs, the rarest last
    widths: dict[str, int]  # lines by their width at a height of 32 pixels
    # Findings: names of pictures, with the reason where there is one.
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    tall: tuple[str, ...] = ()  # a picture taller than wide, with a text of several words


@dataclass(frozen=True)
class Report(checked.Report):
    SAID: ClassVar[Mapping[str, str]] = {
        "missing": "pictures are missing",
        "broken": "pictures cannot be read",
        "tall": "pictures are taller than wide although their text has several words",
    }
    FILES = "pictures"

    def tables(self) -> Tables:
        made: Tables = []
        for split in self.splits:
            count = sum(split.characters.values())
            made.append(
                (
                    split.name,
                    ("lines", "characters", "different ones"),
                    [(split.lines, count, len(split.characters))],
                )
            )
            made.append(("", ("width at height 32, px", "lines"), list(split.widths.items())))
        return made


def check(
    root: str | Path,
    split: str | None = None,
    contact_sheet: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check one split, or all that have annotations. contact_sheet: where to write a picture of samples.

    Raises DatasetError where `root` has no such split; what is wrong inside it is in the report.
    """
    if contact_sheet is not None:
        sheet.check_suffix(contact_sheet)
    names = splits(root) if split is None else [split]
    if not names:
        read(root, "train")  # raises, and says what is expected
    entries: dict[str, list[Line]] = {}
    errors: list[str] = []
    for name in names:
        try:
            entries[name] = read(root, name, missing="keep")
        except DatasetError as error:
            errors.append(str(error))
    paths = [line.path for lines in entries.values() for line in lines]
    files = look_at_all(paths, progress)
    if contact_sheet is not None:
        _draw(
            contact_sheet,
            [line for lines in entries.values() for line in lines if not files[line.path].error],
        )
    made = tuple(_split(name, lines, files) for name, lines in entries.items())
    return Report(str(root), made, tuple(errors), twins(entries, files))


def _split(name: str, lines: list[Line], files: dict[Path, File]) -> Split:
    missing, broken, tall = [], [], []
    widths = {"up to 128": 0, "to 256": 0, "to 512": 0, "wider": 0}
    for line in lines:
        file = files[line.path]
        if file.missing:
            missing.append(line.name)
        elif file.error:
            broken.append(f"{line.name} ({file.error})")
        else:
            wide = file.width * 32 / file.height
            widths[
                next((k for k, most in zip(widths, (128, 256, 512), strict=False) if wide <= most), "wider")
            ] += 1
            if file.height > file.width and " " in line.text:
                tall.append(f"{line.name} ({file.width}x{file.height})")
    characters = Counter("".join(line.text for line in lines))
    return Split(
        name, len(lines), dict(characters.most_common()), widths, tuple(missing), tuple(broken), tuple(tall)
    )


def _draw(path: str | Path, lines: list[Line]) -> None:
    """Lines spread evenly over the data set, under one another."""
    most, height, width = SHEET
    rows = []
    for line in lines[:: -(-len(lines) // most) or 1]:
        picture = images.read(line.path)
        wide = min(width, max(1, round(picture.shape[1] * height / picture.shape[0])))
        scaled = cv2.resize(picture, (wide, height), interpolation=cv2.INTER_AREA)
        rows.append(np.pad(scaled, ((4, 4), (0, width - wide), (0, 0)), constant_values=sheet.PAPER[0]))
    if not rows:
        raise ValueError(f"{path}: no picture could be read, so there is nothing to draw")
    with atomic(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)):
            raise OSError(f"{path} could not be written")
