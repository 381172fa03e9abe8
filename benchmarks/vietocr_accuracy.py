"""How well do the readers read, in float and in integers, and do they say the same?

    python benchmarks/vietocr_accuracy.py runs/vietocr-small runs/vietocr-small-ptq ... --data runs/lines

Lines of one data set (--split, all of it), read by models with exported files: share of the lines that are right to the
last character, error rates of characters and words, and how many lines are read as the first model reads them.
Pieces of lines of one width are read as one batch, which changes no text. -> results/vietocr_accuracy.csv
"""

from __future__ import annotations

from pathlib import Path

import common

from octavo import folder, images, verbs
from octavo.evaluate import record, text
from octavo.models.vietocr.predict import read_lines


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="folders with .onnx files, the float one first")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val", help="train, val or both")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--places", type=float, help="weight of the second opinion; 0: none [as stored]")
    parser.add_argument(
        "--doubt", type=float, help="probability below which is looked again; 0: never [as stored]"
    )
    options = parser.parse_args()
    splits = ("train", "val") if options.split == "both" else (options.split,)
    lines = [line for split in splits for line in text.read(options.data, split)]
    pictures = [images.read(line.path) for line in lines]
    first = None
    for place in options.models:
        model = verbs.load(place, options.backend)
        settings = model.settings(beams=options.beams, places=options.places, doubt=options.doubt)
        read = read_lines(pictures, model.run, settings)
        first = first or read
        found = {line.name: one for line, one in zip(lines, read, strict=True)}
        measured = text.measure(lines, found)
        record.append(
            options.out / "vietocr_accuracy.csv",
            {
                "precision": folder.read_info(place)["precision"],
                "weights": common.weights(place),
                "backend": options.backend,
                "beams": options.beams,
                "places": settings.places,
                "doubt": settings.doubt,
                "lines": len(lines),
                "exact": measured["exact"]["all"],
                "CER": measured["cer"],
                "WER": measured["wer"],
                "as the first": text.agreement(zip(first, read, strict=True)).share,
                "MB": folder.size(place, ".onnx") / 1e6,
            },
            model=place.name,
            data=options.data.name,
            split=options.split,
            command=common.command(),
        )
        print(place, measured["exact"]["all"], measured["cer"], measured["wer"], flush=True)


if __name__ == "__main__":
    main()
