"""Is the evaluator of the WIDER FACE protocol exact, and how long does it take?

    python benchmarks/wider_evaluator.py --ground-truth ../shared/wider_gt

The annotated boxes themselves are the predictions, larger ones with higher scores: all of them, and those from
20 pixels on. What AP they must get is known (FACTS.md, section 2): 1.0 / 1.0 / .9999325767 and
1.0 / .9984233051 / .5516302647; the common Python evaluator takes 22 to 27 s for each. Seconds: median of 5, of
the judging alone (all in memory), and of `octavo evaluate --predictions` from 3,226 text files, .mat files
included. -> results/wider_evaluator.csv
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np

from octavo.evaluate import record, widerface

EXPECTED = {0: (1.0, 1.0, 0.9999325767), 20: (1.0, 0.9984233051, 0.5516302647)}
REPEATS = 5


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--ground-truth", type=Path, default=Path("../shared/wider_gt"))
    options = parser.parse_args()
    file = options.out / "wider_evaluator.csv"
    truth = widerface.read_ground_truth(options.ground_truth)
    for least, expected in EXPECTED.items():
        predictions = oracle(truth, least)
        in_memory, ap = timed(partial(widerface.evaluate, predictions, truth))
        with tempfile.TemporaryDirectory() as temporary:
            write(Path(temporary), predictions)
            from_files, again = timed(partial(widerface.evaluate, Path(temporary), options.ground_truth))
        off = float(np.abs(np.array(list(ap.values())) - expected).max())
        if off > 1e-6 or ap != again:
            raise SystemExit(f"faces from {least} pixels: AP {ap}, from files {again}, expected {expected}")
        row = record.append(
            file,
            {
                "predictions": sum(map(len, predictions.values())),
                **{name: f"{value:.10f}" for name, value in ap.items()},
                "largest error": f"{off:.1e}",
                "seconds": in_memory,
                "seconds from files": from_files,
            },
            model=f"annotated boxes from {least} px" if least else "annotated boxes",
            data="wider_gt",
            split="val",
            command=common.command(),
        )
        print(*(f"{name} {value}" for name, value in row.items() if name in (*ap, "seconds", "model")))


def oracle(truth: widerface.GroundTruth, least: float) -> dict[str, np.ndarray]:
    """{image: rows x y w h score}: the annotated boxes whose size is at least that, largest first."""
    out = {}
    for name, xyxy in zip(truth.names, truth.faces, strict=True):
        sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1)
        size = np.sqrt(sides.prod(axis=1))
        rows = np.c_[xyxy[:, :2], sides, np.minimum(1, size / 100) * 0.98 + 0.01][size >= least]
        out[name] = rows[np.argsort(-rows[:, 4], kind="stable")]
    return out


def write(folder: Path, predictions: dict[str, np.ndarray]) -> None:
    """The benchmark's text form, with every digit of the numbers."""
    for name, rows in predictions.items():
        file = folder / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        lines = [Path(name).name, str(len(rows)), *(" ".join(map(repr, row)) for row in rows.tolist())]
        file.write_text("\n".join(lines) + "\n")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds, and the answer."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return median(seconds), answer


if __name__ == "__main__":
    main()
