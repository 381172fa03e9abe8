"""slim and RFB: one network of 300 thousand weights that finds faces of all sizes in one look.

    stem      conv 16 3x3 /2
    stride 8  six separable convs, 32 32 32 64 64 64, of which two halve the size; a seventh of 64 (variant slim)
              or a receptive field block (variant rfb)
    16, 32    three separable convs of 128, then two of 256; the first of each halves the size
    64        conv 64 1x1, separable conv 256 /2
    heads     on each of the four: 3, 2, 2 or 3 priors a cell, each with face 2, box 4, landmarks 10

The architecture is that of Face-Detector-1MB-with-landmark, whose weights `import_weights` reads: an SSD (Liu et
al. 2016, arXiv 1512.02325) of MobileNet's separable convolutions (arXiv 1704.04861), the block from RFB Net (Liu
et al. 2018, arXiv 1711.07767).

Input: (x - 128) / 128 of RGB pixels, (n, 3, h + 2, w + 2) float32. The stem has no padding: whoever calls the
network puts a frame of one pixel around the image, of the mean colour (predict.framed). That is what the published
network sees, whose pixels are differences to the mean and whose padding is zero, and it is exact in uint8.
Output: for the P priors of the image (predict.priors) face logits (n, P, 2: no face, face), box offsets
(n, P, 4) and landmark offsets (n, P, 10: x1, y1, x2, ...).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from octavo.data.pickles import check_fit, read_state

from .predict import LEVELS, MEAN
from .recipe import Stage

CHANNELS = (64, 128, 256, 256)  # what the heads of each level read


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A convolution in space, channel by channel, then one across the channels, each normalised."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def normalised(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, and its batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ReceptiveField(nn.Module):
    """Three branches that look 7, 9 and 15 pixels far, joined, beside a shortcut: (n, 64, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 8
        self.near = nn.Sequential(
            normalised(channels, few, 1),
            normalised(few, 2 * few, 3).append(nn.ReLU()),
            normalised(2 * few, 2 * few, 3, dilation=2),
        )
        self.middle = nn.Sequential(
            normalised(channels, few, 1),
            normalised(few, 2 * few, 3).append(nn.ReLU()),
            normalised(2 * few, 2 * few, 3, dilation=3),
        )
        self.far = nn.Sequential(
            normalised(channels, few, 1),
            normalised(few, few * 3 // 2, 3).append(nn.ReLU()),
            normalised(few * 3 // 2, 2 * few, 3).append(nn.ReLU()),
            normalised(2 * few, 2 * few, 3, dilation=5),
        )
        self.join = normalised(6 * few, channels, 1)
        self.shortcut = normalised(channels, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(torch.cat([self.near(x), self.middle(x), self.far(x)], 1))
        return self.relu(joined + self.shortcut(x))


class Detector(nn.Module):
    """(n, 3, h + 2, w + 2) -> face (n, P, 2), box (n, P, 4), landmarks (n, P, 10)."""

    def __init__(self, last: nn.Module) -> None:
        """last: what the backbone ends with at stride 8, where the smallest faces are found."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    separable(16, 32),
                    separable(32, 32, 2),
                    separable(32, 32),
                    separable(32, 64, 2),
                    separable(64, 64),
                    separable(64, 64),
                    last,
                ),
                nn.Sequential(separable(64, 128, 2), separable(128, 128), separable(128, 128)),
                nn.Sequential(separable(128, 256, 2), separable(256, 256)),
                nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), without_norm(64, 256, 2), nn.ReLU()),
            ]
        )
        self.face, self.box, self.landmarks = (heads(width) for width in (2, 4, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return (
            by_prior(self.face, features, 2),
            by_prior(self.box, features, 4),
            by_prior(self.landmarks, features, 10),
        )


def without_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A separable convolution with biases in place of normalisation, and no activation at its end."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1)
    )


def heads(width: int) -> nn.ModuleList:
    """For each level what answers `width` numbers a prior; on the last, of few cells, with a full convolution."""
    outputs = [len(sides) * width for _, sides in LEVELS]
    *separable_ones, (last, count) = zip(CHANNELS, outputs, strict=True)
    return nn.ModuleList(
        [
            *(without_norm(inputs, many) for inputs, many in separable_ones),
            nn.Conv2d(last, count, 3, padding=1),
        ]
    )


def by_prior(heads: nn.ModuleList, features: list[Tensor], width: int) -> Tensor:
    """The heads' answers (n, priors of a cell · width, h, w), as (n, P, width): level, row, column, prior."""
    answers = [
        head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
        for head, x in zip(heads, features, strict=True)
    ]
    return torch.cat(answers, 1)


VARIANTS = {"slim": lambda: separable(64, 64), "rfb": lambda: ReceptiveField(64)}


def build(variant: str) -> dict[str, nn.Module]:
    """The one network of a variant, with fresh weights."""
    return {"detector": Detector(VARIANTS[variant]())}


def finish(module: nn.Module, stage: Stage) -> None:
    """Nothing is to be done: what is trained is what is used."""


def resume(module: nn.Module, stage: Stage) -> None:
    """The inverse of `finish`."""


# Where the published layers stand in ours, by the beginning of their names.
PUBLISHED = {
    "conv1.": "stem.",
    **{f"conv{i}.": f"stages.0.{i - 2}." for i in range(2, 9)},
    **{f"conv{i}.": f"stages.1.{i - 9}." for i in range(9, 12)},
    **{f"conv{i}.": f"stages.2.{i - 12}." for i in range(12, 14)},
    "conv14.": "stages.3.",
    **{"conf.": "face.", "loc.": "box.", "landm.": "landmarks."},
}
BLOCK = {
    "branch0": "near",
    "branch1": "middle",
    "branch2": "far",
    "ConvLinear": "join",
    "conv.": "0.",
    "bn.": "1.",
}


def import_weights(source: Path) -> dict[str, dict[str, Tensor]]:
    """Read the published float weights, slim_Final.pth or RBF_Final.pth, for `build("slim")` or `build("rfb")`.

    The file is read with the restricted unpickler; every tensor must be used and every one of ours be given.
    Raises ValueError for a missing file, a pickle that is no plain state dict, or tensors that don't fit.
    """
    theirs = read_state(source, "the published weights are one, slim_Final.pth or RBF_Final.pth")
    ours = {renamed(key.removeprefix("module.")): tensor for key, tensor in theirs.items()}
    variant = "rfb" if any(".near." in key for key in ours) else "slim"
    check_fit(ours, build(variant)["detector"], source, variant)
    return {"detector": ours | our_pixels({key: ours[key] for key in ours if key.startswith("stem.")})}


def renamed(key: str) -> str:
    layer = next((layer for layer in PUBLISHED if key.startswith(layer)), None)
    if layer is None:
        return key
    key = PUBLISHED[layer] + key.removeprefix(layer)
    for theirs, ours in BLOCK.items() if any(name in key for name in BLOCK) else ():
        key = key.replace(theirs, ours)
    return key


def our_pixels(stem: dict[str, Tensor], epsilon: float = 1e-5) -> dict[str, Tensor]:
    """The stem for our pixels u = (x - 128) / 128, RGB, instead of x - mean, BGR; no rounding but float's.

        theirs   y = w (x - mean) = 128 (w u + w (128 - mean) / 128)

    so ours is y / 128 less a constant, which the normalisation behind it takes into its mean and variance.
    """
    weight = stem["stem.0.weight"].double().flip(1)  # BGR -> RGB
    shift = (weight * (128 - torch.tensor(MEAN, dtype=torch.float64))[:, None, None]).sum((1, 2, 3))
    mean = (stem["stem.1.running_mean"].double() - shift) / 128
    variance = (stem["stem.1.running_var"].double() + epsilon) / 128**2 - epsilon
    if not (variance > 0).all():
        raise ValueError("the first layer's variances are those of another normalisation of the pixels")
    return {
        "stem.0.weight": weight.float(),
        "stem.1.running_mean": mean.float(),
        "stem.1.running_var": variance.float(),
    }
