"""octavo quantize: a float folder in, an INT8 folder out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.console import print_made
from octavo.cli.options import Changes, Json, ModelName, one_of
from octavo.cli.progress import spinner, training_bars
from octavo.cli.verb import verb


@verb(
    "octavo quantize runs/mtcnn --level 1",
    "octavo quantize runs/mtcnn --data shared/data/faces --out runs/mtcnn-int8",
    "octavo quantize runs/mtcnn --data faces --target tensorrt --calibrator percentile",
    "octavo quantize runs/mtcnn --data faces --weight-bits 4 --weight-calibrator mse --rounding",
    "octavo quantize runs/mtcnn --data faces --level 3",
    "octavo quantize vietocr-small-float --level 1 --store '*'",
)
def quantize(
    model: ModelName,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data set in the layout of the model's task; not for level 1."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write. [runs/NAME-int8]")] = None,
    level: Annotated[
        int,
        typer.Option(
            min=1,
            max=4,
            help="1: no data; 2: calibrated on a few images; 3: then a short fine-tune without labels; "
            "4: the whole training schedule.",
        ),
    ] = 2,
    target: Annotated[str, typer.Option(help="Whose integers: cpu or tensorrt.")] = "cpu",
    calibrator: Annotated[
        str, typer.Option(help="Of activations: max, moving_average, percentile, mse or entropy.")
    ] = "max",
    weight_calibrator: Annotated[str, typer.Option(help="The same of weights.")] = "max",
    weight_bits: Annotated[int, typer.Option(min=2, max=8, help="Of a weight.")] = 8,
    weight_scales: Annotated[
        str, typer.Option(help="One per channel, tensor or group of 32 inputs.")
    ] = "channel",
    images: Annotated[int, typer.Option(min=1, help="Photographs to calibrate with.")] = 64,
    equalize: Annotated[
        bool,
        typer.Option("--equalize", help="Even out channels first: for weights with one scale per tensor."),
    ] = False,
    rounding: Annotated[
        bool, typer.Option("--rounding", help="Learn which weights to round up: for weights of few bits.")
    ] = False,
    correct_bias: Annotated[
        bool, typer.Option("--correct-bias", help="Give each layer back the mean output that rounding took.")
    ] = False,
    whole_silu: Annotated[
        bool,
        typer.Option(
            "--whole-silu",
            help="No integers inside SiLU: for OpenVINO, which fuses it. ONNX Runtime needs them.",
        ),
    ] = False,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave in float, such as face. Repeatable."),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK/PATTERN",
            help="Layers of which only the weights are integers, such as 'decoder/*', or '*'. Repeatable.",
        ),
    ] = None,
    set_: Changes = None,
    json: Json = False,
) -> None:
    """Turn a float model into an INT8 one: with no data, with a few photographs, or with training.

    --set changes the recipe of levels 3 and 4.
    """
    from octavo import verbs

    one_of(target, verbs.targets(), "--target")
    one_of(calibrator, verbs.calibrators(), "--calibrator")
    one_of(weight_calibrator, verbs.calibrators(), "--weight-calibrator")
    one_of(weight_scales, ("channel", "tensor", "group"), "--weight-scales")
    if level > 1 and data is None:
        raise typer.BadParameter(f"level {level} needs images; --level 1 does without", param_hint="--data")
    inside: dict[str, Any] = {"split_silu": False} if whole_silu else {}
    run = partial(
        verbs.quantize,
        model,
        data,
        out,
        level=level,
        target=target,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        weight_bits=weight_bits,
        weight_scales=weight_scales,
        images=images,
        equalize=equalize,
        rounding=rounding,
        correct_bias=correct_bias,
        keep_float=keep_float or (),
        store=store or (),
        changes=set_ or (),
        **inside,
    )
    if level < 3:
        with spinner() as progress:
            made = run(progress=progress)
    else:
        with training_bars() as training:
            made = run(training=training)
    print_made("Quantized", made, json)
