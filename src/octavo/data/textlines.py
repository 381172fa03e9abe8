"""Pictures of text lines with what they say: a file of lines `path<TAB>text`, paths from the file's own folder.

    train.txt      lines/1.png<TAB>Trăm năm trong cõi người ta,
    val.txt        lines/9.png<TAB>Chữ tài chữ mệnh khéo là ghét nhau.

VietOCR's data sets name the files {train,valid,test}_annotation.txt or ..._line_annotation.txt: those are found too.
UTF-8, with or without a mark at its beginning; texts are brought to NFC, in which a letter with its marks is one
character. Lines without anything are passed over.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from octavo.data import DatasetError
from octavo.images import SUFFIXES

SPLITS = ("train", "val")
WORDS = {"train": ("train",), "val": ("val", "valid", "test")}
ENDS = (".txt", "_annotation.txt", "_line_annotation.txt")


@dataclass(frozen=True)
class Line:
    """A picture of one line. name: its path as annotated."""

    path: Path
    name: str
    text: str


def annotation_file(root: str | Path, split: str) -> Path | None:
    """The first of a split's possible files that is there."""
    names = (word + end for word in WORDS[split] for end in ENDS)
    return next((path for name in names if (path := Path(root) / name).is_file()), None)


def splits(root: str | Path) -> list[str]:
    """The splits whose annotations are there and look like text lines: the first line names a picture."""
    return [split for split in SPLITS if (file := annotation_file(root, split)) and _looks_right(file)]


def _looks_right(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
    except UnicodeDecodeError:
        return False
    path, tab, _ = first.partition("\t")
    return bool(tab) and path.lower().endswith(SUFFIXES)


def read(root: str | Path, split: str, *, missing: str = "error") -> list[Line]:
    """All annotated lines of a split, in the order of the file.

    missing: "error" where a picture is not on the disk, or "keep" to not look. Raises DatasetError, with file and
    line where a line is at fault.
    """
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} is not known: give one of {', '.join(SPLITS)}")
    file = annotation_file(root, split)
    if file is None:
        raise DatasetError(
            f"{root} has no annotations of the split {split!r}: expected {split}.txt, or "
            f"{' or '.join(word + ENDS[1] for word in WORDS[split])}, with lines of path<TAB>text"
        )
    try:
        rows = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8: {error}") from None
    entries: dict[str, Line] = {}
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        where = f"{file}, line {number}"
        name, tab, text = row.rstrip("\r").partition("\t")
        if not tab:
            raise DatasetError(f"{where}: expected path<TAB>text, found no tab in {row[:60]!r}")
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if not text:
            raise DatasetError(
                f"{where}: {name} has no text. Write what stands in the picture, or leave it out"
            )
        if name in entries:
            raise DatasetError(f"{where}: {name} is listed a second time")
        entries[name] = Line(Path(root) / name, name, text)
    if not entries:
        raise DatasetError(f"{file} has no lines")
    if missing == "error" and (gone := [line.name for line in entries.values() if not line.path.is_file()]):
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise DatasetError(f"{file} names pictures that are not there: {gone[0]}{more}")
    return list(entries.values())
