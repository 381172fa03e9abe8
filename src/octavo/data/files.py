"""What the checks of all layouts share: every file decoded once, and what is said of files.

A layout's own check adds what its annotations can have wrong, and a `Report` of what is in it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from octavo import images

THREADS = 4  # decoding leaves Python; more threads than that wait for the disk
_SHOWN = 3  # names per finding in the text; `to_dict` has all

Tables = list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]  # (title, columns, rows)


class Entry(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class File:
    """What remains of an image once it was decoded."""

    width: int = 0
    height: int = 0
    digest: bytes = b""
    error: str = ""
    missing: bool = False


def look_at_all(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> dict[Path, File]:
    """Every file, decoded in a few threads; progress is called from this one, with the number done and of all."""
    files: dict[Path, File] = {}
    pool = ThreadPoolExecutor(THREADS)
    try:
        for path, file in zip(paths, pool.map(look_at, paths), strict=True):
            files[path] = file
            if progress is not None:
                progress(len(files), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # else an interrupt would wait for thousands of images
    return files


def look_at(path: Path) -> File:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return File(error="no such file", missing=True)
    except OSError as error:
        return File(error=error.strerror or str(error))
    try:
        height, width = images.read(data).shape[:2]
    except images.ImageError as error:
        return File(error=str(error))
    return File(width, height, hashlib.blake2b(data, digest_size=16).digest())


def twins(entries: Mapping[str, Sequence[Entry]], files: Mapping[Path, File]) -> tuple[tuple[str, ...], ...]:
    """Groups of identical files among the entries of each split, as "split/NAME"."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for split, of_split in entries.items():
        for entry in of_split:
            if files[entry.path].digest:
                groups[files[entry.path].digest].append(f"{split}/{entry.name}")
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


@dataclass(frozen=True)
class Report:
    """What was found in a data set. Splits have a `name` and, for each kind of finding in SAID, a tuple of names."""

    root: str
    splits: tuple[Any, ...]
    errors: tuple[str, ...] = ()  # annotations that cannot be read at all
    twins: tuple[tuple[str, ...], ...] = ()  # groups of identical files, as "split/NAME"

    SAID: ClassVar[Mapping[str, str]] = {}  # kind of finding -> what is said of it, the worst first
    FILES: ClassVar[str] = "images"

    @property
    def ok(self) -> bool:
        """Whether training and evaluation can read everything; the other findings are for judgement."""
        return not self.errors and not any(split.missing or split.broken for split in self.splits)

    @property
    def leaks(self) -> tuple[tuple[str, ...], ...]:
        """Twins across splits: what is measured on them is not measured on unseen images."""
        return tuple(group for group in self.twins if len({name.split("/")[0] for name in group}) > 1)

    def findings(self) -> list[str]:
        """A sentence for each kind of thing found, the worst first."""
        out = list(self.errors)
        for split in self.splits:
            for kind, said in self.SAID.items():
                if names := getattr(split, kind):
                    out.append(f"{split.name}: {len(names)} {said}: {_some(names)}")
        same = tuple(group for group in self.twins if group not in self.leaks)
        for groups, said in ((self.leaks, "are in both splits"), (same, "exist more than once")):
            if groups:
                shown = _some([" = ".join(group) for group in groups])
                out.append(f"{len(groups)} {self.FILES} {said}: {shown}")
        return out

    def tables(self) -> Tables:
        """What is in it, for people."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "findings": self.findings()}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
