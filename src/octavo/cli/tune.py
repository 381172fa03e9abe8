"""octavo tune: the thresholds and NMS before and after, what they find and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.console import print_table, tell, write
from octavo.cli.options import (
    Backend,
    Confidence,
    Data,
    Factor,
    JsonFile,
    MinFace,
    ModelName,
    Nms,
    Others,
    Threads,
    Thresholds,
    one_of,
    settings_of,
)
from octavo.cli.progress import step_bars
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.verbs.tune import Tuned


@verb(
    "octavo tune runs/mtcnn-int8 --data shared/data/faces --min-face 12 --chart tune.png",
    "octavo tune mtcnn-relu --data shared/data/faces --by recall --precision .98 --dry-run --json tune.json",
)
def tune(
    model: ModelName,
    data: Data,
    by: Annotated[
        str, typer.Option(help="ap, f1, or recall: as much as can be had with --precision.")
    ] = "ap",
    precision: Annotated[float, typer.Option(help="With --by recall: lowest precision wanted.")] = 0.95,
    span: Annotated[float, typer.Option(help="Thresholds are tried so far below and above.")] = 0.05,
    steps: Annotated[int, typer.Option(min=2, help="Values tried for each threshold.")] = 5,
    nms_span: Annotated[
        float, typer.Option(help="Overlaps of each NMS are tried so far below and above; 0: none.")
    ] = 0.1,
    within: Annotated[
        float, typer.Option(help="Scores so close to the best are equal, and the fastest of them is taken.")
    ] = 0.001,
    share: Annotated[
        float | None, typer.Option(help="Share of the training images used. [what training kept out]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print: model.json stays as it is.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the grid of thresholds as a heat map, .png.")
    ] = None,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    backend: Backend = "auto",
    threads: Threads = 1,
    json: JsonFile = None,
) -> None:
    """Choose thresholds and NMS on training images that training kept out, and write them into model.json.

    The networks run once per image; every combination of thresholds is then replayed. Settings that are given say
    around what to search; of them, only what is tuned is written.
    """
    from octavo import verbs

    one_of(by, ("ap", "f1", "recall"), "--by")
    with step_bars() as progress:
        tuned = verbs.tune(
            model,
            data,
            by=by,
            precision=precision,
            span=span,
            steps=steps,
            nms_span=nms_span,
            within=within,
            share=share,
            dry_run=dry_run,
            chart=chart,
            backend=backend,
            threads=threads,
            progress=progress,
            **settings_of(min_face, thresholds, confidence, factor, nms, set_),
        )
    if json:
        write({"model": model} | tuned.to_dict(), json)
    if json != "-":
        _print_tuned(model, tuned)
    if chart:
        tell(f"Chart: {chart}")


def _print_tuned(model: str, tuned: Tuned) -> None:
    record, before, after = tuned.record, tuned.before, tuned.after
    rows: list[tuple[Any, ...]] = []
    for axis, values in tuned.values.items():
        tried = f"{values[0]:g} to {values[-1]:g}, {len(values)} values"
        rows.append((axis.label, f"{axis.of(before.settings):g}", f"{axis.of(after.settings):g}", tried))
    for name in ("ap", "precision", "recall", "f1"):
        label = {"ap": "AP", "f1": "F1"}.get(name, name)
        rows.append((label, getattr(before.scores, name), getattr(after.scores, name), None))
    for network in before.seen:
        rows.append((f"{network}, inputs an image", before.seen[network], after.seen[network], None))
    by = record["by"] + (f" at precision {record['precision']:g}" if "precision" in record else "")
    title = f"{model}, {record['backend']}: by {by}, on {record['images']} images held out of train, "
    print_table(
        ("", "before", "after", "tried"), rows, title + f"{record[tuned.task.UNIT]} {tuned.task.UNIT}"
    )
    for axis, values in tuned.values.items():
        value = axis.of(after.settings)
        if not axis.alone and len(values) > 1 and value in (values[0], values[-1]):
            tell(f"{axis.label} {value:g} is the last value tried: --span looks further.")
    print(f"Written: {tuned.written}" if tuned.written else "Nothing is written (--dry-run).")
