"""What lies in the layers of an INT8 model, as tables and pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.verbs.int8_model import batch_progress, batches_of, open_int8
from octavo.verbs.signatures import PathLike, StepProgress

if TYPE_CHECKING:
    from octavo.quantize.inspect import Tensors


def inspect(
    model: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    images: int = 16,
    pictures: bool = True,
    progress: StepProgress | None = None,
) -> dict[str, list[Tensors]]:
    """What lies in the layers of an INT8 folder, in float and in integers, on `images` training images.

    out gets tensors.csv, histograms.csv and, per network, NETWORK_histograms.png and NETWORK_sqnr.png.
    """
    from octavo.evaluate import charts

    if out and pictures:
        charts.check(Path(out) / "any.png")
    path, info, modules = open_int8(model)
    from octavo.quantize.inspect import inspect as look_inside

    found = {}
    for name, batches in batches_of(path, info, Path(data), images).items():
        told = batch_progress(progress, name, len(batches))
        found[name] = look_inside(modules[name], batches, told)
    if out:
        _write_csv(
            Path(out) / "tensors.csv",
            [{"network": name} | tensor.to_row() for name, tensors in found.items() for tensor in tensors],
        )
        _write_csv(
            Path(out) / "histograms.csv",
            [
                {"network": name, "layer": t.layer, "kind": t.kind}
                | {"from": low, "to": high, "float": a, "quantized": b}
                for name, tensors in found.items()
                for t in tensors
                for low, high, a, b in zip(
                    t.edges, t.edges[1:], t.float_counts, t.quantized_counts, strict=False
                )
            ],
        )
    if out and pictures:
        for name, tensors in found.items():
            charts.distributions(tensors, Path(out) / f"{name}_histograms.png", name)
            charts.signal_to_noise(tensors, Path(out) / f"{name}_sqnr.png", name)
    return found


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
