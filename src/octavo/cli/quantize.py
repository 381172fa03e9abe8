"""octavo quantize: a float folder in, an INT8 folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_made
from octavo.cli.options import Data, Json, ModelName, one_of
from octavo.cli.progress import spinner
from octavo.cli.verb import verb


@verb(
    "octavo quantize runs/mtcnn --data shared/data/faces --out runs/mtcnn-int8",
    "octavo quantize runs/mtcnn --data faces --target tensorrt --calibrator percentile",
)
def quantize(
    model: ModelName,
    data: Data,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write. [runs/NAME-int8]")] = None,
    target: Annotated[str, typer.Option(help="Whose integers: cpu or tensorrt.")] = "cpu",
    calibrator: Annotated[str, typer.Option(help="max, moving_average, percentile, mse or entropy.")] = "max",
    images: Annotated[int, typer.Option(min=1, help="Photographs to calibrate with.")] = 64,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave in float, such as face. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a float model into an INT8 one without training: ranges from a few photographs."""
    from octavo import verbs

    one_of(target, verbs.targets(), "--target")
    one_of(calibrator, verbs.calibrators(), "--calibrator")
    with spinner() as progress:
        made = verbs.quantize(
            model,
            data,
            out,
            target=target,
            calibrator=calibrator,
            images=images,
            keep_float=keep_float or (),
            progress=progress,
        )
    print_made("Quantized", made, json)
