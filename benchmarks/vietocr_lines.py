"""A data set of rendered lines: train from the fonts that a reader learns from, val from those it never sees.

    python benchmarks/vietocr_lines.py runs/lines

--train lines for calibration, --val lines to measure on, each drawn and printed as in training (models/vietocr/data.py)
but from other seeds, as PNG with train.txt and val.txt beside them. Every verb takes such a folder as --data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from octavo.folder import staged
from octavo.models.vietocr.data import printed, split_fonts
from octavo.verbs import recipe

SEEDS = {"train": 1001, "val": 1002}  # training has 0 and 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--val", type=int, default=1000)
    options = parser.parse_args()
    sampling = recipe("vietocr-small").stages["reader"].sampling
    learned, held_out = split_fonts(Path(sampling.fonts), sampling.held_out_fonts)
    with staged(options.out) as stage:
        for split, count, faces in (("train", options.train, learned), ("val", options.val, held_out)):
            write(stage, split, count, faces)


def write(folder: Path, split: str, count: int, faces: list[list[Path]]) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (page, text) in enumerate(printed(faces, SEEDS[split], range(count))):
        name = f"{split}/{number:04}.png"
        cv2.imwrite(str(folder / name), cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
        rows.append(f"{name}\t{text}\n")
    (folder / f"{split}.txt").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
