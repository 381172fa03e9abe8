"""A picture of what a reader reads: lines of a data set, each above the text that was read, wrong ones in red.

    python benchmarks/vietocr_picture.py vietocr-small runs/lines docs/images/reader.png

The first --lines of its val split that are no wider than --width pixels, in two columns. A wrong text is followed by
the right one in grey.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from octavo import images, verbs
from octavo.data.render import FONTS
from octavo.evaluate import text
from octavo.models.vietocr.predict import read_lines

ROW, GAP, MARGIN = 58, 24, 8  # pixels
RIGHT, WRONG, GREY = (20, 90, 40), (190, 20, 20), (120, 120, 120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=24)
    parser.add_argument("--width", type=int, default=420)
    options = parser.parse_args()
    model = verbs.load(options.model, "onnxruntime")
    lines = [(images.read(line.path), line.text) for line in text.read(options.data, "val")]
    lines = [line for line in lines if line[0].shape[1] <= options.width][: options.lines]
    found = read_lines([picture for picture, _ in lines], model.run, model.settings())
    half = -(-len(lines) // 2)
    wide = options.width + GAP
    page = Image.new("RGB", (2 * wide + MARGIN, half * ROW + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.truetype(str(next(FONTS.rglob("DejaVuSans.ttf"))), 13)
    for i, ((picture, right), read) in enumerate(zip(lines, found, strict=True)):
        x, y = MARGIN + i // half * wide, MARGIN + i % half * ROW
        page.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        same = read.text == text.normal(right)
        draw.text((x, y + 33), read.text, fill=RIGHT if same else WRONG, font=font)
        if not same:
            after = x + draw.textlength(read.text, font=font) + 12
            draw.text((after, y + 33), right, fill=GREY, font=font)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
