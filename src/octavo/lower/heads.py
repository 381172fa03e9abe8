"""1x1 convolutions that read the same value and are outputs, as one product of integers with a float result.

    Transpose to NHWC -> MatMul with weights (in, sum of outputs), a scale per column
    -> Transpose back -> Add bias -> Split

A convolution whose result is not rounded stays in float in ONNX Runtime; this is one MatMulIntegerToFloat. The
int32 sums are those of the quantized network, exactly; what remains is the rounding of float32 when the scale
is multiplied and the bias added. The Add stands behind the Transpose because ONNX Runtime fuses MatMul and Add
into a float Gemm. P-Net's two heads: 137 instead of 884 us.

Gemms need none of this: they are integer products with float results as they are, and one of all heads is no
faster than one each (1.00 in R-Net and O-Net).
"""

from __future__ import annotations

import numpy as np

from octavo.lower.graph import Graph, Layer, window


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Merge what can be merged; a line about it, or None."""
    done = []
    groups: dict[str, list[Layer]] = {}
    for layer in graph.layers("Conv"):
        if _is_1x1(layer) and graph.grid(layer.node.output[0], "Relu") is None:
            groups.setdefault(layer.x, []).append(layer)
    for x, layers in groups.items():
        graph.remove(*[layer.node for layer in layers])
        _as_matmul(graph, x, layers)
        done.append(f"{len(layers)} head{'s' * (len(layers) > 1)} as one integer MatMul")
    return ", ".join(done) if done else None


def _is_1x1(layer: Layer) -> bool:
    view = window(layer)
    return view is not None and (view.kernel, view.stride, *view.before, *view.after) == (
        (1, 1),
        (1, 1),
        0,
        0,
        0,
        0,
    )


def _as_matmul(graph: Graph, x: str, layers: list[Layer]) -> None:
    names = [layer.node.output[0] for layer in layers]
    weight = graph.constant(np.concatenate([layer.weight[:, :, 0, 0] for layer in layers]).T)
    scale = graph.constant(np.concatenate([layer.scale for layer in layers]))
    bias = np.concatenate([_bias(layer) for layer in layers])
    x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
    x = graph.add("MatMul", x, graph.add_stored(weight, scale, axis=1))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    shift = graph.constant(bias.reshape(1, -1, 1, 1))
    if len(layers) == 1:
        graph.add("Add", x, shift, outputs=names)
        return
    sizes = graph.constant(np.array([layer.outputs for layer in layers]))
    graph.add("Split", graph.add("Add", x, shift), sizes, outputs=names, axis=1)


def _bias(layer: Layer) -> np.ndarray:
    if layer.bias is None:
        return np.zeros(layer.outputs, np.float32)
    return (layer.bias * layer.step).astype(np.float32)
