"""The first convolution over pairs of neighbouring columns, for stems with overlapping pools or none.

    Pad to an even number of channels, on the bytes of the image: 3 become 4 (of the value that means 0)
    in NHWC order (n, H, W, 4) and (n, H, W/2, 8) are the same bytes
    conv 3x3, 3 -> C  becomes  conv 3x2, 8 -> 2C, one C for each column of the pair (see blocks.py)
    in NHWC order its result (n, h, w/2, 2C) and (n, h, w, C) are the same bytes

ONNX Runtime keeps integers in NHWC order, so that the Transposes and the Reshape behind the convolution
disappear. Where a pool of 2x2 follows, phases.py is faster (2.19 against 1.85 ms in P-Net). Without a pool, 3x3
and 5x5 stems with padding: 1.9 and 2.1 times as fast.
"""

from __future__ import annotations

import numpy as np

from octavo.lower.blocks import add_folded, axis, fits, in_rows, stem
from octavo.lower.graph import Graph, Grid

PAIR = 2


def apply(graph: Graph, multiple: int) -> str | None:
    """Rewrite the graph where it fits; a line about it, or None. Free sides are multiples of `multiple`."""
    found = stem(graph)
    if found is None or len(graph.shape(found.image)) != 4:
        return None
    if not fits(graph.shape(found.image)[3], PAIR, multiple) or len(found.pixels.input) < 3:
        return None
    down, across = axis(found.window, 0, found.window.stride[0]), axis(found.window, 1, PAIR)
    if down is None or across is None or found.window.stride != (1, 1) or not across.complete:
        return None
    out, channels = found.layer.weight.shape[:2]
    odd = channels % 2
    x = found.image
    if odd:
        pads = graph.constant(np.array([0, 0, 0, 0, 0, 1, 0, 0]))
        x = graph.add("Pad", x, pads, found.pixels.input[2])
    x = in_rows(graph, x, PAIR * (channels + odd))
    x = add_folded(graph, found, x, (1, PAIR), (down, across), channels + odd)
    x = in_rows(graph, x, out)
    x = graph.add_grid(x, Grid(found.grid.nodes[-2:], found.grid.scale, found.grid.zero_point))
    graph.redirect(found.grid.output, x)
    kernel = "x".join(str(side) for side in found.window.kernel)
    return f"stem {kernel} as {down.taps}x{across.taps} on {PAIR * (channels + odd)} channels of column pairs"
