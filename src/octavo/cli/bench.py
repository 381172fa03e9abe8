"""octavo bench: a row for each model in each runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.console import kilobytes, print_table, write
from octavo.cli.options import (
    Confidence,
    Factor,
    JsonFile,
    MinFace,
    Nms,
    Others,
    Threads,
    Thresholds,
    settings_of,
    size_of,
)
from octavo.cli.progress import progress_bar
from octavo.cli.verb import verb

if TYPE_CHECKING:
    from octavo.run.bench import Row


@verb(
    "octavo bench mtcnn-relu mtcnn-relu-float --size 640x480",
    "octavo bench mtcnn-relu --image photo.jpg --backend onnxruntime,openvino --json bench.json",
)
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Embedded names or model folders.")],
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size of the image. [640x480]")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image. [a sample photograph]")
    ] = None,
    threads: Threads = 1,
    min_face: MinFace = None,
    thresholds: Thresholds = None,
    confidence: Confidence = None,
    factor: Factor = None,
    nms: Nms = None,
    set_: Others = None,
    backend: Annotated[
        str, typer.Option(help="auto, onnxruntime, openvino, torch, or several: a,b.")
    ] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that are measured.")] = 50,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in a process per model.")] = True,
    json: JsonFile = None,
) -> None:
    """Measure models side by side: latency per stage, memory, size, share of integers."""
    from dataclasses import asdict

    from octavo import verbs
    from octavo.folder import provenance

    wanted = size_of(size)
    settings = settings_of(min_face, thresholds, confidence, factor, nms, set_)
    with progress_bar("Measuring") as progress:
        rows = verbs.bench(
            models,
            size=wanted,
            image=image,
            backends=backend.split(","),
            threads=threads,
            repeats=repeats,
            memory=memory,
            progress=progress,
            **settings,
        )
    if json:
        write({"rows": [asdict(row) for row in rows], "settings": settings} | provenance(), json)
    if json != "-":
        _print_bench(rows)


def _print_bench(rows: list[Row]) -> None:
    first = rows[0]
    print(
        f"{first.width}x{first.height}, {first.threads} thread(s), median ms of {first.repeats} rounds in turn"
    )
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    table = []
    for row in rows:
        share = row.integers
        table.append(
            (
                row.name,
                row.backend,
                f"{row.total.p50:.2f}",
                f"{row.total.p95:.2f}",
                f"{first.total.p50 / row.total.p50:.2f}x",
                *(f"{row.stages[s].p50:.2f}" if s in row.stages else None for s in stages),
                row.detections,
                kilobytes(row.file_bytes),
                f"{row.memory.peak:.0f} MB" if row.memory else None,
                f"{share.integer}/{share.layers}" if share else None,
            )
        )
    head = ("model", "backend", "p50", "p95", "speed", *stages, "found", "files", "memory", "integer layers")
    print_table(head, table)
