"""What predict looks at, thing by thing: image files, the frames of a video, a camera.

    photo.jpg, photos/   files; a folder is searched for images, a video in it has to be named
    clip.mp4             frames, numbered from 0, with their time in seconds from the start
    0, camera:0          frames of a camera for as long as someone takes them

An image file stays a name here and is decoded where it is looked at; the frames of a video follow from one another
and are decoded here. What can't be read is an Item with an error, and so is the early end of a video.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.verbs.photographs import images_at
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    import numpy as np

VIDEOS = {
    *(".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ts", ".m2ts", ".mts", ".3gp", ".ogv"),
}


@dataclass(frozen=True)
class Item:
    """One thing to look at: a file by its name, or a frame by its pixels; or the error that it is."""

    image: str
    frame: int | None = None
    time: float | None = None  # seconds from the start
    pixels: np.ndarray | None = None  # (h, w, 3) uint8 RGB
    error: str | None = None


def listed(paths: Iterable[PathLike]) -> list[str]:
    """The paths as given, in place of each folder its images; repetitions dropped."""
    return list(dict.fromkeys(str(found) for path in paths for found in images_at(path)))


def camera(name: str) -> int | None:
    """The number of the camera that "camera:0" means, and "0" where no file has that name."""
    match = re.fullmatch(r"(camera:)?(\d+)", name, re.ASCII)
    return int(match[2]) if match and (match[1] or not os.path.exists(name)) else None


def is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEOS and not Path(name).is_dir()


def count(name: str, every: int) -> int:
    """How many Items to expect: 1 for a file, what a video says of itself, 0 for a camera."""
    if camera(name) is not None:
        return 0
    if not is_video(name):
        return 1
    with _capture(name) as capture:
        return -(-_promised(capture) // every)


def items(name: str, every: int, start: int, max_pixels: int) -> Iterator[Item]:
    """The file, or every so many-th frame from number `start` on."""
    if is_video(name) or camera(name) is not None:
        yield from _frames(name, every, start, max_pixels)
    elif Path(name).is_dir():
        yield Item(name, error=f"{name}: no images in this folder")
    else:
        yield Item(name)


def _frames(name: str, every: int, start: int, max_pixels: int) -> Iterator[Item]:
    import cv2

    number, live = 0, camera(name) is not None
    with _capture(name) as capture:
        if not capture.isOpened():
            yield Item(name, error=f"{name}: {_why_closed(name)}")
            return
        width, height = (
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        if width * height > max_pixels:
            yield Item(name, error=f"{name}: {width}x{height} pixels, more than the limit of {max_pixels}")
            return
        promised, began = _promised(capture), time.monotonic()
        while capture.grab():  # finds the next frame; retrieve makes pixels of it
            if number >= start and number % every == 0:
                seconds = time.monotonic() - began if live else _time(capture, number)
                whole, bgr = capture.retrieve()
                if not whole:
                    break
                yield Item(name, number, round(seconds, 6), cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
            number += 1
    if live:
        yield Item(name, error=f"{name}: no more frames after {number}")
    # A container without an index says its duration times its rate, which is off by a frame or two.
    elif number < promised - max(2, promised // 100):
        yield Item(name, error=f"{name}: ends after {number} of {promised} frames, the rest can't be read")


@contextmanager
def _capture(name: str) -> Iterator[Any]:
    import cv2

    from octavo.images import quiet

    number = camera(name)
    with quiet():
        capture = cv2.VideoCapture(name if number is None else number)
    try:
        yield capture
    finally:
        capture.release()


def _promised(capture: Any) -> int:
    """The number of frames that the file says it has; 0 where it doesn't say."""
    import cv2

    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def _time(capture: Any, number: int) -> float:
    """Seconds at which the frame just grabbed is shown; by the rate, where the frame itself doesn't say."""
    import cv2

    milliseconds, rate = capture.get(cv2.CAP_PROP_POS_MSEC), capture.get(cv2.CAP_PROP_FPS)
    return milliseconds / 1000 if milliseconds > 0 or not rate > 0 else number / rate


def _why_closed(name: str) -> str:
    if camera(name) is not None:
        return "this camera can't be opened: is it there, free, and allowed to be used?"
    if not os.path.exists(name):
        return "no such file"
    return "not a video, or of a kind that OpenCV's decoders don't know"
