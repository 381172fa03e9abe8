"""From which doubt on should a reader look again? What it brings, and for how many pieces it is paid.

    python benchmarks/vietocr_doubt.py runs/vietocr-small-float --lines 1000

Lines rendered for this alone, in the fonts that the reader learned from (models/vietocr/data.py), so that val has no
say: for each value of the setting `doubt` the share of lines that are right, CER, and the share of pieces that are
looked at again. Without any ("none") the decoder is alone, at 0 the places have their say. -> results/vietocr_doubt.csv
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np

from octavo import verbs
from octavo.evaluate import record
from octavo.evaluate.text import counts
from octavo.models.vietocr.data import printed, split_fonts
from octavo.models.vietocr.predict import VIEWS, Written, joined, likeliest, looks, pieces
from octavo.verbs.recipe import recipe

SEED = 1003  # training has 0 and 1, the lines to calibrate with and to measure on 1001 and 1002
DOUBTS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--backend", default="onnxruntime")
    options = parser.parse_args()
    sampling = recipe("vietocr-small").stages["reader"].sampling
    learned, _ = split_fonts(Path(sampling.fonts), sampling.held_out_fonts)
    lines = list(printed(learned, SEED, range(options.lines)))
    model = verbs.load(options.model, options.backend)
    settings = model.settings()
    cut = [pieces(picture) for picture, _ in lines]
    flat = [piece for parts in cut for piece, _ in parts]
    first = looks(flat, model.run, settings)
    others = [looks([view(piece) for piece in flat], model.run, settings) for view in VIEWS]
    decoder, weight = model.run["decoder"], settings.places
    once = [likeliest(decoder, [look], weight) for look in first]
    again = [likeliest(decoder, each, weight) for each in zip(first, *others, strict=True)]

    def measure(name: str, read: list[Written], looked: float) -> None:
        texts = joined(cut, read)
        found = counts((right, one.text) for (_, right), one in zip(lines, texts, strict=True))
        row = {"exact": found.exact / found.lines, "CER": found.cer, "again": looked}
        record.append(
            options.out / "vietocr_doubt.csv",
            {"weights": common.weights(model.folder), "doubt": name, "lines": options.lines, **row},
            model=model.folder.name,
            data="learned fonts",
            command=common.command(),
        )
        print(name, row, flush=True)

    measure("none", [look.written for look in first], 0.0)
    for doubt in DOUBTS:
        asked = [bool(doubt) and look.in_doubt(doubt) for look in first]
        read = [b if yes else a for a, b, yes in zip(once, again, asked, strict=True)]
        measure(f"{doubt:g}", read, float(np.mean(asked)))


if __name__ == "__main__":
    main()
