"""How many faces do the models find, in which scenes and at which sizes, and how exact are the landmarks?

    octavo import mtcnn ../shared/weights/mtcnn --out runs/mtcnn-published
    octavo export runs/mtcnn-published
    python benchmarks/accuracy.py mtcnn-relu-float mtcnn-relu runs/mtcnn-published
    python benchmarks/accuracy.py slim-float slim --set long_side=320

AP over the valid faces of the val split by event and by size of the face (pixels, sqrt(w h)), landmark error
(NME over sqrt(w h), of the faces found), for each model in each runtime. Min face 12 or long side 0, what the family
measures with (MEASURING in its predict.py) and what is --set. -> results/FAMILY_accuracy.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

from octavo import verbs
from octavo.data.widerface import size_bins
from octavo.evaluate import record

SHOWN = ("min_face", "thresholds", "confidence", "long_side")  # settings that stand in every row


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="embedded names or folders with .onnx files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="one more setting")
    parser.add_argument("--split", default="val")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    options = parser.parse_args()
    for model in options.models:
        for backend in options.backends.split(","):
            measure(verbs.load(model, backend), options)


def measure(opened: verbs.Model, options: Any) -> None:
    model, info = opened.folder, opened.info
    file = options.out / f"{info['family']}_accuracy.csv"
    changed = dict(common.setting(text) for text in options.set)
    settings = common.settings(opened) | changed
    shown = {name: settings[name] for name in SHOWN if name in settings} | changed
    how = {"weights": common.weights(model), "backend": opened.backend} | common.cells(shown)
    what = {"model": model.name, "data": options.data.name, "split": options.split}
    if not options.again and common.there(file, **what, **how):
        print(f"{model.name} on {opened.backend}: there already")
        return
    result = verbs.evaluate(opened, options.data, split=options.split, **settings)
    ap = {common.plain(event): value for event, value in result["ap"].items()}
    errors = {common.plain(event): error for event, error in result["landmarks"].items()}
    row = record.append(
        file,
        {
            "precision": result["precision"],
            "target": info["target"],
            **how,
            "images": result["images"],
            "faces": result["faces"],
            **{event: ap.get(event) for event in common.EVENTS},
            **{size: result["ap_by_size"].get(size) for size in size_bins()},
            **{f"NME {event}": errors.get(event, {}).get("nme") for event in common.EVENTS},
            "NME faces": errors["all"]["found"],
        },
        **what,
        command=common.command(),
    )
    print(
        model.name,
        opened.backend,
        *(f"{event} {row[event]}" for event in common.EVENTS),
        "NME",
        row["NME all"],
        flush=True,
    )


if __name__ == "__main__":
    main()
