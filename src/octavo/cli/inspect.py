"""octavo inspect: a table of every layer's values per network, files with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import decibels, print_json, print_table
from octavo.cli.options import Data, Json
from octavo.cli.progress import step_bars
from octavo.cli.verb import verb


@verb(
    "octavo inspect runs/mtcnn-int8 --data shared/data/faces --out out/inside",
    "octavo inspect runs/mtcnn-int8 --data faces --out out/inside --images 4 --no-pictures",
)
def inspect(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A quantized model folder with .pt files.")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write tables and pictures.")],
    images: Annotated[int, typer.Option(min=1, help="Training images to look at.")] = 16,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Only the CSV files.")] = False,
    json: Json = False,
) -> None:
    """Look inside a quantized model: range, clipping, dead channels and SQNR of every layer's values."""
    from octavo import verbs

    with step_bars() as progress:
        found = verbs.inspect(model, data, out, images=images, pictures=not no_pictures, progress=progress)
    if json:
        return print_json({name: [t.to_row() for t in tensors] for name, tensors in found.items()})
    for name, tensors in found.items():
        rows = [
            (
                f"{t.layer} {t.kind}",
                t.grid,
                *(f"{value:.3g}" for value in (t.min, t.max, t.std)),
                f"{t.clipped:.3%}",
                f"{t.dead}/{t.channels}",
                *map(decibels, (t.sqnr, t.sqnr_network)),
            )
            for t in tensors
        ]
        print_table(
            ("values", "grid", "min", "max", "deviation", "clipped", "dead", "SQNR, dB", "of the network"),
            rows,
            name,
        )
    print(f"Written: {out}")
