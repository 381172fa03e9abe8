"""What YOLOv5 learns: which anchors see an object, where it lies to them, and of which class it is.

    loss = w_box · box + w_object · object + w_classes · classes

    box      1 - CIoU (Zheng et al. 2019, arXiv 1911.08287), the mean over the anchors that have an object
    object   binary cross-entropy of all anchors; wanted is the IoU of the anchor's box with its object, or 0
    classes  binary cross-entropy of each class, of the anchors that have an object

An anchor has an object where their widths, and their heights, differ by a factor of less than 4: those of several
strides may have the same. It is looked for at the cell of the object's centre and at the two cells next to that centre,
which the decoding (predict.py) reaches too: three times as many have something to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from .predict import ANCHORS, STRIDES
from .recipe import Weights

TINY = 1e-7


@dataclass(frozen=True)
class Matches:
    """n anchors of one stride and their objects."""

    image: Tensor  # (n,) int64
    anchor: Tensor
    row: Tensor  # of the cell
    column: Tensor
    box: Tensor  # (n, 4) centre, width, height of the object, in cells; the centre from the cell's corner
    label: Tensor  # (n,) int64


def loss(outputs: tuple[Tensor, ...], targets: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The parts, weighted. outputs: logits (n, 3 · (5 + classes), h / s, w / s) of each stride.

    targets["objects"] (m, 6): number of the image in the batch, class, centre x, y, width, height in pixels.
    """
    parts = {name: outputs[0].new_zeros(()) for name in ("box", "object", "classes")}
    for logits, stride, anchors, weight in zip(outputs, STRIDES, ANCHORS, weights.strides, strict=True):
        count, _, height, width = logits.shape
        each = logits.float().view(count, len(anchors), -1, height, width)
        sizes = logits.new_tensor(anchors).float() / stride
        found = match(targets["objects"], sizes, stride, (height, width), weights.matching.ratio)
        wanted = torch.zeros_like(each[:, :, 4])
        if len(found.image):
            values = each[found.image, found.anchor, :, found.row, found.column]
            overlap = ciou(decoded(values[:, :4], sizes[found.anchor]), found.box)
            parts["box"] = parts["box"] + weights.box * (1 - overlap).mean()
            wanted[found.image, found.anchor, found.row, found.column] = overlap.detach().clamp(min=0)
            one_hot = F.one_hot(found.label, values.shape[1] - 5).float()
            classes = F.binary_cross_entropy_with_logits(values[:, 5:], one_hot)
            parts["classes"] = parts["classes"] + weights.classes * classes
        objects = F.binary_cross_entropy_with_logits(each[:, :, 4], wanted)
        parts["object"] = parts["object"] + weights.object * weight * objects
    return parts


def match(objects: Tensor, anchors: Tensor, stride: int, grid: tuple[int, int], ratio: float) -> Matches:
    """Which anchors of a stride have which objects (m, 6). anchors (a, 2), in cells; grid: rows and columns."""
    boxes = objects[:, 2:] / stride
    factor = boxes[None, :, 2:] / anchors[:, None]  # (a, m, 2)
    anchor, number = (torch.maximum(factor, 1 / factor).amax(2) < ratio).nonzero(as_tuple=True)
    rows, columns = grid
    limits = boxes.new_tensor([columns, rows])
    image, label, box = objects[number, 0].long(), objects[number, 1].long(), boxes[number]
    cell = box[:, :2].floor()
    inside = box[:, :2] - cell
    step = torch.where(inside < 0.5, -1.0, 1.0)  # to the nearer neighbour, across and down
    across, down = step * step.new_tensor([1.0, 0.0]), step * step.new_tensor([0.0, 1.0])
    cells = torch.cat([cell, cell + across, cell + down])
    kept = ((cells >= 0) & (cells < limits)).all(1)
    image, label, anchor, box = (torch.cat([part] * 3)[kept] for part in (image, label, anchor, box))
    cells = cells[kept]
    column, row = cells.long().unbind(1)
    return Matches(image, anchor, row, column, torch.cat([box[:, :2] - cells, box[:, 2:]], 1), label)


def decoded(logits: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (n, 4) in cells from logits (n, 4) and their anchors (n, 2), the centre from the cell's corner."""
    values = logits.sigmoid()
    return torch.cat([values[:, :2] * 2 - 0.5, (values[:, 2:] * 2).square() * anchors], 1)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """(n,) IoU of boxes (n, 4) centre, width, height, less the distance of centres and the difference of shapes.

    distance   |c_a - c_b|^2 / diagonal^2 of the box around both
    shapes     v^2 / (1 - IoU + v),    v = 4 / pi^2 (atan(w_a / h_a) - atan(w_b / h_b))^2
    """
    low_a, high_a, low_b, high_b = (box[:, :2] + sign * box[:, 2:] / 2 for box in (a, b) for sign in (-1, 1))
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    iou = shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared + TINY)
    around = torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)
    distance = (a[:, :2] - b[:, :2]).square().sum(1) / (around.square().sum(1) + TINY)
    angles = (torch.atan(box[:, 2] / (box[:, 3] + TINY)) for box in (a, b))
    v = 4 / pi**2 * (next(angles) - next(angles)).square()
    with torch.no_grad():  # as in the paper: how much it counts is no part of the gradient
        share = v / (1 - iou + v + TINY)
    return iou - distance - share * v
