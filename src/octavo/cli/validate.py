"""octavo validate: what INT8 kept of float and what it gained, in tables, and whether that is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.console import kilobytes, print_table, tell, write
from octavo.cli.options import (
    Confidence,
    Data,
    Factor,
    GroundTruth,
    JsonFile,
    MinFace,
    Nms,
    Others,
    Split,
    Threads,
    Thresholds,
    settings_of,
)
from octavo.cli.progress import step_bars
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.verbs.validate import Check, Validation


@verb(
    "octavo validate mtcnn-relu-float mtcnn-relu --data shared/data/faces --min-face 12",
    "octavo validate runs/mine runs/mine-int8 --data faces --accuracy 99 --speed-up 1.5 --json validate.json",
)
def validate(
    float_: Annotated[str, typer.Argument(metavar="FLOAT", help="The float model: a name or a folder.")],
    int8: Annotated[str, typer.Argument(metavar="INT8", help="The model that was made from it.")],
    data: Data,
    split: Split = "val",
    ground_truth: GroundTruth = None,
    accuracy: Annotated[float, typer.Option(metavar="%", help="Of float's accuracy to keep at least.")] = 95,
    agreement: Annotated[
        float | None, typer.Option(metavar="%", help="Of what each model finds, the other must find too.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="%", help="Of float's memory at most, beyond the bare runtime.")
    ] = None,
    size: Annotated[float | None, typer.Option(metavar="%", help="Of float's files at most.")] = None,
    speed_up: Annotated[float | None, typer.Option(metavar="TIMES", help="Times as fast at least.")] = None,
    error: Annotated[
        float | None,
        typer.Option(
            "--error",
            "--landmarks",
            metavar="TIMES",
            help="Times float's landmark or character error at most.",
        ),
    ] = None,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    backend: Annotated[
        str, typer.Option(help="auto (the INT8 model's), onnxruntime, openvino, torch, or several: a,b.")
    ] = "auto",
    threads: Threads = 1,
    timed_images: Annotated[int, typer.Option(min=1, help="Images that are timed.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds on each of them.")] = 20,
    json: JsonFile = None,
) -> None:
    """Hold an INT8 model against its float one: accuracy kept, agreement, speed, memory, size.

    Exits with 1 where a bound is not reached. Only accuracy has one by default.
    """
    from octavo import verbs
    from octavo.folder import provenance

    bounds = verbs.Bounds(accuracy, agreement, memory, size, speed_up, error)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    errors: dict[str, str] = {}
    for runtime in backend.split(","):
        with step_bars() as progress:
            found = verbs.validate(
                float_,
                int8,
                data,
                split=split,
                ground_truth=ground_truth,
                backend=runtime,
                threads=threads,
                timed_images=timed_images,
                repeats=repeats,
                progress=progress,
                **settings_of(min_face, thresholds, confidence, factor, nms, set_),
            )
        checks = found.against(bounds)
        results.append(found.to_dict() | {"checks": [vars(c) | {"passed": c.passed} for c in checks]})
        failed += [f"{found.backend}: {check}" for check in checks if not check.passed]
        errors |= found.measured[0]["errors"] | found.measured[1]["errors"]
        if json != "-":
            _print_validation(found, checks)
    if json:
        write({"passed": not (failed or errors), "failed": failed, "results": results} | provenance(), json)
    for name, why in errors.items():
        tell(f"Error: {name}: {why}")
    for text in failed:
        tell(f"Failed: {text}")
    if failed or errors:
        raise typer.Exit(1)


def _print_validation(found: Validation, checks: list[Check]) -> None:
    first, second = found.measured
    title = (
        f"{first['model']} and {second['model']} in {found.backend}: {first['split']} of {first['data']}, "
    )
    task = found.task
    aps, errors = ([of(result) for result in found.measured] for of in (task.headline, task.errors))
    head: tuple[str, ...] = ("", f"{task.YARDSTICK} float", f"{task.YARDSTICK} int8", "kept")
    rows: list[tuple[Any, ...]] = [
        (name, *(of.get(name) for of in aps), _share(kept)) for name, kept in found.accuracy.items()
    ]
    if task.ERROR:
        head += (f"{task.ERROR} error float", "int8", "int8 / float")
        rows = [(*row, *(of.get(row[0]) for of in errors), _times(found.errors.get(row[0]))) for row in rows]
    print_table(head, rows, title + f"{first['images']} images, {first[task.UNIT]} {task.UNIT}")
    print_table(("agreement", "float", "int8", "pairs"), found.agreement.rows())

    a, b = found.milliseconds
    sizes = found.file_bytes
    rows = [
        ("ms an image, one after the other", f"{a:.2f}", f"{b:.2f}", f"{found.speed_up:.2f} times as fast")
    ]
    if found.memory:
        rows.append(("MB beyond the bare runtime", *(f"{m:.1f}" for m in found.memory), _of(found.memory)))
    rows.append(("files", *map(kilobytes, sizes), _of(sizes)))
    shares = [row.integers for row in found.rows[0]]
    if all(shares):
        rows.append(("integer layers", *(f"{s.integer}/{s.layers}" for s in shares if s), None))
    print_table(
        (f"{len(found.rows)} images, {found.rows[0][0].repeats} rounds each", "float", "int8", ""), rows
    )
    if found.backend == "torch":
        tell("torch imitates integers in floats: its speed and memory say nothing of a deployment.")
    for check in checks:
        print(f"{'passed' if check.passed else 'FAILED'}: {check}")


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _of(pair: tuple[float, float]) -> str:
    return f"{100 * pair[1] / pair[0]:.1f} % of float's" if pair[0] else "-"
