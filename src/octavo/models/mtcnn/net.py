"""MTCNN's three networks (Zhang et al. 2016, arXiv 1604.02878), in two variants of one shape.

    P-Net 12x12   conv 10 3x3, pool 2, conv 16 3x3, conv 32 3x3            -> face 2, box 4  (1x1 convs)
    R-Net 24x24   conv 28 3x3, pool 3/2, conv 48 3x3, pool 3/2, conv 64 2x2, fc 128   -> face 2, box 4
    O-Net 48x48   conv 32 3x3, pool 3/2, conv 64 3x3, pool 3/2, conv 64 3x3, pool 2,
                  conv 128 2x2, fc 256                                     -> face 2, box 4, landmarks 10

`mtcnn` is the published network: biases and a PReLU after each layer, no normalisation.
`mtcnn-relu` has batch normalisation (folded away at export) and ReLU, which every integer kernel fuses.

Input: (x - 128) / 128 of RGB pixels, (n, 3, h, w) float32. 128 instead of the published 127.5 makes uint8
pixels exactly the 8-bit grid of the first quantizer; imported weights take the half step into their bias.
Output: face logits (no face, face), box offsets of the corners x1, y1, x2, y2 in units of the window's side,
landmarks x1..x5, y1..y5 as fractions of the window. No padding, pools round up.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo.data.pickles import check_fit, read_state

from .recipe import Stage

Layer = Callable[[nn.Module, int], nn.Module]


def published(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(layer, nn.PReLU(channels))


def with_relu(layer: nn.Module, channels: int) -> nn.Module:
    norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    layer.register_parameter("bias", None)  # the normalisation's shift takes its place
    return nn.Sequential(layer, norm(channels), nn.ReLU())


VARIANTS: dict[str, Layer] = {"mtcnn": published, "mtcnn-relu": with_relu}


class PNet(nn.Module):
    """Proposals: (n, 3, h, w) -> face (n, 2, h', w'), box (n, 4, h', w'), one cell of 12x12 every 2 pixels."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv1 = layer(nn.Conv2d(3, 10, 3), 10)
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv2 = layer(nn.Conv2d(10, 16, 3), 16)
        self.conv3 = layer(nn.Conv2d(16, 32, 3), 32)
        self.face = nn.Conv2d(32, 2, 1)
        self.box = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.conv1(x))
        x = self.conv3(self.conv2(x))
        return self.face(x), self.box(x)


class RNet(nn.Module):
    """Refinement: (n, 3, 24, 24) -> face (n, 2), box (n, 4)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv1 = layer(nn.Conv2d(3, 28, 3), 28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = layer(nn.Conv2d(28, 48, 3), 48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = layer(nn.Conv2d(48, 64, 2), 64)
        self.flatten = nn.Flatten()
        self.fc = layer(nn.Linear(576, 128), 128)
        self.face = nn.Linear(128, 2)
        self.box = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = self.fc(self.flatten(self.conv3(x)))
        return self.face(x), self.box(x)


class ONet(nn.Module):
    """Output: (n, 3, 48, 48) -> face (n, 2), box (n, 4), landmarks (n, 10)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv1 = layer(nn.Conv2d(3, 32, 3), 32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = layer(nn.Conv2d(32, 64, 3), 64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = layer(nn.Conv2d(64, 64, 3), 64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4 = layer(nn.Conv2d(64, 128, 2), 128)
        self.flatten = nn.Flatten()
        self.fc = layer(nn.Linear(1152, 256), 256)
        self.face = nn.Linear(256, 2)
        self.box = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = self.pool3(self.conv3(x))
        x = self.fc(self.flatten(self.conv4(x)))
        return self.face(x), self.box(x), self.landmarks(x)


def build(variant: str) -> dict[str, nn.Module]:
    """The three networks of a variant, with fresh weights, in the order of the cascade."""
    layer = VARIANTS[variant]
    return {"pnet": PNet(layer), "rnet": RNet(layer), "onet": ONet(layer)}


def finish(module: nn.Module, stage: Stage) -> None:
    """Fold the stage's centre into a trained network: the probability it names then reads .5.

    A cascade is used with thresholds about .5, but .5 as trained depends on how many negatives a batch had and
    which of them counted. Only the bias of the face logit moves.
    """
    _shift(module, -log(stage.centre / (1 - stage.centre)))


def resume(module: nn.Module, stage: Stage) -> None:
    """The inverse of `finish`: a network that is trained further has its logits where training left them."""
    _shift(module, log(stage.centre / (1 - stage.centre)))


def _shift(module: nn.Module, logit: float) -> None:
    bias = module.get_parameter("face.bias")
    with torch.no_grad():
        bias[1] += logit


# The published names of each layer, and the grid of cells (channels, height, width) that a fully connected
# layer reads: the published files were converted from a runtime that stores it as (width, height, channels).
PUBLISHED: dict[str, tuple[dict[str, str], dict[str, tuple[int, int, int]]]] = {
    "pnet": ({"conv4_1": "face", "conv4_2": "box"}, {}),
    "rnet": ({"dense4": "fc", "dense5_1": "face", "dense5_2": "box"}, {"dense4": (64, 3, 3)}),
    "onet": (
        {"dense5": "fc", "dense6_1": "face", "dense6_2": "box", "dense6_3": "landmarks"},
        {"dense5": (128, 3, 3)},
    ),
}


def import_weights(source: Path) -> dict[str, dict[str, Tensor]]:
    """Read the published float weights, {pnet,rnet,onet}.pt state dicts in a folder, for `build("mtcnn")`.

    Files are read with the restricted unpickler; every tensor must be used and every one of ours be given.
    Raises ValueError for a missing file, a pickle that is no plain state dict, or tensors that don't fit.
    """
    return {name: import_network(source / f"{name}.pt", name) for name in PUBLISHED}


def import_network(path: Path, name: str) -> dict[str, Tensor]:
    theirs = read_state(path, "the published weights are pnet.pt, rnet.pt and onet.pt in one folder")
    renamed, grids = PUBLISHED[name]
    ours = {}
    for key, tensor in theirs.items():
        layer, _, kind = key.rpartition(".")
        if layer.startswith("prelu"):
            number = layer.removeprefix("prelu")
            ours[f"{renamed.get('dense' + number, 'conv' + number)}.1.{kind}"] = tensor.float()
            continue
        if layer in grids and kind == "weight":
            channels, height, width = grids[layer]
            tensor = tensor.reshape(-1, width, height, channels).permute(0, 3, 2, 1).flatten(1)
        target = renamed.get(layer, layer)
        inner = "" if target in ("face", "box", "landmarks") else ".0"
        ours[f"{target}{inner}.{kind}"] = tensor.float().contiguous()
    check_fit(ours, build("mtcnn")[name], path, f"{name} of variant mtcnn")
    # Theirs expects (x - 127.5) / 128, ours gets (x - 128) / 128: the half step goes into the first bias.
    ours["conv1.0.bias"] = ours["conv1.0.bias"] + ours["conv1.0.weight"].sum(dim=(1, 2, 3)) * (0.5 / 128)
    return ours
