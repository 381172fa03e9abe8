"""octavo data: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.console import print_json, print_table
from octavo.cli.options import Json
from octavo.cli.progress import progress_bar
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.data.check import Report


@verb("octavo data shared/data/faces", "octavo data shared/data/faces --sheet out/sheet.jpg --json")
def data(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Data set in WIDER FACE layout.")],
    split: Annotated[str | None, typer.Option(help="Only this split: train or val.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of samples to look at.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a data set: images, faces by size and event, landmarks, missing and broken files."""
    from octavo import verbs

    with progress_bar("Checking") as progress:
        report = verbs.data(root, split, sheet, progress)
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    for split in report.splits:
        rows = [(name, e.images, e.faces, e.invalid, e.landmarks) for name, e in split.events.items()]
        total = split.total
        rows.append(("all", total.images, total.faces, total.invalid, total.landmarks))
        print_table(("event", "images", "faces", "marked invalid", "with landmarks"), rows, split.name)
        print_table(("face size, px", "faces"), split.sizes.items())
    for finding in report.findings():
        print(finding)
