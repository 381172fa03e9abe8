"""octavo report: one page on several models, the first of them the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.console import print_json, print_table, tell
from octavo.cli.options import (
    Confidence,
    Data,
    Factor,
    GroundTruth,
    Json,
    MinFace,
    Nms,
    Others,
    Split,
    Threads,
    Thresholds,
    settings_of,
    size_of,
)
from octavo.cli.progress import step_bars
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.evaluate.report import Report


@verb(
    "octavo report mtcnn-relu-float mtcnn-relu --data shared/data/faces --min-face 12 --out out/report.html",
    "octavo report runs/float runs/int8 --data faces --backend onnxruntime,openvino --images 100 --out report.html",
)
def report(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names or folders; the first is the baseline.")
    ],
    data: Data,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page, .html; a .csv file and .parts go beside it.")
    ],
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino, torch, auto (each model's fastest), or several: a,b.")
    ] = "onnxruntime",
    split: Split = "val",
    images: Annotated[
        int | None, typer.Option(min=1, help="Measure accuracy on so many images only. [all]")
    ] = None,
    ground_truth: GroundTruth = None,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    threads: Threads = 1,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image that times are of. [a sample photograph]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of the image that times are of. [640x480]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which times are taken.")] = 50,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Images to show, or folders of them. [the samples] Repeatable."),
    ] = None,
    layers: Annotated[
        bool, typer.Option(help="Measure the sensitivity of layers too, of INT8 folders with .pt files.")
    ] = True,
    json: Json = False,
) -> None:
    """Write one page that holds models against the first: accuracy, time, memory, size, integers, pictures.

    What was measured is kept beside the page: the same command goes on after a stop, and adds a model at its own
    cost. --min-face and the other settings are of the measuring of accuracy; times and pictures are taken with each
    model's own.
    """
    from octavo import verbs

    with step_bars() as progress:
        made = verbs.report(
            models,
            data,
            out,
            backends=backend.split(","),
            split=split,
            images=images,
            ground_truth=ground_truth,
            threads=threads,
            image=image,
            size=size_of(size),
            repeats=repeats,
            layers=layers,
            pictures=pictures or (),
            progress=progress,
            **settings_of(min_face, thresholds, confidence, factor, nms, set_),
        )
    if json:
        print_json(made.to_dict())
    else:
        _print_report(made)
    for note in made.notes:
        tell(f"Note: {note}")


def _print_report(made: Report) -> None:
    cells: dict[str, dict[str, str]] = {}
    for n in made.headlines:
        what = n.section if n.measure == "all" else ", ".join(filter(None, (n.measure, n.unit)))
        cells.setdefault(what, {})[n.label] = f"{n.text}  {n.change_text}".rstrip()
    labels = [candidate.label for candidate in made.candidates]
    print_table(("measure", *labels), ((what, *map(of.get, labels)) for what, of in cells.items()))
    print(f"Written: {made.html}, {made.csv}")
