"""Do the runtimes find the same? Boxes, confidences and landmarks of one model in each runtime, on photographs.

    python benchmarks/agreement.py runs/slim runs/slim-int8 runs/slim-arm --images 100

The reference is the model in torch, on its .pt files; every other runtime whose files are in the folder, and which is
installed here, is held against it. Photographs: of the val split, evenly over it. Confidence .3: surer than that a
box is not a matter of rounding. A box is found again at IoU .5. -> results/agreement.csv
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import common

from octavo import folder, run, verbs
from octavo.data.widerface import Entry, read
from octavo.evaluate import agreement, record


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="folders with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--confidence", type=float, default=0.3)
    options = parser.parse_args()
    entries = read(options.data, "val")
    entries = entries[:: max(1, len(entries) // options.images)][: options.images]
    for model in options.models:
        measure(folder.find(model), options.data, entries, options.confidence, options.out, options.again)


def measure(model: Path, data: Path, entries: list[Entry], confidence: float, out: Path, again: bool) -> None:
    file = out / "agreement.csv"
    reference = None
    for backend in usable(model):
        what = {"model": model.name, "data": data.name, "split": "val"}
        how = {"weights": common.weights(model), "backend": backend, "confidence": confidence}
        if not again and common.there(file, **what, **how):
            continue
        if reference is None:
            reference = common.find(verbs.load(model, "torch"), entries, confidence=confidence)
        found = common.find(verbs.load(model, backend), entries, confidence=confidence)
        pairs = ((reference[entry.name], found[entry.name]) for entry in entries)
        measured = asdict(agreement.measure(pairs))
        print(record.append(file, how | measured, **what, command=common.command()), flush=True)


def usable(model: Path) -> list[str]:
    """The runtimes installed here for which the folder has files, torch left out."""
    networks = folder.read_info(model)["networks"]
    there = [
        name
        for name in run.available()
        if all((model / f"{n}{run.RUNTIMES[name]}").is_file() for n in networks)
    ]
    return [name for name in there if name != "torch"]


if __name__ == "__main__":
    main()
