"""What keeps most of a face detector in integers without training: which calibrator, which weights, which level?

    python benchmarks/ptq.py runs/mtcnn
    python benchmarks/ptq.py runs/mtcnn --questions weights --images 60 --out out     (a quick look)
    python benchmarks/ptq.py runs/slim --questions calibrators --targets cpu,arm --per channel --methods ",equalized"

    calibrators   every calibrator, for the grids of both targets, with one weight scale per channel and per tensor;
                  or for the --targets, --per and --methods given
    weights       4 and 8 bits, ranges of weights by max and by mse, equalized, biases corrected, rounding learned
    levels        no data (synthetic images), a few photographs, and float16

AP and landmark error on the val split, exported and run in ONNX Runtime. Calibrators are to be chosen by the
columns "held out ...", measured on the images of the train split that the networks were not trained on (calibration
takes its images from the whole train split). The float model is the first row of each question. What networks meet
while they are calibrated is collected once, images are decoded once. -> results/FAMILY_quantization.csv
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import nn

from octavo import folder, images, lower, verbs
from octavo.data.split import is_held_out
from octavo.data.widerface import Entry, read
from octavo.evaluate import record
from octavo.export import export
from octavo.models import load_modules, networks, part
from octavo.quantize import Grid, Scheme, calibrate, prepare, synthetic
from octavo.quantize.dynamic import half
from octavo.quantize.equalize import correct_bias, correct_bias_from_norms, equalize
from octavo.quantize.rounding import learn_rounding

METHODS = ("", "equalized", "bias corrected", "equalized, bias corrected", "learned rounding")


@dataclass(frozen=True)
class How:
    """One row: how the networks were quantized. No target: float."""

    target: str = ""
    calibrator: str = ""
    per: str = ""
    bits: int | None = None
    weights: str = ""  # the calibrator of weights
    method: str = ""
    data: str = ""  # "photographs" or "synthetic"

    def row(self) -> dict[str, Any]:
        names = {
            "per": "scale per",
            "bits": "weight bits",
            "weights": "weight calibrator",
            "data": "calibrated on",
        }
        return {names.get(name, name): value for name, value in asdict(self).items()}


FLOAT, HALF = How(), How(method="float16")
USUAL = How("cpu", "max", "channel", 8, "max", "", "photographs")


def cases(question: str, options: Any) -> Iterator[How]:
    yield FLOAT
    if question == "calibrators":
        for target in options.targets.split(","):
            for per in options.per.split(","):
                for calibrator in verbs.calibrators():
                    for method in options.methods.split(","):
                        yield replace(USUAL, target=target, per=per, calibrator=calibrator, method=method)
    elif question == "weights":
        usual = replace(USUAL, calibrator="mse")
        for bits, per in ((8, "channel"), (8, "tensor"), (4, "channel")):
            for weights in ("max", "mse"):
                for method in METHODS if bits == 4 or weights == "max" else METHODS[:1]:
                    yield replace(usual, bits=bits, per=per, weights=weights, method=method)
    else:
        yield HALF
        for bits in (8, 4):
            for data in ("synthetic", "photographs"):
                yield replace(
                    USUAL, calibrator="mse", bits=bits, weights="max" if bits == 8 else "mse", data=data
                )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="float model folder with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--questions", default="calibrators,weights,levels")
    parser.add_argument("--targets", default="cpu,tensorrt", help="of question calibrators")
    parser.add_argument("--per", default="channel,tensor", help="of question calibrators")
    parser.add_argument("--methods", default="", help=f"of question calibrators: {METHODS}")
    parser.add_argument("--calibration", type=int, default=64, help="photographs to calibrate with [64]")
    parser.add_argument("--images", type=int, help="images of each split to measure on [all]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.model, options.data, options.calibration, options.images)
    for question in options.questions.split(","):
        for how in cases(question, options):
            row = measure(bench, question, how, options)
            print(question, *(v for v in asdict(how).values() if v), row, flush=True)


def measure(bench: Bench, question: str, how: How, options: Any) -> str:
    file = options.out / f"{bench.info['family']}_quantization.csv"
    origin = {"model": options.model.resolve().name, "data": options.data.name, "split": "val"}
    own = {
        "calibration": options.calibration if how.data == "photographs" else None,
        "images": options.images,
    }
    key = {"question": question, **how.row(), **own, "weights": bench.weights}
    if not options.again and common.there(
        file, **origin, **{k: "" if v is None else v for k, v in key.items()}
    ):
        return "there already"
    held_out = bench.ap(how, "held out") if question == "calibrators" else {}
    reported = bench.ap(how, "val")
    metrics = {f"held out {name}": held_out.get(name) for name in reported} | reported
    row = record.append(file, key | metrics, **origin, command=common.command())
    return " ".join(f"{event} {row[event]}" for event in common.EVENTS)


class Bench:
    """The float networks, what they meet, and the images, each read once."""

    def __init__(self, model: Path, data: Path, calibration: int, limit: int | None) -> None:
        self.model, self.data, self.calibration, self.limit = model, data, calibration, limit
        self.info = folder.read_info(model)
        self.networks = networks(self.info["variant"])
        self.weights = common.weights(model)
        self.modules = load_modules(model)
        self.entries: dict[str, list[Entry]] = {}
        self.pixels: dict[Path, np.ndarray] = {}
        self.seen: dict[tuple[str, str], list[torch.Tensor]] = {}
        self.measured: dict[tuple[How, str], dict[str, float]] = {}

    def ap(self, how: How, split: str) -> dict[str, float]:
        if (how, split) not in self.measured:
            entries = self.of(split)
            with tempfile.TemporaryDirectory() as temporary:
                model = self.make(how, Path(temporary))
                settings = common.settings(model)
                found = {e.name: model(self.pixels[e.path], **settings) for e in entries}
            found = {name: replace(detections, image=None) for name, detections in found.items()}
            self.measured[how, split] = common.ap(entries, found)
        return self.measured[how, split]

    def of(self, split: str) -> Sequence[Entry]:
        if split not in self.entries:
            entries = read(self.data, "val" if split == "val" else "train")
            if split == "held out":
                stages = verbs.recipe(self.info["variant"]).stages.values()
                share = {stage.sampling.held_out for stage in stages}.pop()
                entries = [entry for entry in entries if is_held_out(entry, share)]
            if self.limit:  # spread over the events
                entries = entries[:: max(1, len(entries) // self.limit)][: self.limit]
            self.entries[split] = entries
            self.pixels |= {entry.path: images.read(entry.path) for entry in entries}
        return self.entries[split]

    def make(self, how: How, out: Path) -> verbs.Model:
        """The model quantized so, exported into `out` and opened in ONNX Runtime."""
        made = {name: self.quantized(name, module, how) for name, module in self.modules.items()}
        for name, module in made.items():
            like = self.networks[name]
            path = out / f"{name}.onnx"
            export(
                module,
                path,
                torch.zeros(like.shape),
                dynamic=like.free,
                outputs=like.outputs,
                preprocessing=self.info["preprocessing"],
            )
            if how.target == "cpu":
                lower.write(path, "onnxruntime", like.multiple)  # the same integers, faster
        folder.write_info(out, self.info)
        return verbs.load(out, "onnxruntime")

    def quantized(self, name: str, module: nn.Module, how: How) -> nn.Module:
        if not how.target:
            return half(module) if how == HALF else module
        scheme = Scheme.for_target(
            how.target,
            weight=Grid(how.bits or 8, granularity=how.per, narrow=True),
            calibrator=how.calibrator,
            weight_calibrator=how.weights,
        )
        source = equalize(module) if "equalized" in how.method else module
        qmodel, batches = prepare(source, scheme), self.inputs(name, how.data)
        calibrate(qmodel, batches)
        if "rounding" in how.method:
            learn_rounding(qmodel, source, batches)
        if "bias corrected" in how.method:
            if how.data == "synthetic":
                correct_bias_from_norms(qmodel, source)
            else:
                correct_bias(qmodel, source, batches)
        return qmodel

    def inputs(self, name: str, data: str) -> list[torch.Tensor]:
        """What a network is calibrated on, normalised: as octavo quantize does it, at level 1 and 2."""
        if (name, data) not in self.seen:
            if data == "synthetic":
                shape = self.networks[name].shape[1:]
                pixels = [synthetic.images((8, *shape), seed=i) for i in range(8)]
            else:
                model = self.make(FLOAT, Path(tempfile.mkdtemp()))
                batches = part(self.info["family"], "data").calibration_batches
                found = batches(name, self.data, model.run, model.settings(), self.calibration)
                pixels = [torch.from_numpy(array.copy()) for array in found]
            offset, scale = (self.info["preprocessing"][key] for key in ("offset", "scale"))
            self.seen[name, data] = [(p.float() - offset) * scale for p in pixels]
        return self.seen[name, data]


if __name__ == "__main__":
    main()
