"""How much of a face detector before training on, how much of it after, for the mean of their weights?

    python benchmarks/shares.py runs/rfb-imported runs/rfb --shares 0,.2,.3,.4,.5,.6,.7,.8,1

AP and landmark error of `octavo average BEFORE AFTER --shares s,1-s` for each share s, in ONNX Runtime. A share is to
be chosen by the columns "held out ...", of training images that the training kept out. -> results/shares.csv
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common

from octavo import verbs
from octavo.evaluate import record
from octavo.folder import find, read_info


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("before", help="float model: a folder, or an embedded one by name")
    parser.add_argument("after", help="what it became by training on")
    parser.add_argument("--shares", default="0,.3,.5,.7,1", help="of the model before [0,.3,.5,.7,1]")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    options = parser.parse_args()
    before, after = find(options.before), find(options.after)
    variant = read_info(before)["variant"]
    held_out, val = common.splits(options.data, verbs.recipe(variant))
    file = options.out / "shares.csv"
    origin = {"model": variant, "data": options.data.name, "split": "val"}
    for share in map(float, options.shares.split(",")):
        key = {"before": common.weights(before), "after": common.weights(after), "share": share}
        if not options.again and common.there(file, **origin, **key | {"share": f"{share:g}"}):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            mean = verbs.average([before, after], Path(temporary) / "mean", shares=[share, 1 - share])
            model = verbs.load(verbs.export(mean)[0], "onnxruntime")
            row = record.append(
                file, key | common.both(model, held_out, val), **origin, command=common.command()
            )
        print(share, *(f"{event} {row[f'held out {event}']}" for event in common.EVENTS), flush=True)


if __name__ == "__main__":
    main()
