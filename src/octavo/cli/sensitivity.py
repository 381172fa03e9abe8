"""octavo sensitivity: a table per network, the layer that suffers most on top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.console import decibels, print_table, tell, write
from octavo.cli.options import Data, JsonFile
from octavo.cli.progress import step_bars
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.quantize.sensitivity import Table


@verb(
    "octavo sensitivity runs/mtcnn-int8 --data shared/data/faces --chart sensitivity.png",
    "octavo sensitivity runs/mtcnn-int8 --data faces --by ap --images 300 --budget .002 --out runs/mtcnn-mixed",
)
def sensitivity(
    model: Annotated[
        str, typer.Argument(metavar="INT8-FOLDER", help="A quantized model folder with .pt files.")
    ],
    data: Data,
    by: Annotated[
        str,
        typer.Option(
            help="sqnr: outputs against the float networks; ap (of detectors), exact (of text): on held-out images."
        ),
    ] = "sqnr",
    depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Switch layers together whose names agree in so many parts: 1 makes blocks. [each alone]",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="By accuracy: the held-out images of train, to choose by; or val, to report.")
    ] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images to measure on. [sqnr: 16, else 100]")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Keep layers in float until: no output is below this SQNR, dB; or so much accuracy is lost."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the model with these layers in float.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw bars: FILE_NETWORK.png for each network.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Quantize one layer at a time, and all but one: which of them suffer, worst first.

    With --budget, find how few layers must stay in float, and with --out write that model.
    """
    from octavo import verbs

    if out and budget is None:
        raise typer.BadParameter("needs --budget: how much may be lost?", param_hint="--out")
    with step_bars() as progress:
        found = verbs.sensitivity(
            *(model, data),
            by=by,
            depth=depth,
            split=split,
            images=images,
            budget=budget,
            out=out,
            chart=chart,
            progress=progress,
        )
    if json:
        from octavo.folder import provenance

        write({"model": model, "data": str(data)} | found.to_dict() | provenance(), json)
    if json != "-":
        for name, table in found.tables.items():
            _print_sensitivity(name, table)
    if found.kept is not None and json != "-":
        reached = ", ".join(f"{name} {score:.4g}" for name, score in (found.score or {}).items())
        print(f"In float: {', '.join(found.kept) or 'nothing needs to be'}. Then: {reached}")
        if found.out:
            print(f"Written: {found.out} (octavo export {found.out} makes the ONNX files)")
    for file in found.charts:
        tell(f"Chart: {file}")


def _print_sensitivity(name: str, table: Table) -> None:
    by = "SQNR, dB" if table.by == "sqnr" else table.by
    head = ("layer", "kind", "weights", *(f"{o}: alone" for o in table.outputs))
    head += tuple(f"{o}: all but it" for o in table.outputs)
    rows: list[tuple[Any, ...]] = [
        (row.layer, row.kind, row.parameters, *map(decibels, (*row.alone, *row.others))) for row in table.rows
    ]
    ends = [] if table.by == "sqnr" else [("float", None, None, *map(decibels, table.reference), None)]
    together = (None,) * len(table.outputs)
    ends.append(("all quantized", None, None, *together, *map(decibels, table.quantized)))
    print_table(head, [*rows, *ends], f"{name}, {by}")
