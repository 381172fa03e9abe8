"""octavo import: published weights, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_made
from octavo.cli.options import Json, Variant
from octavo.cli.verb import verb


@verb(
    "octavo import mtcnn shared/weights/mtcnn",
    "octavo import slim shared/weights/slim_Final.pth --out runs/published",
)
def import_(
    variant: Variant,
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="The published weights: a file, or a folder of them.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model folder to write. [runs/VARIANT]")
    ] = None,
    json: Json = False,
) -> None:
    """Read published float weights into a model folder."""
    from octavo import verbs

    print_made("Imported", verbs.import_(variant, source, out), json)
