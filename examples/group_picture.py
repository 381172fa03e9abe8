"""Make samples/group.jpg: the two sample portraits hung on one wall in many sizes.

No photograph of a group that is certainly in the public domain was at hand. This one has faces from about
12 to 100 pixels, in 640x480, the size that `octavo bench` uses.

    python examples/group_picture.py [OUT.jpg]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from octavo import images

SAMPLES = Path(images.__file__).parent / "samples"
WALL, FRAME, SHADOW = (201, 194, 182), (250, 248, 244), (160, 153, 142)  # RGB
HANGING = [  # picture, left, top, width (pixels), mirrored
    ("hopper", 26, 40, 250, False),
    ("astronaut", 310, 28, 190, False),
    ("hopper", 530, 30, 84, True),
    ("astronaut", 532, 156, 80, True),
    ("hopper", 312, 252, 120, True),
    ("astronaut", 462, 262, 150, True),
    ("hopper", 316, 424, 40, False),
    ("astronaut", 380, 412, 58, False),
    ("hopper", 562, 438, 30, True),
    ("astronaut", 40, 374, 84, True),
    ("hopper", 160, 366, 66, True),
]


def paint(height: int = 480, width: int = 640) -> np.ndarray:
    """(height, width, 3) uint8 RGB."""
    wall = np.full((height, width, 3), WALL, np.uint8)
    for name, left, top, wide, mirrored in HANGING:
        picture = images.read(SAMPLES / f"{name}.jpg")[:, :: -1 if mirrored else 1]
        tall = round(picture.shape[0] * wide / picture.shape[1])
        border = max(2, wide // 24)
        right, bottom = left + wide, top + tall
        wall[top - border + 3 : bottom + border + 3, left - border + 3 : right + border + 3] = SHADOW
        wall[top - border : bottom + border, left - border : right + border] = FRAME
        wall[top:bottom, left:right] = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_AREA)
    return wall


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES / "group.jpg"
    cv2.imwrite(str(out), cv2.cvtColor(paint(), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
