"""Photographs and batches as tensors: to the networks' range, and in other light."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(pixels: Tensor) -> Tensor:
    """uint8 -> float32, (x - 128) / 128."""
    return pixels.to(torch.float32, copy=True).sub_(128).div_(128)  # in place: batches of pictures are large


def relight(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (n, 3, h, w), overwritten: contrast, colour and brightness of all changed, some made grey."""
    count = len(x)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=generator)

    grey = (torch.rand(count, generator=generator) < 0.1).nonzero()[:, 0]
    x[grey] = x[grey].mean(dim=1, keepdim=True)
    gain = uniform(0.6, 1.4) * uniform(0.92, 1.08, 3)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return x.sub_(mean).mul_(gain).add_(mean + uniform(-0.3, 0.3)).clamp_(-1, 127 / 128)
