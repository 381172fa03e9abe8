"""Images, videos, cameras -> what a model finds in them, as a stream; what is broken is told and the others go on.

    for result in predict("mtcnn-relu", ["photos", "clip.mp4"], processes=2, out="faces.jsonl"):
        print(result.image, result.frame, result.error or result.found.lines()[0])

One process or several, the results are the same and in the order of the inputs. Pictures are decoded, looked at and
drawn in the same process, so that only names (or a video's frames) go there and only boxes come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.verbs import lines, sources, workers
from octavo.verbs.model import Model, load
from octavo.verbs.signatures import PathLike, Progress
from octavo.verbs.sources import Item


@dataclass(frozen=True)
class Result:
    """What came of one image or frame: `found`, or the `error` that it could not be looked at for."""

    image: str  # the file, or camera:0
    found: Any = None  # octavo.outputs.Output, such as Detections
    size: tuple[int, int] | None = None  # width, height, pixels
    error: str | None = None
    frame: int | None = None  # of a video or camera, from 0
    time: float | None = None  # of the frame, seconds from the start

    def to_dict(self) -> dict[str, Any]:
        """The line in a file of JSON lines."""
        where: dict[str, Any] = {"image": self.image}
        if self.frame is not None:
            where |= {"frame": self.frame, "time": self.time}
        if self.found is None or self.size is None:
            return {**where, "error": self.error}
        width, height = self.size
        return {**where, "width": width, "height": height, **self.found.to_dict()}


def predict(
    model: Model | PathLike,
    paths: PathLike | Iterable[PathLike],
    *,
    backend: str = "auto",
    threads: int = 1,
    processes: int | None = 1,
    every: int = 1,
    save: PathLike | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    max_pixels: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[Result]:
    """A Result for every image and frame of the paths, in order, as they are done.

    paths      images, folders (searched for images), videos, cameras ("camera:0"; "0" where no file has that name)
    threads    of each network's calls, in each process
    processes  each opens the model from its folder and keeps the pictures (found.image is None); None: as many as
               pay, one per core for hundreds of images
    every      of a video, every so many-th frame
    save       a folder to draw into: pictures keep their path below the folder that all paths share, frames become
               clip.mp4/000012.jpg
    out        a file of JSON lines; each is there before its Result is
    resume     leave out what stands in `out` already; ValueError where that was made with anything else than now

    What can't be read, or has more than max_pixels, becomes a Result with an error and the others go on. Wrong
    settings or a wrong model raise at once, before the first image; a process that dies raises WorkerDied.
    """
    from octavo.images import MAX_PIXELS

    if every < 1 or (processes is not None and processes < 1):
        raise ValueError(f"every and processes count from 1 up, not {every} and {processes}")
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    names = sources.listed(given)
    if resume and (out is None or any(sources.camera(name) is not None for name in names)):
        raise ValueError("only what goes from files into a file of lines (out) can be gone on with (resume)")
    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if max_pixels:
        opened = replace(opened, max_pixels=max_pixels)
    done: dict[str, float] = {}
    if out is not None:
        run = {
            "model": opened.name,
            "networks": _networks(opened),
            "backend": opened.backend,
            "settings": opened.settings(**settings).to_dict(),
            "every": every,
            "max_pixels": opened.max_pixels,
        }
        done = lines.go_on(out, run) if resume else lines.begin(out, run)
    else:
        opened.settings(**settings)

    starts = {name: done.get(os.path.abspath(name), 0) for name in names}
    left = {name: int(start) for name, start in starts.items() if start < lines.DONE}
    total = sum(sources.count(name, every) for name in left) if progress or processes is None else 0
    count = workers.worth(total, threads) if processes is None else processes
    limit = opened.max_pixels or MAX_PIXELS
    items = (item for name, start in left.items() for item in sources.items(name, every, start, limit))
    keep = None if save is None else Keep(str(save), _shared_folder(given))
    results: Iterator[Result]
    if count == 1:
        results = (_finish(look_at(opened, item, settings), keep) for item in items)
    else:
        opens = Opens(opened.folder, opened.backend, threads, opened.max_pixels, settings, keep)
        results = workers.in_order(opens, items, count, _name)
    return _stream(results, out, progress, total)


def _stream(
    results: Iterator[Result], out: PathLike | None, progress: Progress | None, total: int
) -> Iterator[Result]:
    with lines.writer(out) if out is not None else nullcontext() as write:
        for done, result in enumerate(results, 1):
            if write:
                write(result)
            if progress:
                progress(done, max(done, total))
            yield result


def look(model: Model, path: str, settings: Mapping[str, Any]) -> Result:
    return look_at(model, Item(path), settings)


def look_at(model: Model, item: Item, settings: Mapping[str, Any]) -> Result:
    nothing = Result(item.image, error=item.error, frame=item.frame, time=item.time)
    if item.error:
        return nothing
    try:
        found = model(item.image if item.pixels is None else item.pixels, **settings)
    except (ValueError, OSError, MemoryError) as error:
        return replace(nothing, error=str(error) or type(error).__name__)
    except Exception as error:  # a runtime's own complaint about one image must not stop the others
        if os.environ.get("OCTAVO_DEBUG"):
            raise
        return replace(nothing, error=f"{type(error).__name__}: {error}")
    assert found.image is not None
    return replace(nothing, found=found, size=(found.image.shape[1], found.image.shape[0]))


@dataclass(frozen=True)
class Keep:
    """Draws a Result into the folder `out`, below which its path is the one from `root`, and hands it on.

    A picture that can't be written, or would replace its source, becomes a Result with an error.
    """

    out: str
    root: str

    def __call__(self, result: Result) -> Result:
        if result.found is None:
            return result
        target = self.target(result)
        if target.exists() and os.path.exists(result.image) and target.samefile(result.image):
            error = f"{result.image}: saving into {self.out} would replace it, give another folder"
            return replace(result, found=None, error=error)
        try:
            result.found.save(target)
        except (ValueError, OSError) as error:
            return replace(result, found=None, error=f"{target}: {error}")
        return result

    def target(self, result: Result) -> Path:
        from octavo.images import SUFFIXES

        number = sources.camera(result.image)
        below = f"camera-{number}" if number is not None else os.path.relpath(result.image, self.root)
        target = Path(self.out) / below
        if result.frame is not None:
            return target / f"{result.frame:06d}.jpg"
        return target if target.suffix.lower() in SUFFIXES else target.with_name(target.name + ".png")


@dataclass(frozen=True)
class Opens:
    """What a worker process is sent: called there, it opens the model and gives the function that looks."""

    folder: Path
    backend: str
    threads: int
    max_pixels: int | None
    settings: Mapping[str, Any]
    keep: Keep | None

    def __call__(self) -> Callable[[Item], Result]:
        import cv2

        cv2.setNumThreads(self.threads)
        model = replace(load(self.folder, self.backend, self.threads), max_pixels=self.max_pixels)

        def work(item: Item) -> Result:
            result = _finish(look_at(model, item, self.settings), self.keep)
            return replace(result, found=replace(result.found, image=None)) if result.found else result

        return work


def _finish(result: Result, keep: Keep | None) -> Result:
    return keep(result) if keep else result


def _name(item: Item) -> str:
    return item.image if item.frame is None else f"{item.image}, frame {item.frame}"


def _shared_folder(paths: Iterable[PathLike]) -> str:
    files = [os.path.abspath(path) for path in paths if sources.camera(str(path)) is None]
    folders = [file if os.path.isdir(file) else os.path.dirname(file) for file in files]
    return os.path.commonpath(folders or [os.getcwd()])


def _networks(model: Model) -> dict[str, str]:
    """{file: SHA-256} of the networks as the backend runs them."""
    from octavo import folder, run

    suffix = run.RUNTIMES[model.backend]
    plain = folder.files(model.folder, suffix)
    files = [
        run.file_for(model.folder, name, model.backend) if suffix == ".onnx" else plain[name]
        for name in plain
    ]
    return {file.name: folder.digest(file) for file in files}
