"""octavo train: bars and losses while it runs, the folder when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.console import print_made, tell
from octavo.cli.options import Changes, Data, Json, Start, changed_recipe
from octavo.cli.progress import training_bars
from octavo.cli.verb import verb


@verb(
    "octavo train mtcnn-relu --data shared/data/faces --out runs/mtcnn",
    "octavo train mtcnn-relu --data faces --out runs/quick --stage pnet --set stages.pnet.schedule.epochs=2",
    "octavo train runs/mtcnn-int8 --data faces --out runs/mtcnn-qat     (quantization-aware training)",
    "octavo train runs/mtcnn --data faces --out runs/better --stage onet --teacher runs/mtcnn --teacher runs/mtcnn2",
    "octavo train runs/mtcnn-int8 --data faces --out runs/mtcnn-qat --set qat.labels=0 --set qat.outputs=1",
)
def train(
    model: Start,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder; one that was stopped goes on.")],
    stage: Annotated[str, typer.Option(help="One network's name, or all of them in their order.")] = "all",
    set_: Changes = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Learn from this model too; from several, from their mean. Repeatable."
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[str, typer.Option(help="How many of them, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    json: Json = False,
) -> None:
    """Train a variant's networks, or go on with a model folder's; a quantized one learns for its integers (QAT).

    Logs, checkpoints and the recipe used are kept in the run folder.
    """
    from octavo import verbs

    changed_recipe(model, set_)
    fabric = {"accelerator": accelerator, "devices": int(devices) if devices.isdecimal() else devices}
    with training_bars() as progress:
        made = verbs.train(
            model,
            data,
            out,
            stage=stage,
            changes=set_ or (),
            teachers=teacher or (),
            progress=progress,
            precision=precision,
            **fabric,
        )
    if made:
        print_made("Trained", made, json)
    else:
        tell(f"{out} holds what was trained so far; it becomes a model when all networks are there.")
