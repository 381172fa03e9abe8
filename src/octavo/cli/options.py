"""Arguments and options that several verbs share, and how their words become values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.folder import did_you_mean

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model's name, or a model folder.")
]
Start = Annotated[
    str,
    typer.Argument(
        metavar="VARIANT|MODEL",
        help="A variant to build, such as mtcnn-relu, or a model folder to go on from.",
    ),
]
Variant = Annotated[str, typer.Argument(metavar="VARIANT", help="What to build, such as mtcnn-relu.")]
Backend = Annotated[str, typer.Option(help="What runs the networks: auto, onnxruntime, openvino or torch.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads inside a network.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the results as JSON; - or no FILE: to stdout."),
]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Data set in the layout of the model's task.")]
Split = Annotated[str, typer.Option(help="train or val.")]
GroundTruth = Annotated[
    Path | None, typer.Option(metavar="DIR", help="WIDER FACE's .mat files: easy, medium, hard.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a number of the recipe. Repeatable."),
]
# The model's own settings stand in for what is not given.
MinFace = Annotated[float | None, typer.Option(help="Smallest face searched for, pixels.")]
Thresholds = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Lowest probability that each stage lets pass.")
]
Confidence = Annotated[
    float | None,
    typer.Option(help="Lowest probability reported; without --thresholds it replaces the last of them."),
]
Factor = Annotated[
    str | None,
    typer.Option(
        metavar="A[,B...]", help="Size of a pyramid level over the one before; the last for all others."
    ),
]
Nms = Annotated[str | None, typer.Option(metavar="A,B,C,D", help="Largest overlap kept at each NMS.")]
Others = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting of the model, such as long_side=640. Repeatable."
    ),
]


def settings_of(
    min_face: float | None,
    thresholds: str | None,
    confidence: float | None,
    factor: str | None,
    nms: str | None,
    others: list[str] | None = None,
) -> dict[str, Any]:
    """What was given on the command line, by the names that a family's Settings have; others: "long_side=640"."""
    settings = {
        "min_face": min_face,
        "thresholds": numbers_of(thresholds, "--thresholds"),
        "confidence": confidence,
        "factor": numbers_of(factor, "--factor"),
        "nms": numbers_of(nms, "--nms"),
    }
    settings |= dict(setting_of(text) for text in others or ())
    return {name: value for name, value in settings.items() if value is not None}


def setting_of(text: str) -> tuple[str, Any]:
    """'long_side=640' -> ("long_side", 640). Which names and values there are, the model knows."""
    name, _, value = text.partition("=")
    for read in (int, float, json.loads):
        try:
            return name.strip().replace("-", "_"), read(value)
        except ValueError:
            continue
    raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as long_side=640", param_hint="--set")


def numbers_of(text: str | None, option: str) -> tuple[float, ...] | None:
    """'.5,.5,.3' -> (.5, .5, .3). How many there must be, the model knows."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers such as .5,.5,.3", param_hint=option) from None


def size_of(text: str | None) -> tuple[int, int] | None:
    """'640x480' -> (640, 480)."""
    width, _, height = (text or "1x1").lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(
            f"{text!r} is not WIDTHxHEIGHT in pixels, such as 640x480", param_hint="--size"
        )
    return (int(width), int(height)) if text else None


def one_of(word: str, known: Sequence[str], option: str) -> None:
    if word not in known:
        near = did_you_mean(word, known)
        raise typer.BadParameter(f"no {word!r}.{near} There are: {', '.join(known)}.", param_hint=option)


def changed_recipe(model: str, changes: list[str] | None) -> Any:
    """The changed recipe; a change that can't be made is wrong usage."""
    from octavo import verbs

    usual = verbs.recipe(model)
    try:
        return verbs.recipe(model, changes) if changes else usual
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None
