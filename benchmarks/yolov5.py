"""What keeps most of YOLOv5 in integers without training: which calibrator, and what must not be rounded?

    python benchmarks/yolov5.py runs/yolov5n --data ../shared/data/coco

    naive         what a first try gives: ranges by max, everything on grids, the outputs too
    calibrators   every calibrator, with the outputs left in float
    methods       of the best one: biases corrected, rounding learned, on the first --correction of its photographs
    grids         of the best one: the outputs on a grid, heads or first layer in float, TensorRT's grids
    half          float16

AP as pycocotools gives it, exported and run in ONNX Runtime, on val; and on the images of train that calibration did
not see ("other AP"), by which to choose. "AP in OpenVINO" is of val, where export writes a form for it, which has no
grids inside SiLU. -> results/yolov5_ptq.csv
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from octavo import lower, verbs
from octavo.data.coco import Entry
from octavo.evaluate import objects, record
from octavo.export import export
from octavo.images import read
from octavo.models import load_modules
from octavo.models.yolov5 import predict
from octavo.models.yolov5.data import calibration_batches
from octavo.models.yolov5.recipe import NETWORKS, PREPROCESSING
from octavo.quantize import Scheme, calibrate, prepare
from octavo.quantize.dynamic import half
from octavo.quantize.equalize import correct_bias
from octavo.quantize.rounding import learn_rounding
from octavo.run import on_onnxruntime, on_openvino

SETTINGS = predict.Settings(**predict.MEASURING)
SCALE = PREPROCESSING["scale"]


@dataclass(frozen=True)
class How:
    """One row: how the network was quantized. No target: float."""

    question: str = ""
    target: str = ""
    calibrator: str = ""
    method: str = ""  # "bias" or "rounding"
    outputs: bool = False  # on a grid too
    silu: str = "split"  # with grids inside, or "whole"
    kept: str = ""  # layers in float

    def scheme(self) -> Scheme:
        return Scheme.for_target(
            self.target,
            calibrator=self.calibrator,
            quantize_outputs=self.outputs,
            split_silu=self.silu == "split",
            skip=tuple(self.kept.split()),
            input_range=(0.0, 1.0),
        )


FLOAT, HALF = How("float"), How("half")
NAIVE = How("naive", "cpu", "max", outputs=True)


def cases(questions: Sequence[str], best: str) -> Iterator[How]:
    yield FLOAT
    usual = How("calibrators", "cpu")
    if "naive" in questions:
        yield NAIVE
    if "calibrators" in questions:
        for calibrator in verbs.calibrators():
            yield replace(usual, calibrator=calibrator)
    usual = replace(usual, calibrator=best)
    if "methods" in questions:
        for method in ("bias", "rounding"):
            yield replace(usual, question="methods", method=method)
    if "grids" in questions:
        usual = replace(usual, question="grids")
        yield replace(usual, outputs=True)
        yield replace(usual, kept="heads.*")
        yield replace(usual, kept="stem.*")
        yield replace(usual, kept="stem.* heads.*")
        yield replace(usual, target="tensorrt", silu="whole")
    if "half" in questions:
        yield HALF


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="float model folder with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco"))
    parser.add_argument("--questions", default="naive,calibrators,methods,grids,half")
    parser.add_argument(
        "--best", default="mse", help="the calibrator of the questions methods and grids [mse]"
    )
    parser.add_argument("--correction", type=int, default=12, help="photographs for methods [12]")
    parser.add_argument("--calibration", type=int, default=64, help="photographs to calibrate with [64]")
    parser.add_argument("--images", type=int, help="images of each split to measure on [all]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = load_modules(options.model)["detector"]
    batches = list(calibration_batches("detector", options.data, {}, SETTINGS, options.calibration))
    sets = {"other ": others(options.data, options.calibration), "": objects.read(options.data, "val")}
    sets = {name: entries[: options.images] for name, entries in sets.items()}
    for how in cases(options.questions.split(","), options.best):
        key = {name: str(value) for name, value in asdict(how).items()}
        key |= {"calibration": options.calibration, "images": len(sets[""])}
        file = options.out / "yolov5_ptq.csv"
        if common.there(file, model=options.model.name, **key) and not options.again:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = written(how, module, batches, options.correction, Path(folder) / "detector.onnx")
            measured = {name: ap(form(path, "onnxruntime"), entries) for name, entries in sets.items()}
            row = key | {
                f"{name}{what}": value for name, of in measured.items() for what, value in of.items()
            }
            other = form(path, "openvino")
            row["AP in OpenVINO"] = ap(other, sets[""], on_openvino)["AP"] if other != path else None
        about = {"model": options.model.name, "data": options.data.name, "split": "val"}
        record.append(file, row, **about, command=common.command())
        print(*key.values(), measured, flush=True)


def others(data: Path, calibration: int) -> list[Entry]:
    """The images of train that calibration_batches does not take."""
    entries = objects.read(data, "train")
    order = np.random.default_rng(0).permutation(len(entries))
    return [entries[i] for i in sorted(order[calibration:].tolist())]


def written(how: How, module: Any, batches: Sequence[np.ndarray], correction: int, path: Path) -> Path:
    """The network as ONNX, with its forms for single runtimes beside it."""
    if how.target:
        module = quantized(how, module, [torch.from_numpy(p).float() * SCALE for p in batches], correction)
    like = NETWORKS["detector"]
    export(
        half(module) if how == HALF else module,
        path,
        torch.zeros(like.shape),
        target=how.target or None,
        dynamic=like.free,
        outputs=like.outputs,
        preprocessing=PREPROCESSING,
    )
    for runtime in lower.REWRITES if how.target == "cpu" else ():
        lower.write(path, runtime, like.multiple)
    return path


def quantized(how: How, module: Any, batches: Sequence[Tensor], correction: int) -> Any:
    made = prepare(module, how.scheme())
    calibrate(made, batches)
    if how.method == "bias":
        correct_bias(made, module, batches[:correction])
    elif how.method == "rounding":
        learn_rounding(made, module, batches[:correction])
    return made


def form(path: Path, runtime: str) -> Path:
    """The file that this runtime is given."""
    own = path.with_suffix(f".{runtime}.onnx")
    return own if own.is_file() else path


def ap(path: Path, entries: Sequence[Entry], runtime: Any = on_onnxruntime) -> Mapping[str, float]:
    run = {"detector": runtime.open_network(path, 1)}
    found = {entry.name: predict.predict(read(entry.path), run, SETTINGS) for entry in entries}
    measured = objects.measure(entries, found)
    return {"AP": measured["ap"]["all"], **{name: measured["ap"][name] for name in ("AP50", "AP75")}}


if __name__ == "__main__":
    main()
