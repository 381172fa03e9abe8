"""What a short training gives back to YOLOv5's integers, on little data: labels, or the float network as a teacher?

    python benchmarks/yolov5_qat.py runs/yolov5n-int8 runs/yolov5n --data ../shared/data/coco --steps 300

Each starts from the calibrated folder:

    start     no training
    labels    the detection loss: CIoU, object, classes
    outputs   no labels: the float network's three outputs
    layers    no labels: the outputs of all its layers
    both      no labels: outputs and layers

with activation ranges that stay ("fixed"), follow what is seen for a fifth of the steps ("moving") or are learned.
rate: the peak of the cosine. corrected: biases were corrected afterwards on so many photographs. pictures: "mosaics" as
in float training, or "plain" photographs, mirrored at most.

To choose by: "held out dB", how far the probabilities of the images of train that were kept out of training lie above
their difference from the float network's, all classes of all anchors (torch); these are few images, so their AP says
little. To report: AP on val in ONNX Runtime, and in OpenVINO (its form of the network). -> results/yolov5_qat.csv
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from math import log10
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

from octavo import verbs
from octavo.data.coco import Entry
from octavo.data.split import is_held_out
from octavo.evaluate import objects, record
from octavo.images import read
from octavo.models import load_modules, save_module
from octavo.models.yolov5.data import calibration_batches
from octavo.models.yolov5.predict import ANCHORS, MEASURING, Settings, letterbox
from octavo.quantize.equalize import correct_bias

WEIGHTS = {  # of labels, outputs, layers
    "labels": (1, 0, 0),
    "outputs": (0, 1, 0),
    "layers": (0, 0, 1),
    "both": (0, 1, 1),
}
SCALES = {
    "fixed": ("qat.ranges=0.0",),
    "moving": ("qat.ranges=0.2",),
    "learned": ("qat.ranges=0.0", "qat.learned=true"),
}
FIGURES = ("held out dB", "held out AP", "AP", "AP50", "AP75")
FIGURES += ("AP in OpenVINO", "AP50 in OpenVINO", "AP75 in OpenVINO")
PICTURES = {
    "mosaics": (),
    "plain": ("mosaic=0.0", "zoom=[1.0, 1.0]", "shift=0.0", "colour=[0.0, 0.0, 0.0]"),
}
RATE = "rate in millionths"
SIDE = 640  # of the held-out images


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="quantized model folder with .pt files")
    parser.add_argument("float", type=Path, help="the float model that it was made from")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco"))
    parser.add_argument("--ways", default="start,layers")
    parser.add_argument("--scales", default="fixed", help="fixed, moving, learned; several by commas [fixed]")
    parser.add_argument("--pictures", default="plain", choices=PICTURES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=416, help="side of the pictures learned from [416]")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate at its peak [.0001]")
    parser.add_argument("--correct", type=int, default=0, help="photographs to correct biases with [0: not]")
    parser.add_argument("--no-val", action="store_true", help="only what is to choose by")
    parser.add_argument("--keep", type=Path, help="folder to keep the trained models in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for way, key in questions(options):
        file = options.out / "yolov5_qat.csv"
        val = {"images": 0 if options.no_val else len(objects.read(options.data, "val"))}
        if common.there(file, model=options.model.name, **key, **val) and not options.again:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            out = (options.keep or Path(temporary)) / "-".join(map(str, list(key.values())[:-2]))
            folder = options.model if way == "start" else trained(options, way, key["scales"], out)
            if options.correct and way != "start":
                folder = corrected(folder, options, Path(temporary) / "corrected")
            measured = figures(folder, options.float, options.data, not options.no_val)
        about = {"model": options.model.name, "data": options.data.name, "split": "val"}
        row = key | val | {name: measured.get(name) for name in FIGURES}
        record.append(file, row, **about, command=common.command())
        print(*key.values(), measured, flush=True)


def questions(options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each way with what identifies its row."""
    start = common.weights(options.model)
    for way in options.ways.split(","):
        if way == "start":
            none = dict.fromkeys(("steps", "batch", "size", RATE, "corrected"), 0)
            yield way, {"way": way, "scales": "", "pictures": "", **none, "start": start}
            continue
        for scales in options.scales.split(","):
            how = {name: getattr(options, name) for name in ("steps", "batch", "size")}
            how |= {RATE: f"{options.rate * 1e6:g}", "corrected": options.correct}
            named = {"way": way, "scales": scales, "pictures": options.pictures}
            yield way, {**named, **how, "start": start}


def trained(options: Any, way: str, scales: str, out: Path) -> Path:
    names = dict(zip(("labels", "outputs", "layers"), WEIGHTS[way], strict=True))
    schedule = {
        "epochs": 1,
        "steps": options.steps,
        "batch_size": options.batch,
        "learning_rate": options.rate,
    }
    changes = [
        *(f"qat.{name}={value}" for name, value in names.items()),
        *(f"stages.detector.schedule.{name}={value}" for name, value in schedule.items()),
        *(f"stages.detector.sampling.size={options.size}", "qat.epochs=1.0", "qat.learning_rate=1.0"),
        *(f"stages.detector.sampling.{change}" for change in PICTURES[options.pictures]),
        *SCALES[scales],
    ]
    made = verbs.train(options.model, options.data, out, changes=changes, accelerator="cpu")
    assert made is not None
    return made


def corrected(folder: Path, options: Any, out: Path) -> Path:
    """A copy of the folder with its biases corrected."""
    shutil.copytree(folder, out)
    student, teacher = (load_modules(path)["detector"] for path in (folder, options.float))
    seen = calibration_batches("detector", options.data, {}, Settings(), options.correct)
    correct_bias(student, teacher, [torch.from_numpy(pixels).float() / 255 for pixels in seen])
    save_module(student, out / "detector.pt")
    return out


def figures(folder: Path, reference: Path, data: Path, val: bool) -> dict[str, float]:
    share = verbs.recipe("yolov5n").stages["detector"].sampling.held_out
    held_out = [entry for entry in objects.read(data, "train") if is_held_out(entry, share)]
    student, teacher = (load_modules(path)["detector"] for path in (folder, reference))
    found = {"held out dB": above_noise(student, teacher, held_out)}
    if not val:
        return found
    with tempfile.TemporaryDirectory() as temporary:
        exported, _, _ = verbs.export(folder, Path(temporary) / "exported")
        for backend, said in (("onnxruntime", ""), ("openvino", " in OpenVINO")):
            model = verbs.load(exported, backend)
            if backend == "onnxruntime":
                answers = {entry.name: model(entry.path, **MEASURING) for entry in held_out}
                found["held out AP"] = objects.measure(held_out, answers)["ap"]["all"]
            ap = verbs.evaluate(model, data, split="val")["ap"]
            found |= {f"{'AP' if name == 'all' else name}{said}": value for name, value in ap.items()}
    return found


@torch.inference_mode()
def above_noise(student: nn.Module, teacher: nn.Module, entries: list[Entry]) -> float:
    """10 log10 of the mean square of the teacher's probabilities over that of the difference, dB."""
    signal = noise = 0.0
    for entry in entries:
        pixels = torch.from_numpy(letterbox(read(entry.path), SIDE).pixels).float() / 255
        for ours, theirs in zip(student(pixels), teacher(pixels), strict=True):
            wanted = probabilities(theirs)
            signal += float(wanted.square().sum())
            noise += float((probabilities(ours) - wanted).square().sum())
    return 10 * log10(signal / noise)


def probabilities(logits: Tensor) -> Tensor:
    """Of each class at each anchor: of an object times of its class."""
    each = logits.unflatten(1, (len(ANCHORS[0]), -1)).sigmoid()
    return each[:, :, 4:5] * each[:, :, 5:]


if __name__ == "__main__":
    main()
