"""octavo predict: what is found, image by image and frame by frame, as text, JSON lines and pictures."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.console import tell
from octavo.cli.options import (
    Backend,
    Confidence,
    Factor,
    MinFace,
    ModelName,
    Nms,
    Others,
    Threads,
    Thresholds,
    settings_of,
)
from octavo.cli.progress import progress_bar
from octavo.cli.verb import verb
from octavo.folder import to_json

if TYPE_CHECKING:
    from octavo.verbs import Result

SHOWN = 20  # things printed per image; --json prints all


@verb(
    "octavo predict mtcnn-relu photo.jpg --save out",
    "octavo predict mtcnn-relu photos clip.mp4 --every 5 --out faces.jsonl --resume",
)
def predict(
    model: ModelName,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Images, folders of images, videos, cameras (0, 1, ... or camera:0)."
        ),
    ],
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="[default: one; one per core for hundreds of images]")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a video, look at every N-th frame.")] = 1,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images. [default: 100 megapixels]")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write annotated pictures, subfolders kept; of a video its frames."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "--jsonl", metavar="FILE", help="Write one JSON line per image or frame."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what stands in --out already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image or frame.")] = False,
) -> None:
    """Look at images, videos and cameras: say what is found in each.

    A file that cannot be read is reported, the others are still done, and the exit code is 1 at the end. After
    Ctrl-C what is done is kept, and the same command with --resume goes on.
    """
    from octavo import verbs

    if resume and out is None:
        raise typer.BadParameter("goes with --out FILE, in which it goes on", param_hint="--resume")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its decoders print what is reported here
    done = failed = 0
    with _termination_interrupts(), progress_bar("Looking") as progress:
        results = verbs.predict(
            model,
            paths,
            backend=backend,
            threads=threads,
            processes=processes,
            every=every,
            save=save,
            out=out,
            resume=resume,
            max_pixels=max_pixels,
            progress=progress,
            **settings_of(min_face, thresholds, confidence, factor, nms, set_),
        )
        for result in results:
            done, failed = done + 1, failed + (result.error is not None)
            if result.error is not None:
                tell(f"Error: {result.error}")
            if json:
                print(to_json(result.to_dict(), indent=None), flush=True)
            else:
                _print_result(result)
    if resume and not done:
        tell(f"Nothing was left to do: {out} is complete.")
    if failed:
        tell(f"{failed} of {done} images failed.")
        raise typer.Exit(1)


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM, with which systems stop a job, ends it as Ctrl-C does: in order, with all processes."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be set
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_result(result: Result) -> None:
    if result.found is None or result.size is None:
        return
    first, *rows = result.found.lines()
    width, height = result.size
    frame = "" if result.frame is None else f"  frame {result.frame}  {result.time:.3f} s"
    print(f"{result.image}{frame}  {width}x{height}  {first}", flush=True)
    for row in rows[:SHOWN]:
        print(f"  {row}")
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN} more (--json prints all)")
