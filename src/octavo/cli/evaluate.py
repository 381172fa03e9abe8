"""octavo evaluate: AP by event and by size of face, or easy, medium and hard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.console import print_table, tell, write
from octavo.cli.options import (
    Backend,
    Confidence,
    Factor,
    GroundTruth,
    JsonFile,
    MinFace,
    Nms,
    Others,
    Split,
    Threads,
    Thresholds,
    settings_of,
)
from octavo.cli.progress import progress_bar
from octavo.cli.verb import verb


@verb(
    "octavo evaluate mtcnn-relu --data shared/data/faces --min-face 12 --confidence .02 --json val.json",
    "octavo evaluate --predictions out/wider --ground-truth shared/wider_gt --json wider.json",
    "octavo evaluate --predictions out/wider --data shared/data/faces",
)
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An embedded model's name, or a folder.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set in the layout of its task.")
    ] = None,
    split: Split = "val",
    images: Annotated[
        int | None, typer.Option(min=1, help="Only so many, evenly from the first to the last. [all]")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Judge these EVENT/NAME.txt files instead of a model.")
    ] = None,
    ground_truth: GroundTruth = None,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    save_predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what was found as the benchmark's tools read it."),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw precision against recall, as .png or .svg.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measure how good a model is at its task on a data set, or how good given predictions of faces are.

    Keep --confidence low: what is cut off cannot be found.
    """
    from octavo import verbs

    if predictions:
        if model or chart or (ground_truth and data):
            raise typer.BadParameter(
                "goes with --data or --ground-truth, without MODEL and --chart", param_hint="--predictions"
            )
        if ground_truth:
            judged: dict[str, Any] = verbs.judge(predictions, ground_truth)
            tables = [(("WIDER FACE", "AP"), list(judged.items()))]
        elif data:
            judged = verbs.judge_on(predictions, data, split=split)
            tables = verbs.task_of_data(data).tables(judged)
        else:
            raise typer.BadParameter("goes with --data or --ground-truth", param_hint="--predictions")
        if json:
            write(judged, json)
        if json != "-":
            for columns, rows in tables:
                print_table(columns, rows)
        return
    if not (model and data):
        raise typer.BadParameter(
            "give MODEL and --data, or --predictions and one of --data and --ground-truth"
        )
    with progress_bar("Evaluating") as progress:
        result = verbs.evaluate(
            model,
            data,
            split=split,
            images=images,
            chart=chart,
            ground_truth=ground_truth,
            save_predictions=save_predictions,
            backend=backend,
            threads=threads,
            progress=progress,
            **settings_of(min_face, thresholds, confidence, factor, nms, set_),
        )
    if json:
        write(result, json)
    if json != "-":
        _print_evaluation(result)
    for name, error in result["errors"].items():
        tell(f"Error: {name}: {error}")
    if result["errors"]:
        raise typer.Exit(1)


def _print_evaluation(result: dict[str, Any]) -> None:
    from octavo import verbs

    task = verbs.task_of(result["variant"])
    counts = f"{result['images']} images, {result[task.UNIT]} {task.UNIT}"
    print(
        f"{result['model']} ({result['precision']}, {result['backend']}): {counts}, {result['seconds']:.0f} s"
    )
    for columns, rows in task.tables(result):
        print_table(columns, rows)
