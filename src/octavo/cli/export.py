"""octavo export: ONNX files, and how far each is from torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_json, tell
from octavo.cli.options import Json, ModelName, one_of
from octavo.cli.verb import verb


@verb(
    "octavo export runs/mtcnn-int8",
    "octavo export runs/mtcnn --out runs/mtcnn-onnx --images photos --json",
    "octavo export runs/mtcnn --half --out runs/mtcnn-half",
)
def export(
    model: ModelName,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [the model's own]")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="cpu or tensorrt: must be what it was quantized for.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Images to compare on. [the samples] Repeatable."),
    ] = None,
    no_lower: Annotated[
        bool, typer.Option("--no-lower", help="Leave out the forms that are faster in one runtime.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Compute in float16: half the size, for GPUs and Arm. Needs --out.")
    ] = False,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode", help="End the graph with boxes and probabilities, for families that have it."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write the networks as ONNX files and compare them with torch."""
    from octavo import verbs

    if target:
        one_of(target, verbs.targets(), "--target")
    made, parities, lowered = verbs.export(
        model, out, target=target, images=images or (), lower=not no_lower, half=half, decode=decode
    )
    if json:
        parity = {name: found.to_dict() for name, found in parities.items()}
        from dataclasses import asdict

        forms = {name: asdict(form) for name, form in lowered.items()}
        print_json(verbs.row(str(made), made) | {"parity": parity, "lowered": forms})
    else:
        print(f"Exported: {made}\nThe files in ONNX Runtime against the networks in torch:")
        for name, found in parities.items():
            print(f"{name}: {found}")
        for name, form in lowered.items():
            print(f"{name}: {'; '.join(form.done)}; {form.parity}")
    for name, found in (parities | {name: form.parity for name, form in lowered.items()}).items():
        if not found.ok:
            tell(f"Warning: {name}.onnx computes something else than the network it was made from.")
