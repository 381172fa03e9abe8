"""octavo average: one model out of several that came from one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_made
from octavo.cli.options import Json, numbers_of
from octavo.cli.verb import verb


@verb(
    "octavo average runs/mtcnn runs/mtcnn-taught --out runs/mtcnn-mean",
    "octavo average runs/before runs/after --shares 1,3 --out runs/mean     (a quarter and three quarters)",
)
def average(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Float model folders, two or more.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    shares: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="What each model counts. [all the same]")
    ] = None,
    json: Json = False,
) -> None:
    """Write the mean of the weights of models that were trained from one another.

    Often better than each of them, and no slower than one. The metrics in model.json are to be measured anew.
    """
    from octavo import verbs

    print_made("Averaged", verbs.average(models, out, shares=numbers_of(shares, "--shares")), json)
