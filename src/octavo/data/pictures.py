"""Photographs decoded once and kept on disk as pixels, which training maps into memory.

A small network should not wait for the same JPEGs to be decoded in every epoch; of mapped pixels the system keeps
in memory what is used. One flat uint8 file holds them all, an index their places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from octavo import images
from octavo.data.loader import in_order
from octavo.folder import staged


class Pictures:
    """pictures[i]: the i-th photograph (h, w, 3) uint8, read-only; scales[i]: its pixels per original pixel."""

    def __init__(self, folder: Path) -> None:
        index = np.load(folder / "index.npz")
        self.sizes, self.scales = index["sizes"], index["scales"]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        self.pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> np.ndarray:
        height, width = self.sizes[number]
        return self.pixels[self.starts[number] : self.starts[number + 1]].reshape(height, width, 3)


def keep(
    paths: Sequence[Path], longest: int, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Pictures:
    """The photographs, shrunk where a side is longer than `longest` pixels; made if `folder` isn't there yet."""
    if not (folder / "index.npz").is_file():
        sizes, scales = [], []
        with staged(folder) as temporary, (temporary / "pixels.bin").open("wb") as file:
            for number, (picture, scale) in enumerate(
                in_order(lambda p: shrunk(images.read(p), longest), paths)
            ):
                file.write(picture.tobytes())
                sizes.append(picture.shape[:2])
                scales.append(scale)
                if progress:
                    progress(number + 1, len(paths))
            np.savez(
                temporary / "index.npz", sizes=np.array(sizes, np.int64), scales=np.array(scales, np.float32)
            )
    return Pictures(folder)


def shrunk(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """The image with no side longer than `longest`, and its pixels per pixel it had."""
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale
