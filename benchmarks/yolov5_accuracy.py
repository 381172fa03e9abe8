"""What is left of YOLOv5's accuracy in each form, and how fast is it, in each runtime?

    python benchmarks/yolov5_accuracy.py runs/yolov5n runs/yolov5n-half ... --data ../shared/data/coco

AP on val as pycocotools gives it, measured through the runtime itself; float also in torch. Milliseconds are those of
speed.py for the same files on a 640x640 picture (run it first, all models in one command): "times" is against the first
model in the same runtime. -> results/yolov5_accuracy.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

from octavo import folder, verbs
from octavo.evaluate import record

SIZE = "640x640"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="folders with .onnx files, the float one first")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco"))
    parser.add_argument("--backends", default="onnxruntime,openvino")
    options = parser.parse_args()
    for model in options.models:
        backends = options.backends.split(",")
        for backend in ["torch", *backends] if model == options.models[0] else backends:
            measure(model, backend, options)


def measure(model: Path, backend: str, options: Any) -> None:
    file = options.out / "yolov5_accuracy.csv"
    how = {"weights": common.weights(model), "backend": backend}
    what = {"model": model.name, "data": options.data.name, "split": "val"}
    if common.there(file, **what, **how) and not options.again:
        return
    result = verbs.evaluate(model, options.data, split="val", backend=backend)
    timed = speed(options.out, how)
    row = {
        "precision": folder.read_info(model)["precision"],
        **how,
        "images": result["images"],
        "AP50": result["ap"]["AP50"],
        "AP50:95": result["ap"]["all"],
        "AP75": result["ap"]["AP75"],
        **{name: timed.get(name) for name in ("ms", "times", "kB", "integer layers")},
    }
    record.append(file, row, **what, command=common.command())
    print(model.name, backend, row["AP50"], row["AP50:95"], row["ms"], row["times"], flush=True)


def speed(out: Path, how: dict[str, str]) -> dict[str, str]:
    """The last row of speed.py for these files in this runtime; nothing where there is none."""
    file = out / "yolov5_speed.csv"
    rows = record.read(file) if file.is_file() else []
    wanted = {**how, "size": SIZE, "threads": "1"}
    return next((row for row in reversed(rows) if wanted.items() <= row.items()), {})


if __name__ == "__main__":
    main()
