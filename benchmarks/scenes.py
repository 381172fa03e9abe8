"""Scenes made of the photographs that ship with Octavo: the same pixels for every detector, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from octavo import images, verbs

# The faces in two of the shipped photographs: x1, y1, x2, y2.
FACES = {"astronaut.jpg": (179, 55, 268, 178), "hopper.jpg": (172, 104, 356, 343)}
CORNER = (247, 185, 640, 480)  # of group.jpg: five faces, none cut
TILES = (20, 12)  # columns and rows of the crowd
TILE = (64, 60)  # pixels, width and height


def photographs() -> dict[str, np.ndarray]:
    """{name: (h, w, 3) uint8 RGB}."""
    return {path.name: images.read(path) for path in verbs.samples()}


def portrait(size: tuple[int, int] = (640, 480)) -> np.ndarray:
    """One face, in an image of this width and height."""
    return cv2.resize(photographs()["astronaut.jpg"][:384], size, interpolation=cv2.INTER_CUBIC)


def group(size: tuple[int, int] = (640, 480)) -> np.ndarray:
    """Five faces."""
    x1, y1, x2, y2 = CORNER
    return cv2.resize(photographs()["group.jpg"][y1:y2, x1:x2], size, interpolation=cv2.INTER_CUBIC)


def crowd(faces: int = TILES[0] * TILES[1]) -> np.ndarray:
    """(720, 1280, 3): tiles of 64x60 pixels, in so many of them, by chance, a face about half as wide.

    Faces are mirrored and lit by chance; the other tiles show the astronaut's suit.
    """
    rng = np.random.default_rng(0)
    photos = photographs()
    known = [(photos[name], box) for name, box in FACES.items()]
    columns, rows = TILES
    tiles = []
    for rank in rng.permutation(columns * rows):
        photo, box = known[rng.integers(len(known))]
        tile = _face(photo, box, rng) if rank < faces else _suit(photos["astronaut.jpg"], rng)
        tile = tile[:, :: rng.choice((1, -1))] * rng.uniform(0.7, 1.1)
        tiles.append(np.clip(tile, 0, 255).astype(np.uint8))
    return np.vstack([np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)])


def _face(photo: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    x1, y1, x2, y2 = box
    side = int((y2 - y1) * rng.uniform(1.4, 1.9))
    left, top = max(0, (x1 + x2 - side) // 2), max(0, (y1 + y2 - side) // 2)
    return cv2.resize(photo[top : top + side, left : left + side], TILE, interpolation=cv2.INTER_AREA)


def _suit(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = int(rng.integers(260, photo.shape[0] - 130)), int(rng.integers(0, photo.shape[1] - 130))
    return cv2.resize(photo[top : top + 120, left : left + 128], TILE, interpolation=cv2.INTER_AREA)


def all_of_them() -> Mapping[str, np.ndarray]:
    return {"portrait": portrait(), "group": group(), "crowd": crowd()}
