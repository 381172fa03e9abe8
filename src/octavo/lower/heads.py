"""Convolutions whose results are floats, as one product of integers for all that read the same value.

    of kernels above 1x1: Pad, then the places of a window side by side as channels
    -> Transpose to NHWC -> MatMulIntegerToFloat with weights (in, sum of outputs), a scale per column and the bias
    -> Transpose back -> Split

A convolution whose result is not rounded stays in float in ONNX Runtime; this operator of its own adds integers and
gives floats. The int32 sums are those of the quantized network, exactly; what remains is the rounding of float32 when
the scale is multiplied and the bias added. The Transpose to NHWC meets the one that ONNX Runtime puts behind its
convolutions, and both are gone. P-Net's two heads: 137 instead of 884 us; slim with its heads of 3x3 gathered 1.15
times as fast (benchmarks/lowering.py). Split before the Transpose back: P-Net .95, slim 1.00.

Gemms need none of this: they are integer products with float results as they are, and one of all heads is no
faster than one each (1.00 in R-Net and O-Net).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from octavo.lower.graph import Graph, Layer, Window, window

ENDLESS = 2**31 - 1  # a Slice to the end


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Merge what can be merged; a line about it, or None."""
    groups: dict[tuple[str, Window], list[Layer]] = {}
    for layer in graph.layers("Conv"):
        view = window(layer)
        if view is None or view.stride != (1, 1) or graph.grid(layer.node.output[0], "Relu") is not None:
            continue
        groups.setdefault((layer.x, view), []).append(layer)
    for (x, view), layers in groups.items():
        graph.remove(*[layer.node for layer in layers])
        _as_product(graph, gathered(graph, x, view), x, layers)
    return ", ".join(said(groups)) if groups else None


def said(groups: dict[tuple[str, Window], list[Layer]]) -> Iterator[str]:
    """ "2 heads 1x1 as one integer product", a line for each kernel."""
    for kernel in dict.fromkeys(view.kernel for _, view in groups):
        sizes = [len(layers) for (_, view), layers in groups.items() if view.kernel == kernel]
        heads = f"{sum(sizes)} head{'s' * (sum(sizes) > 1)} {kernel[0]}x{kernel[1]}"
        products = "one integer product" if len(sizes) == 1 else f"{len(sizes)} integer products"
        yield f"{heads} as {products}"


def gathered(graph: Graph, x: str, view: Window) -> str:
    """The integers of x as (n, h, w, places of a window · channels): first rows, then columns, then channels."""
    grid = graph.producer(x)
    assert grid is not None
    integers = str(grid.input[0])
    if any((*view.before, *view.after)):
        pads = graph.constant(np.array([0, 0, *view.before, 0, 0, *view.after]))
        integers = graph.add("Pad", integers, pads, grid.input[2])
    integers = graph.add("Transpose", integers, perm=[0, 2, 3, 1])
    for axis, length in ((2, view.kernel[1]), (1, view.kernel[0])):
        if length > 1:
            ends = [place - length + 1 or ENDLESS for place in range(length)]
            bounds = [[graph.constant(np.array([v])) for v in (*b, axis)] for b in enumerate(ends)]
            integers = graph.add("Concat", *(graph.add("Slice", integers, *b) for b in bounds), axis=3)
    return integers


def _as_product(graph: Graph, integers: str, x: str, layers: list[Layer]) -> None:
    grid = graph.producer(x)
    assert grid is not None
    names = [layer.node.output[0] for layer in layers]
    product = graph.add(
        "MatMulIntegerToFloat",
        *(integers, _weights(graph, layers)),
        *(grid.input[1], graph.constant(np.concatenate([layer.scale for layer in layers]))),
        *(grid.input[2], graph.constant(np.int8(0))),
        graph.constant(np.concatenate([_bias(layer) for layer in layers])),
        domain="com.microsoft",
    )
    if len(layers) == 1:
        graph.add("Transpose", product, perm=[0, 3, 1, 2], outputs=names)
        return
    sizes = graph.constant(np.array([layer.outputs for layer in layers]))
    graph.add("Split", graph.add("Transpose", product, perm=[0, 3, 1, 2]), sizes, outputs=names, axis=1)


def _weights(graph: Graph, layers: list[Layer]) -> str:
    """(places · channels, sum of outputs) from what is stored, computed when the file is loaded."""
    stored = [layer.stored[0] for layer in layers]
    joined = graph.derive("Concat", *stored, axis=0) if len(stored) > 1 else stored[0]
    rows = graph.derive("Transpose", joined, perm=[2, 3, 1, 0])
    return graph.derive(
        "Reshape", rows, graph.constant(np.array([-1, sum(layer.outputs for layer in layers)]))
    )


def _bias(layer: Layer) -> np.ndarray:
    if layer.bias is None:
        return np.zeros(layer.outputs, np.float32)
    return (layer.bias * layer.step).astype(np.float32)
