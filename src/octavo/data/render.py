"""Lines of text as pictures, from the fonts of the machine: any number of samples for a reader, the same by seed.

    text, font -> ink: how much of each pixel is covered        `draw`, once, kept on disk
    ink -> paper, colours, light, blur, noise                    `print_on_paper`, anew for each batch

Ink is drawn in a size that scans have, a bit slanted, stretched and turned, with margins as a detector of lines
leaves them, and then brought to the height that the network reads. It needs Pillow, which lays out marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FONTS = Path("/usr/share/fonts")  # where Debian's packages put them
SUFFIXES = (".ttf", ".otf")


def pillow() -> Any:
    """PIL.ImageFont, or a ValueError that says how to get it."""
    try:
        from PIL import ImageFont
    except ImportError:
        raise ValueError("rendering text needs Pillow: pip install 'octavo[train]'") from None
    return ImageFont


def fonts(folder: Path, characters: str) -> list[Path]:
    """The font files below a folder that have a glyph for each of the characters, sorted."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds {' or '.join(SUFFIXES)} files")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_symlink())
    return [path for path in files if covers(path, characters)]


def covers(path: Path, characters: str) -> bool:
    """Whether the font draws every character, and none of them as the box for what it doesn't know."""
    try:
        font = pillow().truetype(str(path), 24)
        unknown = {bytes(font.getmask(c)) for c in ("\uffff", "\U0010fffd")}
        drawn = (font.getmask(c) for c in characters if not c.isspace())
        return all(mask.getbbox() and bytes(mask) not in unknown for mask in drawn)
    except OSError:  # a file of that suffix that FreeType can't open
        return False


def families(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Font files by the family that they say they belong to: {"Noto Sans": [.../NotoSans-Bold.ttf, ...]}."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(_font(path, 24).getname()[0], []).append(path)
    return dict(sorted(found.items()))


@lru_cache(512)
def _font(path: Path, size: int) -> Any:
    return pillow().truetype(str(path), size)


def draw(
    text: str, font: Path, height: int, rng: np.random.Generator, longest: int
) -> tuple[np.ndarray, str]:
    """Ink (height, w) uint8, 255 where a pixel is all ink, and the text that it shows.

    Words at the end that would make it wider than `longest` pixels are left out; one word that is wider is pressed.
    """
    from PIL import Image, ImageDraw

    size = int(rng.integers(15, 46))
    face = _font(font, size)
    above, below, left, right = rng.uniform((0.0, 0.0, 0.02, 0.02), (0.25, 0.25, 0.6, 0.6)) * size
    stretch = np.exp(rng.uniform(-0.22, 0.12))
    tight = rng.random() < 0.5  # around this text's own ink, else around all that the font may draw
    while True:
        box = face.getbbox(text, anchor="ls")
        ascent, descent = face.getmetrics()
        top, bottom = (box[1], box[3]) if tight else (min(-ascent, box[1]), max(descent, box[3]))
        high = bottom - top + above + below
        wide = (box[2] - box[0] + left + right) * stretch * height / high
        if wide <= longest or " " not in text:
            break
        text = text.rsplit(" ", 1)[0]
    canvas = Image.new("L", (int(box[2] - box[0] + left + right) + 1, int(high) + 1))
    ImageDraw.Draw(canvas).text((left - box[0], above - top), text, fill=255, font=face, anchor="ls")
    ink = np.asarray(canvas)
    rows, columns = ink.shape
    angle = np.clip(rng.normal(0, 0.008), -0.12 * rows / columns, 0.12 * rows / columns)
    slant = rng.normal(0, 0.08) if rng.random() < 0.5 else 0.0
    turn = np.array([[1, slant, -slant * rows / 2], [angle, 1, -angle * columns / 2]])
    ink = cv2.warpAffine(ink, turn, (columns, rows), flags=cv2.INTER_LINEAR)
    width = int(np.clip(round(wide), 4, longest))
    how = cv2.INTER_AREA if high > height else (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(rng.integers(2))]
    return cv2.resize(ink, (width, height), interpolation=how), text


def print_on_paper(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (n, h, w, 3) uint8 of ink (n, h, w) uint8: dark on light mostly, with the flaws of scans."""
    count, height, width = ink.shape
    cover = ink.astype(np.float32) / 255
    for i in np.flatnonzero(rng.random(count) < 0.35):
        cover[i] = cv2.GaussianBlur(cover[i], (0, 0), rng.uniform(0.3, 1.0))
    cover **= np.exp(rng.normal(0, 0.25, (count, 1, 1))).astype(np.float32)  # bolder or fainter
    light, dark = shades(count, rng)
    page = np.broadcast_to(light[:, None, None], (count, height, width, 3)).copy()
    slope = rng.normal(0, 14, (count, 2)).astype(np.float32) * (rng.random((count, 1)) < 0.5)
    down, across = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    page += (slope[:, :1, None] * down[:, None] + slope[:, 1:, None] * across)[..., None]
    page += (dark[:, None, None] - page) * cover[..., None]
    spread = np.abs(rng.normal(0, 6, count)) * (rng.random(count) < 0.6)
    noise = rng.standard_normal((count, height, width), np.float32) * spread[:, None, None].astype(np.float32)
    page += noise[..., None]
    return np.clip(np.round(page), 0, 255).astype(np.uint8)


def shades(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours (n, 3) of paper and of ink, 0 to 255, far enough from each other to be read."""
    paper = np.where(
        rng.random((count, 1)) < 0.6, rng.uniform(215, 256, (count, 1)), rng.uniform(120, 256, (count, 1))
    )
    gap = np.maximum(60, paper * rng.uniform(0.45, 1.0, (count, 1)))
    ink = np.maximum(0, paper - gap)
    tint = rng.normal(0, 12, (2, count, 3)) * (rng.random((2, count, 1)) < 0.5)
    paper, ink = paper + tint[0], ink + 2 * tint[1]
    negative = rng.random((count, 1)) < 0.1
    return (
        np.where(negative, 255 - paper, paper).clip(0, 255).astype(np.float32),
        np.where(negative, 255 - ink, ink).clip(0, 255).astype(np.float32),
    )


def sheet(
    texts: Sequence[str], faces: Sequence[Path], height: int, rng: np.random.Generator, width: int
) -> np.ndarray:
    """Lines under one another (n · height, width, 3) uint8, for the eye."""
    rows = []
    for text in texts:
        ink, _ = draw(text, faces[int(rng.integers(len(faces)))], height, rng, width)
        rows.append(np.pad(ink, ((0, 0), (0, width - ink.shape[1]))))
    return print_on_paper(np.stack(rows), rng).reshape(-1, width, 3)
