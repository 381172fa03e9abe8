"""What a short training gives back to YOLOv5's integers, on little data: labels, or the float network as a teacher?

    python benchmarks/yolov5_qat.py runs/yolov5n-int8 --data ../shared/data/coco --steps 60

Each starts from the calibrated folder, at a hundredth of the float schedule's learning rate:

    start     no training
    labels    the detection loss: CIoU, object, classes
    outputs   no labels: the float network's three outputs
    layers    no labels: the outputs of all its layers

AP as in yolov5.py, on val, and on the images of train that were kept out of training ("held out AP"), by which to
choose. -> results/yolov5_qat.csv
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from yolov5 import ap

from octavo import lower, verbs
from octavo.data.split import is_held_out
from octavo.evaluate import objects, record
from octavo.export import export
from octavo.models import load_modules
from octavo.models.yolov5.recipe import NETWORKS, PREPROCESSING

WEIGHTS = {"labels": (1, 0, 0), "outputs": (0, 1, 0), "layers": (0, 0, 1)}  # of labels, outputs, layers


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="quantized model folder with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco"))
    parser.add_argument("--ways", default="start,layers,outputs,labels")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=640, help="side of the pictures learned from [640]")
    parser.add_argument("--rate", type=float, default=1e-5, help="learning rate at its peak [.00001]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for way in options.ways.split(","):
        key = {"way": way, "steps": 0 if way == "start" else options.steps, "batch": options.batch}
        key |= {"size": options.size, "rate": options.rate, "start": common.weights(options.model)}
        file = options.out / "yolov5_qat.csv"
        if common.there(file, model=options.model.name, **key) and not options.again:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.model if way == "start" else trained(options, way, Path(temporary) / "out")
            measured = figures(folder, options.data, Path(temporary) / "detector.onnx")
        about = {"model": options.model.name, "data": options.data.name, "split": "val"}
        record.append(file, key | measured, **about, command=common.command())
        print(*key.values(), measured, flush=True)


def trained(options: Any, way: str, out: Path) -> Path:
    names = dict(zip(("labels", "outputs", "layers"), WEIGHTS[way], strict=True))
    changes = [f"qat.{name}={value}" for name, value in names.items()]
    schedule = {
        "epochs": 1,
        "steps": options.steps,
        "batch_size": options.batch,
        "learning_rate": options.rate,
    }
    changes += [f"stages.detector.schedule.{name}={value}" for name, value in schedule.items()]
    changes += [f"stages.detector.sampling.size={options.size}", "qat.epochs=1.0", "qat.ranges=0.2"]
    made = verbs.train(options.model, options.data, out, changes=changes, accelerator="cpu")
    assert made is not None
    return made


def figures(folder: Path, data: Path, path: Path) -> dict[str, float]:
    module, like = load_modules(folder)["detector"], NETWORKS["detector"]
    export(
        module,
        path,
        torch.zeros(like.shape),
        dynamic=like.free,
        outputs=like.outputs,
        preprocessing=PREPROCESSING,
    )
    if lower.write(path, multiple=like.multiple):
        path = path.with_suffix(".onnxruntime.onnx")
    share = verbs.recipe("yolov5n").stages["detector"].sampling.held_out
    held_out = [entry for entry in objects.read(data, "train") if is_held_out(entry, share)]
    chosen = {f"held out {name}": value for name, value in ap(path, held_out).items()}
    return chosen | dict(ap(path, objects.read(data, "val")))


if __name__ == "__main__":
    main()
