"""Blocks of pixels as channels: what a convolution's weights become.

An image whose pixels are gathered in blocks of b_y x b_x has b_y · b_x times the channels and as many pixels
less. A convolution of stride s computes, at the outputs s·(phase + b/s·i) that fall into block i,

    y[b/s · i + phase] = sum_k w[k] · x[b·i + s·phase + k - p]          (one axis; p: padding before)

The pixel r = s·phase + k - p lies in block i + floor(r / b), at place r mod b in it. So this is a convolution
of stride 1 over blocks: weight w[k] of phase `phase` goes to the tap floor(r / b) and to the channels of
place r mod b, all other weights are 0; each phase has its own output channels. The sums are the same
integers, in fewer and wider channels, which is what integer kernels are fast at.

Channels: in (x in the block, y in the block, channel), out (phase y, phase x, channel). Zero padding stays
zero padding, of whole blocks. Where the number of outputs is no multiple of the phases, the last are left
out, as a pool of this size without ceil_mode does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from octavo.lower.graph import Graph, Grid, Layer, Window, window


@dataclass(frozen=True)
class Axis:
    """One axis of the convolution over blocks. `complete`: no output is left out."""

    low: int  # the first block that is read, 0 or less
    taps: int
    before: int  # padding, blocks
    after: int
    phases: int
    complete: bool


def axis(view: Window, which: int, block: int) -> Axis | None:
    """Axis 0 (height) or 1 (width) of a window over blocks of this many pixels; sides are multiples of it.

    None where a stride does not fit into the block, or no padding gives the right number of outputs.
    """
    kernel, stride = view.kernel[which], view.stride[which]
    before, after = view.before[which], view.after[which]
    if block % stride:
        return None
    phases = block // stride
    low = -before // block
    high = (stride * (phases - 1) + kernel - 1 - before) // block
    # With a side of m blocks the convolution has m·phases + more outputs.
    more = (before + after - kernel) // stride + 1
    missing = more // phases + high  # padding behind
    if missing < 0 or low > 0:
        return None
    return Axis(low, high - low + 1, -low, missing, phases, more % phases == 0)


def fold(
    graph: Graph, weight: str, view: Window, blocks: tuple[int, int], axes: tuple[Axis, Axis], channels: int
) -> str:
    """(out, in, k_y, k_x) -> (phases · out, b_x · b_y · channels, taps_y, taps_x), as the text above says.

    The kernel of each phase in a field of whole blocks, which then become channels. channels: in or more.
    """
    out, given, *kernel = graph.constants[weight].shape
    taps = [a.taps for a in axes]
    field = [a.taps * block for a, block in zip(axes, blocks, strict=True)]
    phases = []
    for phase in product(*(range(a.phases) for a in axes)):
        start = [view.stride[i] * phase[i] - view.before[i] - axes[i].low * blocks[i] for i in (0, 1)]
        behind = [field[i] - start[i] - kernel[i] for i in (0, 1)]
        pads = graph.constant(np.array([0, 0, *start, 0, channels - given, *behind]))
        phases.append(graph.derive("Pad", weight, pads))
    x = graph.derive("Concat", *phases, axis=0)
    split = np.array([len(phases) * out, channels, taps[0], blocks[0], taps[1], blocks[1]])
    x = graph.derive("Transpose", graph.derive("Reshape", x, graph.constant(split)), perm=[0, 5, 3, 1, 2, 4])
    return graph.derive("Reshape", x, graph.constant(np.array([len(phases) * out, -1, *taps])))


@dataclass(frozen=True)
class Stem:
    """The first convolution, on uint8 pixels: image -> DequantizeLinear -> Conv -> [Relu] -> grid."""

    image: str
    pixels: Any  # the DequantizeLinear
    layer: Layer
    window: Window
    grid: Grid


def stem(graph: Graph) -> Stem | None:
    """Where it is the image's only reader and has 1 to 4 channels: wider ones are fast as they are."""
    for image in graph.inputs:
        readers = [
            node for node in graph.readers(image) if node.op_type != "Shape"
        ]  # its size may be asked, too
        pixels = readers[0] if len(readers) == 1 and readers[0].op_type == "DequantizeLinear" else None
        conv = pixels and graph.only_reader(pixels.output[0], "Conv")
        layer = conv and graph.layer(conv)
        if not layer or layer.weight.shape[1] > 4:
            continue
        wide, grid = window(layer), graph.grid(layer.node.output[0], "Relu")
        if wide and grid:
            return Stem(image, pixels, layer, wide, grid)
    return None


def fits(side: int | str, block: int, multiple: int) -> bool:
    """Whether a side of the image, a number or free but a multiple of `multiple`, is a multiple of the block."""
    return (side if isinstance(side, int) else multiple) % block == 0


def add_folded(
    graph: Graph,
    found: Stem,
    blocked: str,
    blocks: tuple[int, int],
    axes: tuple[Axis, Axis],
    channels: int,
) -> str:
    """The stem over the image in blocks of so many channels (uint8), up to the end of its grid; that value."""
    weight, scale, bias = found.layer.stored
    x = graph.add("DequantizeLinear", blocked, *found.pixels.input[1:])
    phases = axes[0].phases * axes[1].phases
    each = lambda name: graph.derive("Concat", *[name] * phases, axis=0)  # noqa: E731
    x = graph.add_layer(
        "Conv",
        x,
        fold(graph, weight, found.window, blocks, axes, channels),
        each(scale),
        each(bias) if bias else "",
        pads=[axes[0].before, axes[1].before, axes[0].after, axes[1].after],
    )
    return graph.add_grid(x, found.grid)


def in_rows(graph: Graph, x: str, channels: int) -> str:
    """(n, C, h, w) -> (n, channels, h, w · C / channels): the bytes of NHWC order as they are."""
    x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
    x = graph.add("Reshape", x, graph.constant(np.array([0, 0, -1, channels])))
    return str(graph.add("Transpose", x, perm=[0, 3, 1, 2]))
