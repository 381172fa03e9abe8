"""What does training do for an INT8 face detector that calibration did not, and which kind of it?

    python benchmarks/qat.py mtcnn-relu-float                     cpu target
    python benchmarks/qat.py mtcnn-relu-float --target tensorrt --methods "calibrated;labels"
    python benchmarks/qat.py runs/slim --calibrator max --equalize

The float model is calibrated (one weight scale per channel), then each network is trained shortly on its integer
grids, in batches of half the size of its float training, for every seed with every method, on samples that the float
networks mine (`octavo train` mines MTCNN's windows with the quantized ones). They are made of one training photograph
in --every, once, and kept in --work, as is what is calibrated. "float, longer" is the control: the same steps
without quantization. AP and landmark error of the exported model in ONNX Runtime, for target arm of the converted one
in ncnn; a method is to be chosen by the columns "held out ...". -> results/FAMILY_qat.csv
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from octavo import verbs
from octavo.data.widerface import read
from octavo.evaluate import record
from octavo.folder import digest, find, read_info, staged, write_info
from octavo.models import load_modules, part, save_module, train_stage, weights_file
from octavo.recipe import Qat, for_qat
from octavo.train import Hooks, make_fabric

METHODS = {
    "float": None,
    "float, longer": Qat(),
    "calibrated": None,
    "labels": Qat(),
    "labels, ranges move": Qat(ranges=0.5),
    "labels, learned scales": Qat(learned=True),
    "labels and float outputs": Qat(outputs=10.0),
    "float outputs": Qat(labels=0.0, outputs=1.0),
    "float outputs and layers": Qat(labels=0.0, outputs=1.0, layers=1.0),
    "StatAssist": Qat(assist=0.2, ranges=0.5),
    "GradBoost, corrected": Qat(boost="corrected"),
    "GradBoost, as released": Qat(boost="compat"),
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", help="float model: a folder, or an embedded one by name")
    parser.add_argument(
        "--work", type=Path, help="samples and calibrated models are kept here [runs/qat-MODEL]"
    )
    parser.add_argument("--every", type=int, default=1, help="samples are of one photograph in this many [1]")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--calibrator", default="percentile")
    parser.add_argument("--equalize", action="store_true", help="even out channels before calibration")
    parser.add_argument("--methods", help=f"of {'; '.join(METHODS)} [all], separated by ;")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each network [300]")
    options = parser.parse_args()
    model = find(options.model)
    info = read_info(model)
    options.work = options.work or Path("runs") / f"qat-{model.name}"
    file = options.out / f"{info['family']}_qat.csv"
    origin = {"model": info["variant"], "data": options.data.name, "split": "val"}
    weights = common.weights(model)
    held_out, val = common.splits(options.data, verbs.recipe(info["variant"]))
    chosen = options.methods.split(";") if options.methods else METHODS
    runs = [
        (seed, method) for seed in range(options.seeds) for method in chosen if METHODS[method] or not seed
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for seed, method in runs:
            is_float = method.startswith("float") and not (METHODS[method] or Qat()).outputs
            key = {
                "weights": weights,
                "target": "" if is_float else options.target,
                "method": method,
                "seed": seed,
                "steps": options.steps if METHODS[method] else 0,
            }
            if not options.again and common.there(file, **origin, **key):
                print(*key.values(), "there already", flush=True)
                continue
            base = model if is_float else calibrated(model, weights, options)
            if plan := METHODS[method]:
                out = Path(temporary) / f"{method} {seed}".replace(" ", "-")
                learn(model, base, plan, seed, out, options)
                base = out
            exported = in_runtime(base, Path(temporary) / "exported", key["target"])
            row = record.append(
                file, {**key, **common.both(exported, held_out, val)}, **origin, command=common.command()
            )
            print(*key.values(), *(f"{event} {row[event]}" for event in (*common.EVENTS, "NME")), flush=True)


def in_runtime(folder: Path, out: Path, target: str) -> verbs.Model:
    """The model in ONNX Runtime, or in ncnn, whose integers those of target arm are: no other reads them."""
    if target == "arm":
        return verbs.load(verbs.convert(folder, "ncnn", out)[0], "ncnn")
    return verbs.load(verbs.export(folder, out)[0], "onnxruntime")


def calibrated(model: Path, weights: str, options: Any) -> Path:
    """The quantized model that all methods start from."""
    parts = ["int8", weights, options.target, options.calibrator, *["equalized"] * options.equalize]
    out: Path = options.work / "-".join(parts)
    if not (out / "model.json").is_file():
        verbs.quantize(
            model,
            options.data,
            out,
            target=options.target,
            calibrator=options.calibrator,
            images=128,
            equalize=options.equalize,
        )
    return out


def learn(model: Path, base: Path, plan: Qat, seed: int, out: Path, options: Any) -> None:
    """Train the networks of the folder `base` a little, each as the plan says, into `out`."""
    info = read_info(base)
    recipe = for_qat(replace(verbs.recipe(info["variant"]), qat=plan))
    fabric = make_fabric("cpu", 1, "bf16-mixed")
    photographs = thinned(options.data, options.every, options.work)
    exported = options.work / f"float-{common.weights(model)}"
    if not (exported / "model.json").is_file():
        verbs.export(model, exported)
    mining = verbs.load(exported, "onnxruntime").run
    with staged(out) as stage:
        fingerprint, before = "", {}
        for name, module in load_modules(base).items():
            usual = recipe.stages[name]
            schedule = replace(
                usual.schedule,
                epochs=1,
                steps=options.steps,
                batch_size=usual.schedule.batch_size // 2,
                seed=seed,
            )
            shorter = replace(recipe, stages={**recipe.stages, name: replace(usual, schedule=schedule)})
            samples = part(info["family"], "data").train_set(
                name, shorter, photographs, options.work / "samples", before, fingerprint
            )
            train_stage(info["family"], name, module, shorter, samples, stage, Hooks(), str(base), fabric)
            save_module(module, stage / f"{name}.pt")
            before[name] = mining[name]
            fingerprint += digest(weights_file(model, name))[:12]
        write_info(stage, info)


def thinned(data: Path, every: int, work: Path) -> Path:
    """The training photographs of a data set in WIDER FACE layout, one of `every`."""
    if every == 1:
        return data
    out = work / f"one-in-{every}"
    if out.is_dir():
        return out
    names = {entry.name for entry in read(data, "train")[::every]}
    with staged(out) as stage:
        (stage / "WIDER_train").symlink_to((data / "WIDER_train").resolve())
        for file in ("wider_face_split/wider_face_train_bbx_gt.txt", "landmarks/train_label.txt"):
            if (data / file).is_file():
                blocks = re.split(r"^(?=.*/)", (data / file).read_text(), flags=re.MULTILINE)  # at each name
                kept = [block for block in blocks if block.partition("\n")[0].strip("# ") in names]
                (stage / file).parent.mkdir()
                (stage / file).write_text("".join(kept))
    return out


if __name__ == "__main__":
    main()
