"""octavo explain: numbers in, the walk through their quantization out."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli.console import print_json
from octavo.cli.options import Json, numbers_of, one_of
from octavo.cli.verb import verb


@verb(
    "octavo explain tensor -0.52 0.3 1.7",
    "octavo explain fixedpoint 2.71875 --format 10.5",
    ignore_unknown_options=True,  # a number may be negative
)
def explain(
    what: Annotated[
        str, typer.Argument(metavar="tensor|fixedpoint", help="A scale for all, or a fixed binary point.")
    ],
    numbers: Annotated[list[str], typer.Argument(metavar="NUMBER...", help="What to quantize.")],
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of a tensor's integers.")] = 8,
    format: Annotated[
        str | None, typer.Option(metavar="N.M", help="Integer and fraction bits of a fixed-point number.")
    ] = None,
    json: Json = False,
) -> None:
    """Quantize a few numbers step by step: integers, what they return, errors, memory, time.

    tensor: the offset method (affine), the same scale without its offset, and max-abs (symmetric).
    fixedpoint: two's complement with N integer and M fraction bits; try -0.499878 with --format 2.13 too.
    """
    from octavo import verbs

    one_of(what, ("tensor", "fixedpoint"), "tensor|fixedpoint")
    values = [number for text in numbers for number in numbers_of(text, "NUMBER") or ()]
    if (what == "fixedpoint") != (format is not None):
        rule = "fixedpoint needs it, such as 10.5" if format is None else "goes with fixedpoint only"
        raise typer.BadParameter(rule, param_hint="--format")
    said = verbs.explain(what, values, bits, format)
    if json:
        return print_json([{k: v for k, v in one.items() if k != "text"} for one in said])
    print("\n".join(one["text"].rstrip("\n") + "\n" for one in said), end="")
