"""octavo convert: the files of runtimes that read no ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_json, tell
from octavo.cli.options import Json, ModelName, one_of
from octavo.cli.verb import verb


@verb("octavo convert runs/slim --to ncnn", "octavo convert runs/slim-arm --to ncnn --out out/phone --json")
def convert(
    model: ModelName,
    to: Annotated[str, typer.Option(help="The runtime: ncnn.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [the model's own]")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Images to compare on. [the samples] Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the networks as the files of a runtime that reads no ONNX, and compare them with torch.

    ncnn: float, or in the integers of a model that was quantized for --target arm, with its calibration table.
    """
    from octavo import verbs

    one_of(to, verbs.formats(), "--to")
    made, parities = verbs.convert(model, to, out, images=images or ())
    if json:
        return print_json(
            verbs.row(str(made), made) | {"parity": {name: p.to_dict() for name, p in parities.items()}}
        )
    print(f"Converted: {made}")
    if not parities:
        tell(f"{to} is not installed here: nothing was compared.")
    for name, found in parities.items():
        print(f"{name}: {found}")
