"""Long measurements, kept on disk: each in a file whose name is a hash of all that its result depends on.

So work that was stopped goes on where it was, and nothing is measured twice. Results are plain data (JSON), and what
is read again is what was returned the first time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from octavo import folder
from octavo.evaluate.report import Part
from octavo.verbs.signatures import PathLike, Progress, StepProgress


class Kept:
    """Measurements in a folder. `parts` says what each result() came from, in the order in which they were asked."""

    def __init__(self, place: Path, progress: StepProgress | None) -> None:
        self.place = place
        self.progress = progress or (lambda what, done, total: None)
        self.parts: list[Part] = []

    def result(
        self, title: str, command: str, depends: Mapping[str, Any], measure: Callable[[Progress], Any]
    ) -> Any:
        """measure(progress) as plain data, or what it was when everything in `depends` was the same.

        command: what a reader types to measure it again.
        """
        key = folder.to_json({"octavo": folder.provenance()["octavo"], **depends})
        verb = shlex.split(command)[1]
        path = self.place / f"{verb}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        found = _read(path)
        kept = found is not None
        if found is None:
            start = time.perf_counter()
            result = measure(partial(self.progress, title))
            origin = folder.provenance(command) | {"seconds": time.perf_counter() - start}
            folder.write_json(path, {"depends": json.loads(key), **origin, "result": result})
            found = json.loads(path.read_text(encoding="utf-8"))
        commit = found["commit"] or "unknown"
        self.parts.append(Part(title, command, found["created"], commit, found["seconds"], kept))
        return found["result"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # never measured, or not by us: measured again
        return None
    fits = isinstance(found, dict) and found.keys() >= {"result", "created", "commit", "seconds"}
    return found if fits else None


def command(verb: str, *arguments: PathLike, **options: Any) -> str:
    """'octavo VERB ...' as typed; options that are None are left out, several values are joined by commas."""
    words = ["octavo", verb, *map(str, arguments)]
    for name, value in options.items():
        if value is not None:
            text = ",".join(map(_word, value)) if isinstance(value, (list, tuple)) else _word(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def digest(path: Path) -> str:
    """SHA-256 over model.json and the networks of a model folder, 16 hexadecimal digits."""
    out = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in (".onnx", ".pt") or p.name == "model.json"):
        out.update(f"{file.name} {folder.digest(file)}\n".encode(errors="surrogateescape"))
    return out.hexdigest()[:16]


def fingerprint(place: PathLike | None) -> str | None:
    """A hash over names, sizes and times of change of a file, or of all files below a folder.

    A data set is not read for it; one that was copied counts as another one.
    """
    if place is None:
        return None
    out = hashlib.sha256()
    for path in sorted([str(place)] if os.path.isfile(place) else _files(place)):
        stat = os.stat(path)
        line = f"{os.path.relpath(path, place)} {stat.st_size} {stat.st_mtime_ns}\n"
        out.update(line.encode(errors="surrogateescape"))
    return out.hexdigest()[:16]


def _files(place: PathLike) -> Iterator[str]:
    visited = set()  # links are followed, in a circle only once
    for at, folders, names in os.walk(place, followlinks=True):
        here = os.path.realpath(at)
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        yield from (path for name in names if os.path.isfile(path := os.path.join(at, name)))
