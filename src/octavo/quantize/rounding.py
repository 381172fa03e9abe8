"""Learned rounding: up or down, whichever serves the layer (AdaRound, Nagel et al. 2020, arXiv 2004.10568).

Rounding each weight to the nearest integer is best for the weights, not for what the layer computes: errors of
neighbouring weights add up or cancel, depending on how their inputs go together. So choose for each weight
between floor and ceil, to minimise per output channel

    E[(q x' - y)^2],    q = scale * (floor(w / scale) + h),   h in {0, 1}

with x' the inputs of the quantized network (its layers before this one already rounded) and y the float
network's output. This is a quadratic form: one pass over the data collects E[x' x'^T] and E[x' y^T], after
that no data is needed, and a step costs one matrix product instead of a batch. (The paper minimises behind
the activation function, batch by batch.) The bias takes the mean of the error: moments are around means.

The search: h = clip(1.2 sigmoid(v) - 0.1, 0, 1), Adam on v, and a regulariser 1 - |2h - 1|^beta, beta from 20
down to 2, that drives h to 0 or 1; then single weights flip while that helps, and a channel keeps plain
rounding if that was better. The result is stored in the weights: they lie on the grid, so that rounding to
nearest leaves them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.quantize.fake import QuantLayer
from octavo.quantize.prepare import QuantModel, fold

STRETCH, SHIFT = 1.2, -0.1  # the rectified sigmoid of the paper: zeta - gamma, gamma


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x (in patches) and wanted outputs y, per group g of channels."""

    xx: Tensor  # (g, K, K) float32
    xy: Tensor  # (g, K, out / g)
    yy: Tensor  # (g, out / g)
    x: Tensor  # (g, K) means
    y: Tensor  # (g, out / g)

    def error(self, q: Tensor) -> Tensor:
        """E[(q x - y)^2] for weights q (g, out / g, K): (g, out / g)."""
        return (q * (q @ self.xx - 2 * self.xy.mT)).sum(2) + self.yy


def learn_rounding(
    qmodel: nn.Module, network: nn.Module, batches: Iterable[Tensor], steps: int = 200
) -> dict[str, tuple[float, float]]:
    """Choose the rounding of each weight of a calibrated `qmodel`; biases take up what is left of the mean.

    network: what qmodel was prepared from. batches: a few hundred unlabelled images. Layers other than Conv1d,
    Conv2d (zero padding) and Linear keep plain rounding. Returns {layer: (error before, after)}, each the mean
    squared error of its output over the variance of that output, with the bias corrected in both.
    """
    if not isinstance(qmodel, QuantModel):
        raise ValueError(f"{type(qmodel).__name__} is not a quantized model: prepare and calibrate it first")
    batches = list(batches)
    if not batches:
        raise ValueError("learning the rounding needs at least one batch of images")
    qmodel.eval()
    twin = fold(network, qmodel.meta["scheme"].skip)
    names = dict.fromkeys(str(node.target) for node in qmodel.graph.nodes if node.op == "call_module")
    errors = {}
    for name in names:
        layer: Any = qmodel.get_submodule(name)
        if isinstance(layer, QuantLayer) and _is_supported(layer.layer):
            moments = collect(qmodel, layer, twin, twin.get_submodule(name), batches)
            errors[name] = _round_layer(layer, moments, steps)
    return errors


def _is_supported(layer: Any) -> bool:
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


# The data, once -----------------------------------------------------------------------------------


class _Caught(Exception):
    """Ends a forward pass at the layer that was wanted."""


@torch.no_grad()
def collect(
    qmodel: nn.Module, layer: QuantLayer, twin: nn.Module, float_layer: nn.Module, batches: Sequence[Tensor]
) -> Moments:
    """Moments of the inputs of `layer` in `qmodel` against the outputs of its twin."""
    caught: list[Tensor] = []

    def catch_input(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append(args[0])
        raise _Caught

    def catch_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append(output)
        raise _Caught

    sums: list[Any] = [0, 0, 0, 0, 0]
    count = 0
    handles = [layer.register_forward_hook(catch_input), float_layer.register_forward_hook(catch_output)]
    try:
        for batch in batches:
            for model in (qmodel, twin):
                with suppress(_Caught):
                    model(batch)
            inputs, outputs = caught.pop(0), caught.pop(0)
            for image, wanted in zip(inputs.split(16), outputs.split(16), strict=True):
                x, y = _patches(layer.layer, image), _channels(layer.layer, wanted)
                parts = (x.mT @ x, x.mT @ y, (y * y).sum(1), x.sum(1), y.sum(1))
                sums = [total + part.double() for total, part in zip(sums, parts, strict=True)]
                count += x.shape[1]
    finally:
        for handle in handles:
            handle.remove()
    xx, xy, yy, mean_x, mean_y = (total / count for total in sums)
    if layer.bias is not None:
        xx = xx - mean_x[:, :, None] * mean_x[:, None, :]
        xy = xy - mean_x[:, :, None] * mean_y[:, None, :]
        yy = yy - mean_y**2
    return Moments(xx.float(), xy.float(), yy.float(), mean_x.float(), mean_y.float())


def _patches(layer: Any, x: Tensor) -> Tensor:
    """What each output position sees: (groups, positions, K)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    options = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if isinstance(layer, nn.Conv1d):  # as a picture of one row
        x = x[:, :, None]
        options = [(neutral, *option) for neutral, option in zip((1, 1, 0, 1), options, strict=True)]
    columns = F.unfold(x, *options)  # (n, channels * kernel, positions)
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def _channels(layer: Any, y: Tensor) -> Tensor:
    """Outputs in the same order: (groups, positions, out / groups)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    return y.flatten(2).unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


# The search ---------------------------------------------------------------------------------------


@torch.no_grad()
def _round_layer(layer: QuantLayer, moments: Moments, steps: int) -> tuple[float, float]:
    grid, weight = layer.weight_grid, layer.weight
    groups, outputs, k = moments.xy.shape[0], moments.xy.shape[2], moments.xy.shape[1]

    def per_weight(values: Tensor) -> Tensor:  # one value per row of the grid -> (g, out / g, K)
        rows = values.reshape(-1, 1)
        return rows.expand(-1, weight.numel() // len(rows)).reshape(groups, outputs, k)

    scale, zero = per_weight(grid.scale), per_weight(grid.zero_point)
    lowest, highest = grid.grid.low - zero, grid.grid.high - zero
    exact = weight.reshape(groups, outputs, k) / scale
    nearest = exact.round().clamp(min=lowest, max=highest)
    floor = exact.floor().clamp(min=lowest, max=highest)
    free = (floor < highest) & (exact > lowest)
    start = moments.error(nearest * scale)

    up = free & learn(moments, floor, scale, exact - floor, steps)
    up = flip(moments, floor, scale, up, free)
    learned = floor + up
    end = moments.error(learned * scale)
    learned = torch.where((end < start)[..., None], learned, nearest)

    weight.copy_((learned * scale).reshape(weight.shape))
    if layer.bias is not None:
        layer.bias.copy_((moments.y - (learned * scale * moments.x[:, None]).sum(2)).flatten())
    total = moments.yy.sum().clamp(min=1e-30)
    return float(start.sum() / total), float(torch.minimum(start, end).sum() / total)


def learn(moments: Moments, floor: Tensor, scale: Tensor, fraction: Tensor, steps: int) -> Tensor:
    """Which weights to round up, by the relaxed search."""
    # Learning rate, weight of the regulariser, share of steps without it (as in the paper): the first two tried
    # on MTCNN's R-Net with 4-bit weights; before the flips 0.01 .. 0.3 end 20 to 60 % worse, after them 2 %.
    rate, strength, warm_up = 0.1, 3.0, 0.2
    start = fraction.clamp(0.01, 0.99)  # h begins at the exact weight
    v = torch.logit((start - SHIFT) / STRETCH).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=rate)
    # channels are independent problems: bring all to the same size
    size = moments.error((floor + fraction.round()) * scale).clamp(min=1e-30)[..., None] / floor.shape[-1]
    for step in range(steps):
        progress = step / steps
        with torch.enable_grad():
            h = (STRETCH * torch.sigmoid(v) + SHIFT).clamp(0, 1)
            q = (floor + h) * scale
            gradient = (2 * (q.detach() @ moments.xx - moments.xy.mT)) / size
            loss = (q * gradient).sum()  # has the gradient of the error
            if progress > warm_up:
                beta = 2 + 18 * (1 - progress) / (1 - warm_up)
                loss = loss + strength * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return v.detach() > 0


def flip(moments: Moments, floor: Tensor, scale: Tensor, up: Tensor, free: Tensor) -> Tensor:
    """Turn over single weights, in each channel the one that helps most, until none does."""
    up = up.clone()
    curvature = scale**2 * moments.xx.diagonal(dim1=1, dim2=2)[:, None]
    slope = (floor + up) * scale @ moments.xx - moments.xy.mT  # half the gradient
    for _ in range(2 * floor.shape[-1]):
        move = torch.where(up, -scale, scale)
        gain = torch.where(free, 2 * move * slope + curvature, 0.0)
        best, at = gain.min(dim=2, keepdim=True)
        wins = best < -1e-7 * moments.yy[..., None]
        if not wins.any():
            break
        step = torch.where(wins, move.gather(2, at), 0.0)
        slope = slope + step * moments.xx.gather(1, at.expand(-1, -1, floor.shape[-1]))
        up = up.scatter(2, at, up.gather(2, at) ^ wins)
    return up
