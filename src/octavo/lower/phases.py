"""The first convolution over blocks of 2x2 pixels, and the pool behind it as a maximum over phases.

    even and odd rows as channels, then pairs of columns: on the bytes of the image, 3 channels become 12
    conv 3x3, 3 -> C           becomes conv 2x2, 12 -> 4C, one C for each place in the block (see blocks.py)
    MaxPool 2x2, stride 2      of such a block of outputs is the maximum of its four phases

The maximum is a MaxPool of its own: in NHWC order (n, h, w, 4C) and (n, h, 4w, C) are the same bytes, and of
the latter four neighbours of a row are pooled. Transposes and Reshapes around it cost nothing in ONNX Runtime,
which keeps integers in NHWC order; sizes stay free. A stride of 2 needs no pool, it has one phase: stems of 3x3
(slim) become 1.6 times, of 6x6 (YOLOv5) 2.2 times, of 7x7 (ResNet) 1.6 times as fast.

The blocks are made by two Slices of whole rows, a Concat and, in NHWC order, a Reshape: .94 of the time of P-Net
with SpaceToDepth, which for bytes exists in the newest versions only (1.20 has none, 1.31 has).

Tried and slower: Split and Max (no integer kernel), ReduceMax, DepthToSpace and MaxPool, the four phases as
one 4x4 convolution of stride 2, or as four convolutions, or as a batch of four shifted images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.lower.blocks import Axis, Stem, add_folded, axis, fits, in_rows, stem
from octavo.lower.graph import Graph, Grid, attributes

BLOCK = 2


def apply(graph: Graph, multiple: int) -> str | None:
    """Rewrite the graph where it fits; a line about it, or None. Free sides are multiples of `multiple`."""
    found = stem(graph)
    if found is None or len(graph.shape(found.image)) != 4:
        return None
    if not all(fits(side, BLOCK, multiple) for side in graph.shape(found.image)[2:]):
        return None
    down, across = (axis(found.window, which, BLOCK) for which in (0, 1))
    if down is None or across is None or down.phases != across.phases:
        return None
    pool = _pool(graph, found, (down, across)) if down.phases > 1 else None
    if down.phases > 1 and pool is None:
        return None
    inputs = found.layer.weight.shape[1]
    x = _blocks(graph, found.image, inputs)
    x = add_folded(graph, found, x, (BLOCK, BLOCK), (down, across), inputs)
    end = found.grid.output
    if pool:
        x, end = _maximum(graph, x, found.layer.outputs, pool), pool.output
    graph.redirect(end, x)
    taps, channels = f"{down.taps}x{across.taps}", inputs * BLOCK**2
    kernel = "x".join(str(side) for side in found.window.kernel)
    return f"stem {kernel} as {taps} on {channels} channels of 2x2 pixels{', pool over its phases' if pool else ''}"


def _blocks(graph: Graph, image: str, channels: int) -> str:
    """(n, C, H, W) -> (n, 4C, H/2, W/2), channels by x in the block, y in the block, channel."""
    rows, end, step = (
        graph.constant(np.array([2])),
        graph.constant(np.array([2**31 - 1])),
        graph.constant(np.array([2])),
    )
    even, odd = (graph.add("Slice", image, graph.constant(np.array([y])), end, rows, step) for y in (0, 1))
    return in_rows(graph, graph.add("Concat", even, odd, axis=1), BLOCK**2 * channels)


def _pool(graph: Graph, found: Stem, axes: tuple[Axis, Axis]) -> Grid | None:
    """The 2x2 pool behind the stem's grid with the same grid behind it."""
    pool = graph.only_reader(found.grid.output, "MaxPool")
    if pool is None or not _is_2x2(pool):
        return None
    if attributes(pool).get("ceil_mode") and not all(a.complete for a in axes):
        return None  # it would also pool what is left at the edge
    behind = graph.grid(found.grid.output, "MaxPool")
    return behind if behind and graph.same_grid(behind, found.grid) else None


def _is_2x2(pool: Any) -> bool:
    given = attributes(pool)
    if len(pool.output) > 1 or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    plain = not any(given.get("pads", [])) and all(d == 1 for d in given.get("dilations", []))
    return plain and given["kernel_shape"] == [2, 2] and given.get("strides") == [2, 2]


def _maximum(graph: Graph, x: str, channels: int, pool: Grid) -> str:
    """(n, 4C, h, w) -> (n, C, h, w), with the pool's grid behind it."""
    x = in_rows(graph, x, channels)
    x = graph.add("MaxPool", x, kernel_shape=[1, BLOCK**2], strides=[1, BLOCK**2])
    return graph.add_grid(x, Grid(pool.nodes[1:], pool.scale, pool.zero_point))
