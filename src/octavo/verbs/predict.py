"""Images -> what a model finds in them, one after the other; a broken file is told and the others go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.verbs.model import Model, load
from octavo.verbs.photographs import images_at
from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    from octavo.outputs import Detections


@dataclass(frozen=True)
class Result:
    """What came of one image: `found`, or the `error` that it could not be looked at for."""

    image: str
    found: Detections | None = None
    size: tuple[int, int] | None = None  # width, height, pixels
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The line of `octavo predict --jsonl`."""
        if self.found is None or self.size is None:
            return {"image": self.image, "error": self.error}
        width, height = self.size
        return {"image": self.image, "width": width, "height": height, **self.found.to_dict()}


def predict(
    model: Model | PathLike,
    paths: Iterable[PathLike],
    *,
    backend: str = "auto",
    threads: int = 1,
    max_pixels: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[Result]:
    """A Result for every image of the paths (files; folders are searched), in order, as they are done.

    A file that can't be read, or has more than max_pixels, becomes a Result with an error and the others go
    on. Wrong settings or a wrong model raise at once, before the first image.
    """
    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if max_pixels:
        opened = replace(opened, max_pixels=max_pixels)
    opened.settings(**settings)
    return _predict(opened, [str(p) for path in paths for p in images_at(path)], settings, progress)


def _predict(
    model: Model, paths: list[str], settings: Mapping[str, Any], progress: Progress | None
) -> Iterator[Result]:
    for done, path in enumerate(paths, 1):
        if Path(path).is_dir():
            yield Result(path, error=f"{path}: no images in this folder")
        else:
            yield look(model, path, settings)
        if progress:
            progress(done, len(paths))


def look(model: Model, path: str, settings: Mapping[str, Any]) -> Result:
    try:
        found = model(path, **settings)
    except (ValueError, OSError, MemoryError) as error:
        return Result(path, error=str(error) or type(error).__name__)
    except Exception as error:  # a runtime's own complaint about one image must not stop the others
        if os.environ.get("OCTAVO_DEBUG"):
            raise
        return Result(path, error=f"{type(error).__name__}: {error}")
    assert found.image is not None
    return Result(path, found, (found.image.shape[1], found.image.shape[0]))


def saver(out: PathLike, paths: Iterable[PathLike]) -> Callable[[Result], Result]:
    """A function that draws a Result of these paths into the folder `out` and hands it on.

    Below `out` a picture keeps its path from the folder that all given paths share, so that names never
    collide. A picture that can't be written, or would replace its source, becomes a Result with an error.
    """
    from octavo.images import SUFFIXES

    given = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in given])

    def save(result: Result) -> Result:
        if result.found is None:
            return result
        source = os.path.abspath(result.image)
        target = Path(out) / os.path.relpath(source, root)
        if target.suffix.lower() not in SUFFIXES:
            target = target.with_name(target.name + ".png")
        if target.exists() and target.samefile(source):
            error = f"{source}: saving into {out} would replace it, give another folder"
            return replace(result, found=None, error=error)
        try:
            result.found.save(target)
        except (ValueError, OSError) as error:
            return replace(result, found=None, error=f"{target}: {error}")
        return result

    return save
