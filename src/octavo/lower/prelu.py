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
        x = _both(graph, layer, np.broadcast_to(slope.reshape(-1), (layer.outputs,)))
        rounded = Grid(grid.nodes[1:], grid.scale, grid.zero_point)
        x = in_rows(graph, graph.add_grid(x, rounded), layer.outputs)
        x = graph.add("MaxPool", x, kernel_shape=[1, 2], strides=[1, 2])
        graph.redirect(grid.output, graph.add_grid(x, rounded))
        done += 1
    return f"PReLU of {done} convolution{'s' * (done > 1)} as the larger of two" if done else None


def _both(graph: Graph, layer: Layer, slope: np.ndarray) -> str:
    """The layer with its outputs once more, times the slope."""
    weight, scale, bias = layer.stored
    size = graph.constant(np.where(slope == 0, 1, np.abs(slope)).astype(np.float32))  # above 0, as scales are
    sign = np.sign(slope)
    twice = lambda name, other: graph.derive("Concat", name, other, axis=0)  # noqa: E731
    turned = sign.reshape(-1, *[1] * (layer.weight.ndim - 1)).astype(np.int8) * layer.weight
    return graph.add_layer(
        "Conv",
        layer.x,
        twice(weight, graph.constant(turned)),
        twice(scale, graph.derive("Mul", scale, size)),
        "" if layer.bias is None else twice(bias, graph.constant(layer.bias * sign.astype(np.int32))),
        **attributes(layer.node),
    )
