"""PReLU behind a convolution, in integers: the larger of two convolutions.

    PReLU(x) = max(x, a·x)    for every slope a <= 1, negative ones too

Rounding and clipping to a grid keep order, so the maximum may be taken of the integers: a convolution with 2C
outputs, x and a·x, where the second C have weight scales |a| times as large (and weights of the other sign
where a < 0), rounded to the grid that stood behind the PReLU; then, as in phases.py, a MaxPool over pairs,
(n, h, w, 2C) and (n, h, 2w, C) being the same bytes. Multiplying by a is left to the scales, so that nothing
is rounded twice: the result is the same integer but where a sum lies within float32's rounding of a tie.

ONNX Runtime has no integer PReLU: without this the convolution stays in float, too. A slope above 1 makes the
smaller of the two right, which no pool takes: layers with such a channel stay as they are.

Not used, [x, -x] with ReLU and -a folded into the next weights: it needs a >= 0, which half of the published
slopes are not, doubles the next layer instead, and cannot pass a pool.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from octavo.lower.blocks import in_rows
from octavo.lower.graph import Graph, Grid, Layer, attributes, window


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Rewrite the graph where it fits; a line about it, or None."""
    done = 0
    for node in list(graph.nodes):
        layer = graph.layer(node) if node.op_type == "Conv" else None  # anew: the one before may have changed
        grid = graph.grid(node.output[0], "PRelu")
        if layer is None or grid is None or len(grid.nodes) != 3 or window(layer) is None:
            continue
        slope = graph.constants.get(grid.nodes[0].input[1])
        if (
            slope is None
            or slope.size not in (1, layer.outputs)
            or (slope > 1).any()
            or layer.weight.min() < -127
        ):
            continue
        if slope.size > 1 and slope.shape[-3:] != (layer.outputs, 1, 1):
            continue
        both = _both(layer, np.broadcast_to(slope.reshape(-1), (layer.outputs,)))
        x = graph.add_layer(
            "Conv", layer.x, both.weight, both.scale, both.bias, both.step, **attributes(layer.node)
        )
        rounded = Grid(grid.nodes[1:], grid.scale, grid.zero_point)
        x = in_rows(graph, graph.add_grid(x, rounded), layer.outputs)
        x = graph.add("MaxPool", x, kernel_shape=[1, 2], strides=[1, 2])
        graph.redirect(grid.output, graph.add_grid(x, rounded))
        done += 1
    return f"PReLU of {done} convolution{'s' * (done > 1)} as the larger of two" if done else None


def _both(layer: Layer, slope: np.ndarray) -> Layer:
    """The layer with its outputs once more, times the slope."""
    size = np.where(slope == 0, 1, np.abs(slope)).astype(np.float32)  # a scale is above 0, weights may be 0
    sign = np.sign(slope).astype(np.int8)
    weight = layer.weight * sign.reshape(-1, *[1] * (layer.weight.ndim - 1))
    pair = lambda a, b: np.concatenate([a, b])  # noqa: E731
    return replace(
        layer,
        weight=pair(layer.weight, weight),
        scale=pair(layer.scale, layer.scale * size),
        bias=None if layer.bias is None else pair(layer.bias, layer.bias * sign),
        step=pair(layer.step, layer.step * size),
    )
