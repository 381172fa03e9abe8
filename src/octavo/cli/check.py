"""octavo check: findings by file and rule; the exit code says whether there were errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.console import print_json
from octavo.cli.options import Json, one_of
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.lower.check import Finding


@verb("octavo check runs/mtcnn-int8", "octavo check network.onnx --target tensorrt --json")
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An embedded model's name, a folder, or an .onnx file.")
    ],
    target: Annotated[
        str | None,
        typer.Option(help="tensorrt, cpu (ONNX Runtime), openvino or ncnn. [what it was quantized for]"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on warnings too, not on errors only.")
    ] = False,
    json: Json = False,
) -> None:
    """Read exported networks and name every rule of a target that they break: why it matters, what to do.

    Nothing is run. The exit code is 1 where there are errors.
    """
    from octavo import verbs

    if target:
        one_of(target, verbs.check_targets(), "--target")
    found = verbs.check(model, target)
    if json:
        print_json({name: [finding.to_dict() for finding in findings] for name, findings in found.items()})
    else:
        for name, findings in found.items():
            _print_findings(name, findings)
    if {f.level for findings in found.values() for f in findings} & {"error", *(["warning"] * strict)}:
        raise typer.Exit(1)


def _print_findings(name: str, findings: list[Finding]) -> None:
    """Rule by rule: the nodes that break it, then why and what to do once."""
    from textwrap import fill

    many = {level: sum(f.level == level for f in findings) for level in ("error", "warning", "hint")}
    print(f"{name}: " + ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in many.items()))
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.level, f.rule, f.why, f.do), []).append(f)
    for (level, rule, why, do), members in groups.items():
        print(f"  {level}: {rule}")
        for f in members:
            print(f"    {f.node}: {f.what}")
        print(fill(f"{why} {do}", 100, initial_indent="      ", subsequent_indent="      "))
