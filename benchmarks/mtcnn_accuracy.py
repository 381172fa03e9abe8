"""How many faces do the models find, in which scenes and at which sizes, and how exact are the landmarks?

    octavo import mtcnn ../shared/weights/mtcnn --out runs/mtcnn-published
    octavo export runs/mtcnn-published
    python benchmarks/mtcnn_accuracy.py mtcnn-relu-float mtcnn-relu runs/mtcnn-published

AP over the valid faces of the val split by event and by size of the face (pixels, sqrt(w h)), landmark error
(NME over sqrt(w h), of the faces found), for each model in each runtime. Min face 12, thresholds .5/.5/.02,
confidence .02, all in the row. -> results/mtcnn_accuracy.csv
"""

from __future__ import annotations

from pathlib import Path

import common

from octavo import folder, verbs
from octavo.data.widerface import size_bins
from octavo.evaluate import record


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="embedded names or folders with .onnx files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--split", default="val")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    options = parser.parse_args()
    for model in options.models:
        for backend in options.backends.split(","):
            measure(folder.find(model), backend, options.data, options.split, options.out, options.again)


def measure(model: Path, backend: str, data: Path, split: str, out: Path, again: bool) -> None:
    file = out / "mtcnn_accuracy.csv"
    how = {
        "weights": common.weights(model),
        "backend": backend,
        "min face": common.SETTINGS["min_face"],
        "thresholds": common.said(common.SETTINGS["thresholds"]),
        "confidence": common.SETTINGS["confidence"],
    }
    what = {"model": model.name, "data": data.name, "split": split}
    if not again and common.there(file, **what, **how):
        print(f"{model.name} on {backend}: there already")
        return
    result = verbs.evaluate(model, data, split=split, backend=backend, **common.SETTINGS)
    ap = {common.plain(event): value for event, value in result["ap"].items()}
    errors = {common.plain(event): error for event, error in result["landmarks"].items()}
    row = record.append(
        file,
        {
            "precision": result["precision"],
            "target": folder.read_info(model)["target"],
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
        backend,
        *(f"{event} {row[event]}" for event in common.EVENTS),
        "NME",
        row["NME all"],
        flush=True,
    )


if __name__ == "__main__":
    main()
