"""What does training do for an INT8 face detector that calibration did not, and which kind of it?

    python benchmarks/qat.py runs/mtcnn                           cpu target
    python benchmarks/qat.py runs/mtcnn --target tensorrt --methods "calibrated;labels"
    python benchmarks/qat.py runs/slim --calibrator max --equalize

The float folder is calibrated (one weight scale per channel), then each network is trained shortly on its integer
grids, in batches of half the size of its float training, once for every method and seed, on the samples that the
float networks were trained on (MODEL/samples; `octavo train` mines MTCNN's windows with the quantized ones).
"float, longer" is the control: the same steps without quantization. AP and landmark error of the exported model in
ONNX Runtime; a method is to be chosen by the columns "held out ...". -> results/FAMILY_qat.csv
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from octavo import verbs
from octavo.evaluate import record
from octavo.folder import read_info, staged, write_info
from octavo.models import load_modules, part, save_module, train_stage
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
    parser.add_argument("model", type=Path, help="float model folder with .pt files")
    parser.add_argument("--samples", type=Path, help="windows of its training [MODEL/samples]")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--calibrator", default="percentile")
    parser.add_argument("--equalize", action="store_true", help="even out channels before calibration")
    parser.add_argument("--methods", help=f"of {'; '.join(METHODS)} [all], separated by ;")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each network [300]")
    options = parser.parse_args()
    info = read_info(options.model)
    file = options.out / f"{info['family']}_qat.csv"
    origin = {"model": info["variant"], "data": options.data.name, "split": "val"}
    weights = common.weights(options.model)
    recipe = verbs.recipe(info["variant"])
    held_out, val = common.splits(options.data, recipe)
    with tempfile.TemporaryDirectory() as temporary:
        calibrated: Path | None = None
        for method in options.methods.split(";") if options.methods else METHODS:
            for seed in range(options.seeds) if METHODS[method] else [0]:
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
                base = options.model
                if not is_float:
                    calibrated = calibrated or verbs.quantize(
                        options.model,
                        options.data,
                        Path(temporary) / "int8",
                        target=options.target,
                        calibrator=options.calibrator,
                        images=128,
                        equalize=options.equalize,
                    )
                    base = calibrated
                out = Path(temporary) / f"{method} {seed}".replace(" ", "-")
                if plan := METHODS[method]:
                    learn(base, plan, seed, out, options)
                    base = out
                model = verbs.load(verbs.export(base, Path(temporary) / "exported")[0], "onnxruntime")
                row = record.append(
                    file, {**key, **common.both(model, held_out, val)}, **origin, command=common.command()
                )
                print(
                    *key.values(), *(f"{event} {row[event]}" for event in (*common.EVENTS, "NME")), flush=True
                )


def learn(base: Path, plan: Qat, seed: int, out: Path, options: Any) -> None:
    """Train the networks of the folder `base` a little, each as the plan says, into `out`."""
    info = read_info(base)
    recipe = for_qat(replace(verbs.recipe(info["variant"]), qat=plan))
    fabric = make_fabric("cpu", 1, "bf16-mixed")
    with staged(out) as stage:
        fingerprint = ""
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
                name, shorter, options.data, options.samples or options.model / "samples", {}, fingerprint
            )
            train_stage(info["family"], name, module, shorter, samples, stage, Hooks(), str(base), fabric)
            save_module(module, stage / f"{name}.pt")
            fingerprint += hashlib.sha256((options.model / f"{name}.pt").read_bytes()).hexdigest()[:12]
        write_info(stage, info)


if __name__ == "__main__":
    main()
