"""octavo predict: what is found, image by image, as text, JSON lines and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from octavo.cli.console import tell
from octavo.cli.options import (
    Backend,
    Confidence,
    Factor,
    MinFace,
    ModelName,
    Nms,
    Threads,
    Thresholds,
    settings_of,
)
from octavo.cli.verb import verb
from octavo.folder import to_json

if TYPE_CHECKING:
    from octavo.verbs import Result

SHOWN = 20  # boxes printed per image; --json prints all


@verb(
    "octavo predict mtcnn-relu photo.jpg --save out",
    "octavo predict mtcnn-relu photos --min-face 12 --confidence .9 --jsonl faces.jsonl",
)
def predict(
    model: ModelName,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, or folders of images.")],
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images. [default: 100 megapixels]")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write annotated pictures, subfolders kept.")
    ] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one JSON line per image.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Find objects in images: boxes, probabilities, key points.

    A file that cannot be read is reported, the others are still done, and the exit code is 1 at the end.
    """
    from octavo import verbs

    settings = settings_of(min_face, thresholds, confidence, factor, nms)
    results = verbs.predict(model, paths, backend=backend, threads=threads, max_pixels=max_pixels, **settings)
    place = verbs.saver(save, paths) if save else None
    done = failed = 0
    with _lines(jsonl) as file:
        for result in results:
            if place:
                result = place(result)
            done, failed = done + 1, failed + (result.error is not None)
            if file:
                print(to_json(result.to_dict(), indent=None), file=file, flush=True)
            if json:
                print(to_json(result.to_dict(), indent=None), flush=True)
            else:
                _print_result(result)
    if failed:
        tell(f"{failed} of {done} images failed.")
        raise typer.Exit(1)


@contextmanager
def _lines(path: Path | None) -> Iterator[IO[str] | None]:
    """A file for lines that stay when the run is stopped half-way; None without a path."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yield file


def _print_result(result: Result) -> None:
    if result.found is None or result.size is None:
        return tell(f"Error: {result.error}")
    found = result.found
    width, height = result.size
    print(f"{result.image}  {width}x{height}  {len(found)} found", flush=True)
    for xyxy, confidence in zip(found.xyxy[:SHOWN], found.confidence[:SHOWN], strict=True):
        print(f"  {confidence:.3f}  " + " ".join(f"{v:7.1f}" for v in xyxy))
    if len(found) > SHOWN:
        print(f"  ... and {len(found) - SHOWN} more (--json prints all)")
