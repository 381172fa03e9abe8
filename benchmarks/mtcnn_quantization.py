"""Which calibration keeps most of MTCNN, for each target, without training?

    python benchmarks/mtcnn_quantization.py runs/mtcnn

Every calibrator, for the grids of the cpu and of the tensorrt target, with one weight scale per channel and
per tensor: quantized, exported, and run bit for bit as exported in ONNX Runtime. AP and landmark error on the
val split are reported; the choice is to be made by the columns "held out ...", measured on the images of the
train split that the networks were not trained on (calibration takes its images from the whole train split).
The float model is the first row. -> results/mtcnn_quantization.csv
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

from octavo import verbs
from octavo.data.widerface import Entry, read
from octavo.evaluate import record
from octavo.models.mtcnn.data import is_held_out
from octavo.quantize.scheme import Grid

BACKEND = "onnxruntime"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="float model folder with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--images", type=int, default=64, help="photographs to calibrate with [64]")
    parser.add_argument("--targets", default="cpu,tensorrt")
    parser.add_argument("--calibrators", default=",".join(verbs.calibrators()))
    parser.add_argument("--granularities", default="channel,tensor", help="of the weights' scales")
    options = parser.parse_args()
    file = options.out / "mtcnn_quantization.csv"
    origin = {
        "model": options.model.resolve().name,
        "data": options.data.name,
        "split": "val",
    }
    weights = common.weights(options.model)
    share = {stage.sampling.held_out for stage in verbs.recipe("mtcnn-relu").stages.values()}.pop()
    held_out = [entry for entry in read(options.data, "train") if is_held_out(entry, share)]
    val = read(options.data, "val")
    for how in wanted(options):
        key = {**how, "images": options.images if how["target"] else 0, "weights": weights}
        if not options.again and common.there(file, **origin, **key):
            print(*how.values(), "there already")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            made = make(options.model, options.data, Path(temporary), options.images, **how)
            model = verbs.load(made, BACKEND)
        row = record.append(
            file,
            {**key, "backend": BACKEND, **both(model, held_out, val)},
            **origin,
            command=common.command(),
        )
        print(*how.values(), *(f"{event} {row[event]}" for event in common.EVENTS), flush=True)


def wanted(options: Any) -> Iterator[dict[str, str]]:
    yield {"target": "", "calibrator": "", "scale per": ""}  # float
    for target in options.targets.split(","):
        for granularity in options.granularities.split(","):
            for calibrator in options.calibrators.split(","):
                yield {"target": target, "calibrator": calibrator, "scale per": granularity}


def make(model: Path, data: Path, out: Path, images: int, **how: str) -> Path:
    """The model quantized so, or the float model, exported into `out`."""
    if how["target"]:
        grid = Grid(granularity=how["scale per"], narrow=True)
        model = verbs.quantize(
            model,
            data,
            out / "int8",
            target=how["target"],
            calibrator=how["calibrator"],
            images=images,
            weight=grid,
        )
    return verbs.export(model, out / "exported")[0]


def both(model: verbs.Model, held_out: list[Entry], val: list[Entry]) -> dict[str, float]:
    """Metrics on the held-out training images and on val."""
    chosen = common.ap(held_out, common.find(model, held_out, **common.SETTINGS))
    reported = common.ap(val, common.find(model, val, **common.SETTINGS))
    return {**{f"held out {name}": value for name, value in chosen.items()}, **reported}


if __name__ == "__main__":
    main()
