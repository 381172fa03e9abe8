"""Results as lines of JSON in a file, with which an interrupted run can go on.

    faces.jsonl            an object per line, in the order of the inputs, each written whole as soon as it is there
    faces.jsonl.run.json   what they were made with: the networks' SHA-256, runtime, settings, command

A run goes on only with what it was begun with: half a file from another model is worse than none. A last line that
was cut off is removed and its input looked at again. What failed counts as done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from octavo import folder
from octavo.verbs.signatures import PathLike

DONE = math.inf
ORIGIN = ("folder", "commit", "command", "created", "octavo")  # told, but free to differ


class LinesError(ValueError):
    """A file of lines that a run can't go on with; the message says why."""


class Line(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class Writer(Protocol):
    def __call__(self, line: Line, /) -> None: ...


def begin(path: PathLike, run: Mapping[str, Any]) -> dict[str, float]:
    """An empty file, and beside it what the run is made with; nothing is done yet: {}."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    open(path, "wb").close()  # first: an old run's lines must never stand beside the new run's settings
    if Path(path).is_file():  # not /dev/stdout
        folder.write_json(_beside(path), {**run, "folder": os.getcwd(), **folder.provenance()})
    return {}


def go_on(path: PathLike, run: Mapping[str, Any]) -> dict[str, float]:
    """{absolute path: number of its first frame to do, or DONE}; LinesError where `run` is another one."""
    if not Path(path).exists() or os.path.getsize(path) == 0:
        return begin(path, run)
    before = _run_of(path)
    for key in [key for key in {**run, **before} if key not in ORIGIN]:
        was, now = before.get(key), json.loads(folder.to_json(run.get(key)))
        if was != now:
            raise LinesError(
                f"{path} was begun with {_difference(key, was, now)}. Go on with what it was begun with, "
                f"or give another file."
            )
    _repair(path)
    return _done(path, before["folder"])


@contextmanager
def writer(path: PathLike) -> Iterator[Writer]:
    """write(line): at the end of the file, in one piece."""
    with open(path, "ab", buffering=0) as file:

        def write(line: Line) -> None:
            text = (folder.to_json(line.to_dict(), indent=None) + "\n").encode()
            if file.write(text) != len(text):
                raise OSError(f"{path}: the disk is full, the last line is cut off")

        yield write


def _beside(path: PathLike) -> Path:
    return Path(f"{path}.run.json")


def _run_of(path: PathLike) -> dict[str, Any]:
    try:
        before = json.loads(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict) or not isinstance(before.get("folder"), str):
        raise LinesError(
            f"{path} can't be gone on with: {_beside(path).name}, which says what it was made with, is missing "
            "or broken. Give another file, or begin anew."
        )
    return before


def _difference(key: str, was: Any, now: Any) -> str:
    """'min_face 20, not 12'; of a digest only that it is another one."""
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(name for name in {**was, **now} if was.get(name) != now.get(name))
        return _difference(f"{key}: {inner}", was.get(inner), now.get(inner))
    if isinstance(was, str) and len(was) == 64:  # a digest
        return f"other {key}"
    return f"{key} {json.dumps(was)}, not {json.dumps(now)}"


def _repair(path: PathLike) -> None:
    """Cut off what stands after the last end of a line."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def _done(path: PathLike, home: str) -> dict[str, float]:
    done: dict[str, float] = {}
    last = None
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                image = os.path.abspath(os.path.join(home, line["image"]))
            except (ValueError, TypeError, KeyError):
                raise LinesError(f"{path}, line {number} is none that octavo predict wrote") from None
            if last is not None and last != image:
                done[last] = DONE  # a video is looked at to its end before the next input
            done[image] = DONE if line.get("frame") is None else line["frame"] + 1
            last = image
    return done
