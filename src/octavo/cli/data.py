"""octavo data: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_json, print_table
from octavo.cli.options import Json
from octavo.cli.progress import progress_bar
from octavo.cli.verb import verb


@verb("octavo data shared/data/faces", "octavo data shared/data/faces --sheet out/sheet.jpg --json")
def data(
    root: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Data set as WIDER FACE, COCO or lines of text have it."),
    ],
    split: Annotated[str | None, typer.Option(help="Only this split: train or val.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of samples to look at.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a data set: what is in it, and which files are missing or broken."""
    from octavo import verbs

    with progress_bar("Checking") as progress:
        report = verbs.data(root, split, sheet, progress)
    if json:
        print_json(report.to_dict())
    else:
        for title, columns, rows in report.tables():
            print_table(columns, rows, title)
        for finding in report.findings():
            print(finding)
    if not report.ok:
        raise typer.Exit(1)
