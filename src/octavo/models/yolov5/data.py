"""What YOLOv5 is calibrated with: photographs as it will be given them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from octavo import images
from octavo.data.coco import read

from .predict import Network, Settings, letterbox


def calibration_batches(
    name: str, data: Path, run: Mapping[str, Network], settings: Settings, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """What the detector is given of `count` training images: (1, 3, h, w) uint8 each."""
    entries = read(data, "train")
    for number in np.random.default_rng(seed).permutation(len(entries))[:count].tolist():
        yield letterbox(images.read(entries[number].path), settings.long_side).pixels
