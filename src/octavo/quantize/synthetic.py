"""Images from nothing, to calibrate with where no photograph may be had.

Ranges need inputs that excite a network as photographs do: edges of every size and direction, flat areas, all
brightnesses and colours. Dead leaves have all that (Lee, Mumford & Huang 2001; networks even learn to see from
them alone: Baradad et al. 2021, arXiv 2106.05963): opaque discs and bars fall on each other, their sizes r drawn with
density r^-3, which makes an image look alike at every scale.

Against the alternatives, SQNR of MTCNN's R-Net (face / box, dB) with ranges from: photographs 37.5 / 30.8, dead
leaves 35.6 / 29.7, 1/f noise 33.3 / 30.1, uniform noise 32.6 / 29.6, noise distilled until the statistics of
BatchNorm fit (ZeroQ, Cai et al. 2020) 35.2 / 29.1, the statistics themselves, mean + 6 deviations (Nagel et al.
2019), 30.2 / 25.9 (LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEAVES = 120  # enough that no image shows its background; twice as many change nothing measured
SMALLEST, LARGEST = 1 / 32, 1 / 2  # radii, in shorter sides of the image


def images(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Dead leaves as pixels: uint8 of the given shape (n, channels, height, width). The same for the same seed."""
    n, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.rand(n, *size, generator=generator)

    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = random(channels, 1, 1).expand(n, channels, height, width)
    for _ in range(LEAVES):
        # the inverse of the share of radii below r, for the density r^-3
        r = (LARGEST**-2 + random(1, 1) * (SMALLEST**-2 - LARGEST**-2)) ** -0.5 * min(height, width)
        angle, slender = 2 * math.pi * random(1, 1), random(1, 1)
        dx, dy = x - width * random(1, 1), y - height * random(1, 1)
        along = angle.cos() * dx + angle.sin() * dy
        across = angle.cos() * dy - angle.sin() * dx
        disc = along**2 + across**2 < r**2
        bar = (along.abs() < r) & (across.abs() < r * slender)
        leaf = torch.where(random(1, 1) < 0.5, disc, bar)  # (n, height, width)
        pixels = torch.where(leaf[:, None], random(channels, 1, 1), pixels)
    return (pixels * 256).to(torch.uint8)
