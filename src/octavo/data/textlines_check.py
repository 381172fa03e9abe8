"""Look at a data set of text lines before hours are spent on it: `octavo data DIR`.

Every annotated picture is read once and held against its text: files that are missing or broken; pictures that hold
more than a line, to judge by their shape; the same file twice, above all once in train and once in val.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from octavo import images
from octavo.data import sheet
from octavo.data.check import THREADS, File, look_at
from octavo.data.textlines import DatasetError, Line, read, splits
from octavo.folder import atomic

_SHOWN = 3  # names per finding in the text; `to_dict` has all
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


SAID = {
    "missing": "pictures are missing",
    "broken": "pictures cannot be read",
    "tall": "pictures are taller than wide although their text has several words",
}


@dataclass(frozen=True)
class Report:
    root: str
    splits: tuple[Split, ...]
    errors: tuple[str, ...] = ()  # annotations that cannot be read at all
    twins: tuple[tuple[str, ...], ...] = ()  # groups of identical files, as "split/NAME.png"

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
        same = [group for group in self.twins if group not in leaks]
        for groups, said in ((leaks, "are in both splits"), (same, "exist more than once")):
            if groups:
                out.append(f"{len(groups)} pictures {said}: {_some([' = '.join(group) for group in groups])}")
        return out

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
        """(title, columns, rows) for people."""
        made: list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = []
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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "findings": self.findings()}


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
    files: dict[Path, File] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, file in zip(paths, pool.map(look_at, paths), strict=True):
            files[path] = file
            if progress is not None:
                progress(len(files), len(paths))
    if contact_sheet is not None:
        _draw(
            contact_sheet,
            [line for lines in entries.values() for line in lines if not files[line.path].error],
        )
    made = tuple(_split(name, lines, files) for name, lines in entries.items())
    return Report(str(root), made, tuple(errors), _twins(entries, files))


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


def _twins(entries: dict[str, list[Line]], files: dict[Path, File]) -> tuple[tuple[str, ...], ...]:
    same: dict[bytes, list[str]] = defaultdict(list)
    for name, lines in entries.items():
        for line in lines:
            if digest := files[line.path].digest:
                same[digest].append(f"{name}/{line.name}")
    return tuple(tuple(group) for group in same.values() if len(group) > 1)


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


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
