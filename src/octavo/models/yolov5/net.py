"""YOLOv5, versions 6 and 7: one network that finds the objects of 80 classes in one look.

    stem      conv 6x6 /2
    stages    four: conv 3x3 /2, then a C3 of 1, 2, 3 and 1 bottlenecks (variants n and s); after them SPPF
    neck      down the pyramid (1x1, upsample, concatenate, C3), then up again (3x3 /2, concatenate, C3): PANet
    heads     on strides 8, 16 and 32 a 1x1 convolution: 3 anchors a cell, each with x, y, w, h, object, 80 classes

Every convolution but the heads is followed by batch normalisation (eps .001) and SiLU. Written from published
descriptions: the table of layers that the weights file itself carries, CSPNet (Wang et al. 2019, arXiv 1911.11929) for
C3, spatial pyramid pooling (He et al. 2014, arXiv 1406.4729) for SPPF, PANet (Liu et al. 2018, arXiv 1803.01534).

Input: RGB / 255, (n, 3, h, w) float32, sides multiples of 32. Output: for each stride (n, 3 · 85, h / s, w / s),
logits; `predict.decode` makes boxes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data.pickles import Object, check_fit, read_objects, tensors

from .predict import ANCHORS, CLASSES, STRIDES
from .recipe import Stage

EPSILON, MOMENTUM = 1e-3, 0.03  # of the normalisation, as the published file says
WIDTHS = (64, 128, 256, 512, 1024)  # channels of the stem and the four stages, times the variant's width
DEPTHS = (3, 6, 9, 3)  # bottlenecks of the stages, times the variant's depth
NECK_DEPTH = 3


@dataclass(frozen=True)
class Size:
    width: float
    depth: float


VARIANTS = {"yolov5n": Size(0.25, 0.33), "yolov5s": Size(0.5, 0.33)}


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, normalised, with SiLU."""
    padding = (kernel - 1) // 2  # 2 for the stem of 6x6 and stride 2, which halves the size exactly
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs, EPSILON, MOMENTUM),
        nn.SiLU(),
    )


class Bottleneck(nn.Module):
    """1x1, 3x3, and the input added where the shortcut is wanted: (n, c, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels)
        self.conv2 = convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class C3(nn.Module):
    """Half of the channels through bottlenecks, half past them, joined: (n, inputs, h, w) -> (n, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.into, self.past = convolution(inputs, half), convolution(inputs, half)
        self.inner = nn.Sequential(
            *(
                Bottleneck(half)
                if shortcut
                else nn.Sequential(convolution(half, half), convolution(half, half, 3))
                for _ in range(depth)
            )
        )
        self.join = convolution(2 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.inner(self.into(x)), self.past(x)], 1))


class SPPF(nn.Module):
    """The maximum over 5, 9 and 13 pixels beside the value itself: three pools of 5x5, one behind the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into = convolution(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = convolution(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        near = self.pool(x)
        middle = self.pool(near)
        return self.join(torch.cat([x, near, middle, self.pool(middle)], 1))


class Detector(nn.Module):
    """(n, 3, h, w) -> logits (n, anchors · (5 + classes), h / s, w / s) for strides s of 8, 16, 32."""

    def __init__(self, size: Size, classes: int = len(CLASSES)) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (ceil(width * size.width / 8) * 8 for width in WIDTHS)
        d2, d3, d4, d5 = (max(1, round(depth * size.depth)) for depth in DEPTHS)
        depth = max(1, round(NECK_DEPTH * size.depth))
        self.stem = convolution(3, c1, 6, 2)
        self.down2, self.stage2 = convolution(c1, c2, 3, 2), C3(c2, c2, d2)
        self.down3, self.stage3 = convolution(c2, c3, 3, 2), C3(c3, c3, d3)
        self.down4, self.stage4 = convolution(c3, c4, 3, 2), C3(c4, c4, d4)
        self.down5, self.stage5 = convolution(c4, c5, 3, 2), C3(c5, c5, d5)
        self.pool = SPPF(c5)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral5, self.merge4 = convolution(c5, c4), C3(2 * c4, c4, depth, False)
        self.lateral4, self.merge3 = convolution(c4, c3), C3(2 * c3, c3, depth, False)
        self.shrink3, self.mix4 = convolution(c3, c3, 3, 2), C3(2 * c3, c4, depth, False)
        self.shrink4, self.mix5 = convolution(c4, c4, 3, 2), C3(2 * c4, c5, depth, False)
        outputs = len(ANCHORS[0]) * (5 + classes)
        self.heads = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in (c3, c4, c5))
        self.heads.apply(lambda head: _rare(head, classes) if isinstance(head, nn.Conv2d) else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third = self.stage3(self.down3(self.stage2(self.down2(self.stem(x)))))
        fourth = self.stage4(self.down4(third))
        top5 = self.lateral5(self.pool(self.stage5(self.down5(fourth))))
        top4 = self.lateral4(self.merge4(torch.cat([self.up(top5), fourth], 1)))
        small = self.merge3(torch.cat([self.up(top4), third], 1))
        medium = self.mix4(torch.cat([self.shrink3(small), top4], 1))
        large = self.mix5(torch.cat([self.shrink4(medium), top5], 1))
        return self.heads[0](small), self.heads[1](medium), self.heads[2](large)


@torch.no_grad()
def _rare(head: nn.Conv2d, classes: int) -> None:
    """Start a head from how rare objects are (Lin et al. 2017, arXiv 1708.02002, section 4.1): one anchor in 1000, and
    of its class one in `classes`. Else the first steps would only unlearn even odds."""
    assert head.bias is not None
    bias = head.bias.view(len(ANCHORS[0]), -1)
    bias[:, 4] = torch.logit(torch.tensor(1e-3))
    bias[:, 5:] = torch.logit(torch.tensor(0.6 / classes))


def build(variant: str) -> dict[str, nn.Module]:
    """The one network of a variant, with fresh weights."""
    return {"detector": Detector(VARIANTS[variant])}


def finish(module: nn.Module, stage: Stage) -> None:
    """Nothing is to be done: what is trained is what is used."""


def resume(module: nn.Module, stage: Stage) -> None:
    """The inverse of `finish`."""


class Decoded(nn.Module):
    """What stands behind the network in an export with the decoding in it: logits -> (n, P, 5 + classes).

    Each row: centre x, centre y, width, height in pixels of the input, then the probabilities of an object and, given
    one, of each class. Level by level, anchor by anchor, row by row, as in `predict.decode`.
    """

    def forward(self, small: Tensor, medium: Tensor, large: Tensor) -> Tensor:
        levels = []
        for logits, stride, anchors in zip((small, medium, large), STRIDES, ANCHORS, strict=True):
            count, _, height, width = logits.shape
            found = logits.view(count, len(anchors), -1, height, width).permute(0, 1, 3, 4, 2).sigmoid()
            rows = torch.arange(height, dtype=torch.float32).view(-1, 1, 1).expand(height, width, 1)
            columns = torch.arange(width, dtype=torch.float32).view(1, -1, 1).expand(height, width, 1)
            centre = (found[..., :2] * 2 - 0.5 + torch.cat([columns, rows], -1)) * stride
            extent = (found[..., 2:4] * 2).square() * torch.tensor(anchors).view(len(anchors), 1, 1, 2)
            found = torch.cat([centre, extent, found[..., 4:]], -1)
            levels.append(found.reshape(count, len(anchors) * height * width, -1))
        return torch.cat(levels, 1)


def decoding() -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    return {"detector": (Decoded(), ("objects",))}


# The published file ---------------------------------------------------------------------------------

# What stands at the places of the published network's list of layers; those without weights left out.
PUBLISHED = {
    **{"0": "stem", "1": "down2", "2": "stage2", "3": "down3", "4": "stage3", "5": "down4", "6": "stage4"},
    **{"7": "down5", "8": "stage5", "9": "pool", "10": "lateral5", "13": "merge4", "14": "lateral4"},
    **{"17": "merge3", "18": "shrink3", "20": "mix4", "21": "shrink4", "23": "mix5", "24": "heads"},
}
# And in them. SPPF's two convolutions have other names than C3's, and a bottleneck others where it has no shortcut.
LAYERS = {"conv": "0", "bn": "1"}
OF_C3 = {"cv1": "into", "cv2": "past", "cv3": "join", "m": "inner"}
OF_SPPF = {"cv1": "into", "cv2": "join"}
OF_BOTTLENECK = {"cv1": "conv1", "cv2": "conv2"}
OF_PLAIN = {"cv1": "0", "cv2": "1"}


def import_weights(source: Path) -> dict[str, dict[str, Tensor]]:
    """Read the published weights, yolov5n.pt or yolov5s.pt, for `build`; every tensor must be used and be given.

    The file is a pickle of classes we don't have, in float16: its tensors are taken out, nothing is run (data/pickles).
    Raises ValueError for a missing file, one that asks for more than weights need, tensors or anchors that don't fit.
    """
    network = _published(source)
    theirs = {key.removeprefix("model."): value for key, value in tensors(network).items()}
    anchors = theirs.pop("24.anchors", None)  # in cells
    expected = torch.tensor(ANCHORS) / torch.tensor(STRIDES).view(-1, 1, 1)
    if anchors is None or anchors.shape != expected.shape or (anchors.float() - expected).abs().max() > 1e-2:
        found = "none" if anchors is None else anchors.tolist()
        raise ValueError(f"{source} has other anchors than YOLOv5 was published with: {found}")
    ours = {renamed(key): value for key, value in theirs.items()}
    ours = {key: value.float() if value.is_floating_point() else value for key, value in ours.items()}
    fits = [name for name in VARIANTS if _width(build(name)["detector"].state_dict()) == _width(ours)]
    variant = fits[0] if fits else next(iter(VARIANTS))
    check_fit(ours, build(variant)["detector"], source, variant)
    return {"detector": ours}


def import_info(source: Path) -> dict[str, Any]:
    """What else model.json keeps of the published file: the names of the classes."""
    names = _published(source).state.get("names", ())
    return {"classes": [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]}


def _published(source: Path) -> Object:
    held = read_objects(source, ("models.*",))
    network = (held.get("ema") or held.get("model")) if isinstance(held, Mapping) else None
    if not isinstance(network, Object):
        raise ValueError(f"{source} holds no network: the published weights are yolov5n.pt and yolov5s.pt")
    return network


def _width(state: Mapping[str, Tensor]) -> int:
    return len(state["stem.0.weight"]) if "stem.0.weight" in state else 0


def renamed(key: str) -> str:
    """6.m.0.cv1.conv.weight -> stage4.inner.0.conv1.0.weight; a name not known stays, and so won't fit."""
    number, _, rest = key.partition(".")
    place = PUBLISHED.get(number, number)
    words = rest.split(".")
    if place == "heads":
        return ".".join([place, *words[1:]])
    names = OF_SPPF if place == "pool" else OF_C3
    if words[0] == "m" and len(words) > 2:
        inside = OF_BOTTLENECK if place.startswith("stage") else OF_PLAIN
        words[2] = inside.get(words[2], words[2])
    words[0] = names.get(words[0], words[0])
    return ".".join([place, *(LAYERS.get(word, word) for word in words)])
