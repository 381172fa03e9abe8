"""Which thresholds, NMS and pyramid find most for the least work?

    python benchmarks/mtcnn_cascade.py mtcnn-relu --minutes 10

Settings are drawn at random, smallest face 20 pixels. AP is that of held-out training images, down to a probability
of .02. Work is counted, not timed: pixels given to P-Net and windows given to R- and O-Net in the scenes of scenes.py
with one and five faces, each at the milliseconds that it takes here when nothing else runs (--costs). Rows that no
other one beats in both are the ones to choose from. -> results/mtcnn_cascade.csv, docs/images/cascade.png
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import scenes

from octavo import images, verbs
from octavo.evaluate import charts, record
from octavo.models.mtcnn.predict import MEASURING, Network, Settings, predict

FACTORS = (0.709, (0.5, 0.709), (0.5, 0.75), (0.55, 0.709), (0.6, 0.709))
FIRST, SECOND, THIRD = (0.5, 0.55, 0.6, 0.65, 0.7, 0.8), (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7), 0.02
WITHIN, ACROSS, REFINED, DECIDED = (0.3, 0.5), (0.3, 0.35, 0.4, 0.45, 0.5, 0.7), (0.2, 0.3, 0.4, 0.7), 0.7
MIN_FACE = 20
NETWORKS = ("pnet", "rnet", "onet")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", help="embedded name or folder with .onnx files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--costs",
        default="0.019,0.023,0.11",
        help="ms of 1,000 pixels in P-Net, a window in R-Net and in O-Net",
    )
    parser.add_argument("--plot", type=Path, default=common.ROOT / "docs/images/cascade.png")
    options = parser.parse_args()
    file = options.out / "mtcnn_cascade.csv"
    model = verbs.load(options.model, options.backend)
    held_out, _ = common.splits(options.data, verbs.recipe(model.info["variant"]))
    pixels = {entry.path: images.read(entry.path) for entry in held_out}
    looked_at = [scenes.portrait(), scenes.group()]
    costs = [float(cost) for cost in options.costs.split(",")]
    rng, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    present = replace(model.settings(), min_face=MIN_FACE, confidence=0.0)
    known = {  # the first rows; their names stand in the picture
        "present": replace(present, thresholds=(*present.thresholds[:2], THIRD)),
        "as published": Settings(MIN_FACE, thresholds=(0.6, 0.7, THIRD)),
        "as AP is measured": Settings(MIN_FACE, **MEASURING),
    }
    wanted = list(known.items())
    while time.monotonic() < end:
        name, settings = wanted.pop(0) if wanted else ("", drawn(rng))
        key = common.cells({k: v for k, v in settings.to_dict().items() if k != "confidence"})
        work = np.mean([looks(image, model.run, settings) for image in looked_at], axis=0)
        found = {entry.name: predict(pixels[entry.path], model.run, settings) for entry in held_out}
        row = record.append(
            file,
            {
                "weights": common.weights(model.folder),
                "name": name,
                **key,
                **dict(zip(("1000 pixels", "rnet windows", "onet windows"), work, strict=True)),
                "ms": float(work @ costs),
                **common.ap(held_out, found),
            },
            model=model.name,
            data=options.data.name,
            split="held out of train",
            command=common.command(),
        )
        print(*(row[column] for column in (*key, "ms", "all", "Web")), flush=True)
    rows = [row for row in record.read(file) if row["weights"] == common.weights(model.folder)]
    charts.trade(
        {(float(row["ms"]), float(row["all"])): row["name"] for row in rows},
        options.plot,
        ("ms of the networks for 640x480", "AP, held out"),
    )


def drawn(rng: random.Random) -> Settings:
    return Settings(
        min_face=MIN_FACE,
        factor=rng.choice(FACTORS),
        thresholds=(rng.choice(FIRST), rng.choice(SECOND), THIRD),
        nms=(rng.choice(WITHIN), rng.choice(ACROSS), rng.choice(REFINED), DECIDED),
    )


def looks(image: np.ndarray, run: Mapping[str, Network], settings: Settings) -> np.ndarray:
    """(3,): thousands of pixels and numbers of windows that the networks are given."""
    seen = dict.fromkeys(NETWORKS, 0.0)

    def counting(name: str, network: Network) -> Network:
        def call(given: np.ndarray) -> Any:
            seen[name] += given[0, 0].size / 1000 if name == "pnet" else len(given)
            return network(given)

        return call

    predict(image, {name: counting(name, run[name]) for name in NETWORKS}, settings)
    return np.array([seen[name] for name in NETWORKS])


if __name__ == "__main__":
    main()
