"""Products of integers whose range is found at each call, as products of floats: the weights stay stored integers.

    DynamicQuantizeLinear(x) -> MatMulInteger(., W) -> Cast -> Mul(s_x s_W)   becomes   x @ DequantizeLinear(W, s_W)

ONNX Runtime multiplies such integers faster than floats. OpenVINO carries out the five nodes one by one, .8 of float's
speed for a reader's line; where it finds stored integers instead, it rounds their inputs by itself, 32 at a time
(its dynamic quantization). So this leaves the rounding to the runtime; octavo.export compares it with the network that
rounds no inputs.
"""

from __future__ import annotations

from typing import Any

from octavo.lower.graph import Graph


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Replace what can be replaced; a line about it, or None."""
    found = [node for node in list(graph.nodes) if node.op_type == "MatMulInteger" and _in_float(graph, node)]
    return f"{len(found)} products of floats and stored integers" if found else None


def _in_float(graph: Graph, product: Any) -> bool:
    rounded = graph.producer(product.input[0])
    weight, zero = product.input[1], product.input[3] if len(product.input) > 3 else ""
    if rounded is None or rounded.op_type != "DynamicQuantizeLinear" or weight not in graph.constants:
        return False
    if zero and graph.constants[zero].any():
        return False
    cast = graph.only_reader(product.output[0], "Cast")
    scaled = graph.only_reader(cast.output[0], "Mul") if cast is not None else None
    if cast is None or scaled is None:
        return False
    scales = graph.producer(next(name for name in scaled.input if name != cast.output[0]))
    scale = next((n for n in scales.input if n in graph.constants), None) if scales is not None else None
    if scale is None or graph.constants[scale].shape != graph.constants[weight].shape[1:]:
        return False
    read = graph.add_stored(weight, scale, axis=1)
    graph.redirect(scaled.output[0], graph.add("MatMul", rounded.input[0], read))
    return True
