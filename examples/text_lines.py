"""Make samples/text: four lines of Vietnamese in fonts that the embedded reader never saw, with val.txt beside them.

What they say is in the public domain, and so is what was made of it here (CC0); the fonts are free (SIL OFL, Apache).

    apt install fonts-sil-gentiumplus fonts-roboto-unhinted fonts-sil-andika fonts-vollkorn
    python examples/text_lines.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from octavo import images
from octavo.data import render

OUT = Path(images.__file__).parent / "samples" / "text"
HEIGHT, WIDEST = 48, 1200  # pixels
LINES = [  # what it says, in which font
    ("Trăm năm trong cõi người ta,", "GentiumPlus-Regular.ttf"),
    ("Cộng hòa xã hội chủ nghĩa Việt Nam", "Roboto-Medium.ttf"),
    ("Độc lập - Tự do - Hạnh phúc", "Vollkorn-Italic.ttf"),
    ("Hà Nội, ngày 2 tháng 9 năm 1945", "Andika-Regular.ttf"),
]


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (text, font) in enumerate(LINES, 1):
        rng = np.random.default_rng(number)
        path = next(iter(sorted(render.FONTS.rglob(font))), None)
        if path is None:
            raise SystemExit(f"{font} is not below {render.FONTS}: install the packages named above")
        ink, _ = render.draw(text, path, HEIGHT, rng, WIDEST)
        page = render.print_on_paper(ink[None], rng)[0]
        cv2.imwrite(
            str(out / f"line{number}.jpg"),
            cv2.cvtColor(page, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, 90],
        )
        rows.append(f"line{number}.jpg\t{text}\n")
    (out / "val.txt").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
