"""Which faces does the cascade miss, and which of its networks loses them?

    python benchmarks/mtcnn_misses.py mtcnn-relu-float mtcnn-relu --split train

Faces by event, by size (pixels, sqrt(w h)) and by how far the head is turned: the nose's distance from the middle
of the eyes, in units of the eyes' distance, of faces with landmarks. Found is a face that a box of confidence .5 or
more covers with IoU .5. One that isn't was lost by the first network after which no box covers it with IoU .4, as
far as R-Net: the next network moves boxes a little; else by O-Net. Split "train" means its held-out images, on which
sampling and recipes are decided. -> results/mtcnn_misses.csv
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np

from octavo import folder, images, verbs
from octavo.boxes import iou
from octavo.data.widerface import Entry, size_bins
from octavo.evaluate import record
from octavo.models.mtcnn.predict import Settings, predict, propose, refine

SETTINGS = Settings(min_face=12, thresholds=(0.5, 0.5, 0.5))
TURNED = {"frontal": 0.15, "half turned": 0.4, "profile": np.inf}  # upper ends, in distances between the eyes
LOSERS = ("", "pnet", "rnet", "onet")  # "": found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="embedded names or folders with .onnx files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--split", default="train", choices=("train", "val"))
    options = parser.parse_args()
    file = options.out / "mtcnn_misses.csv"
    for name in options.models:
        path = folder.find(name)
        origin = {"model": path.name, "data": options.data.name, "split": options.split}
        weights = common.weights(path)
        if not options.again and common.there(file, **origin, weights=weights):
            print(f"{name}: there already")
            continue
        model = verbs.load(path, "onnxruntime")
        entries = common.splits(options.data, verbs.recipe(model.info["variant"]))[options.split == "val"]
        counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(LOSERS, 0))
        for entry in entries:
            for face, loser in zip(np.flatnonzero(~entry.invalid), losers(entry, model), strict=True):
                for group in groups(entry, face):
                    counts[group][loser] += 1
        for (group, value), lost in counts.items():
            total = sum(lost.values())
            row = {"by": group, "value": value, "faces": total, "missed": 1 - lost[""] / total}
            row |= {f"lost by {network}": lost[network] for network in LOSERS[1:]}
            record.append(file, {"weights": weights, **row}, **origin, command=common.command())
            print(path.name, *row.values())


def losers(entry: Entry, model: verbs.Model) -> list[str]:
    """For each valid face of the image the network that lost it, or ""."""
    image = images.read(entry.path)
    proposed = propose(image, model.run["pnet"], SETTINGS)
    refined = refine(image, proposed, model.run["rnet"], SETTINGS)
    faces = entry.xyxy[~entry.invalid]
    steps = {
        "pnet": (proposed, 0.4),
        "rnet": (refined, 0.4),
        "onet": (predict(image, model.run, SETTINGS).xyxy, 0.5),
    }
    lost = {
        network: ~(iou(faces, boxes) >= limit).any(1) if len(boxes) else np.ones(len(faces), bool)
        for network, (boxes, limit) in steps.items()
    }
    return [
        next(network for network in steps if lost[network][i]) if lost["onet"][i] else ""
        for i in range(len(faces))
    ]


def groups(entry: Entry, face: int) -> Iterator[tuple[str, str]]:
    """What a face is counted under."""
    yield "event", common.plain(entry.event)
    width, height = entry.xyxy[face, 2:] - entry.xyxy[face, :2]
    side = (width * height) ** 0.5
    for name, (low, high) in size_bins().items():
        if low <= side < high:
            yield "size", name
    left, right, nose = entry.keypoints[face, :3]
    if np.isfinite(entry.keypoints[face]).all() and (between := np.linalg.norm(right - left)):
        turn = abs(nose[0] - (left[0] + right[0]) / 2) / between
        yield "pose", next(name for name, end in TURNED.items() if turn < end)


if __name__ == "__main__":
    main()
