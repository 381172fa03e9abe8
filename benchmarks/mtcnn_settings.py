"""What do the smallest face and the thresholds cost, in time and in faces?

    python benchmarks/mtcnn_settings.py mtcnn-relu

AP over the valid faces of the val split, and precision and recall (IoU .5) of what is reported, beside the time
of one 640x480 image on one thread (the wall of faces that ships with Octavo, median of 30). Precision is a lower
bound: not every face in the background of the photographs is annotated. -> results/mtcnn_settings.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

from octavo import verbs
from octavo.data.widerface import read
from octavo.evaluate import record
from octavo.evaluate.events import align, reported

MIN_FACE = (12, 20, 40, 80)
# As the embedded models are set; nearly as AP is measured; as the paper's code runs; strict.
THRESHOLDS = ((0.6, 0.2, 0.9), (0.5, 0.5, 0.3), (0.6, 0.7, 0.7), (0.7, 0.8, 0.9))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", help="embedded name or folder with .onnx files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--backend", default="onnxruntime")
    options = parser.parse_args()
    file = options.out / "mtcnn_settings.csv"
    model = verbs.load(options.model, options.backend)
    entries = read(options.data, "val")
    wall = next(path for path in verbs.samples() if path.name == "group.jpg")
    grid = [(12, thresholds) for thresholds in THRESHOLDS]
    grid += [(min_face, THRESHOLDS[0]) for min_face in MIN_FACE[1:]] + [(20, THRESHOLDS[2])]
    for min_face, thresholds in grid:
        what = {"model": model.name, "data": options.data.name, "split": "val"}
        how: dict[str, Any] = {
            "weights": common.weights(model.folder),
            "backend": model.backend,
            "min face": min_face,
            "thresholds": common.said(thresholds),
        }
        if not options.again and common.there(file, **what, **how):
            print(*how.values(), "there already")
            continue
        settings: dict[str, Any] = {"min_face": min_face, "thresholds": thresholds}
        found = common.find(model, entries, **settings)
        rows = verbs.bench(
            [options.model],
            image=wall,
            backends=[options.backend],
            repeats=30,
            memory=False,
            **settings,
        )
        ap = common.ap(entries, found)
        precision, recall = reported(align(entries, found))
        row = record.append(
            file,
            {
                **how,
                **{event: ap[event] for event in common.EVENTS},
                "precision": precision,
                "recall": recall,
                "ms": rows[0].total.p50,
            },
            **what,
            command=common.command(),
        )
        print(
            *(f"{name} {row[name]}" for name in ("min face", "thresholds", "all", "recall", "ms")), flush=True
        )


if __name__ == "__main__":
    main()
