"""Which layers of a face detector suffer from integers?

    python benchmarks/sensitivity.py runs/mtcnn-int8 --chart docs/images/sensitivity.png
    python benchmarks/sensitivity.py runs/slim-int8 --by ap --images 50

Every layer of its networks quantized alone, and all but it (octavo sensitivity): the SQNR of the worst output on
training images, or the AP on those that training kept out. A row per layer, worst first, and the row "all": every
layer quantized. -> results/sensitivity_FAMILY.csv
"""

from __future__ import annotations

from pathlib import Path

import common

from octavo import folder, verbs
from octavo.evaluate import record


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="quantized model folder with .pt files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--by", default="sqnr", choices=("sqnr", "ap"))
    parser.add_argument("--images", type=int, default=16, help="training images [16]")
    parser.add_argument("--chart", type=Path, help="PNG file to draw, STEM_NETWORK.png")
    options = parser.parse_args()
    file = options.out / f"sensitivity_{folder.read_info(options.model)['family']}.csv"
    origin = {"model": options.model.resolve().name, "data": options.data.name, "split": "train"}
    key = {"by": options.by, "images": options.images, "weights": common.weights(options.model)}
    if not options.again and common.there(file, **origin, **key):
        return print("there already")
    found = verbs.sensitivity(
        options.model,
        options.data,
        by=options.by,
        images=options.images,
        chart=options.chart,
        progress=lambda what, done, total: print(what, f"{done}/{total}") if done == total else None,
    )
    for network, table in found.tables.items():
        for row in table.rows:
            measured = {"parameters": row.parameters, "alone": row.worst, "all but it": min(row.others)}
            layer = {"network": network, "layer": row.layer, "kind": row.kind}
            record.append(file, {**key, **layer, **measured}, **origin, command=common.command())
        layer = {"network": network, "layer": "all", "kind": ""}
        measured = {"parameters": None, "alone": None, "all but it": min(table.quantized)}
        record.append(file, {**key, **layer, **measured}, **origin, command=common.command())
    return None


if __name__ == "__main__":
    main()
