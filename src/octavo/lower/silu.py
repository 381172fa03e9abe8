"""SiLU whole: the two grids inside it left out, for a runtime that fuses a layer and its SiLU.

    Conv -> grid -> y,  Sigmoid(y) -> grid -> s,  y · s -> grid        becomes        Conv -> x · Sigmoid(x) -> grid

For ONNX Runtime octavo.quantize puts y and s on grids, so that each operation is one of integers. OpenVINO multiplies
the int32 sums by their scale, takes SiLU in float and rounds, all in one kernel: the grids inside are two more passes
over memory there, and rounding for nothing. The one rewrite here that computes something else: the same network with
these grids off, which is nearer to the float one. octavo.export compares it with that.
"""

from __future__ import annotations

from typing import Any

from octavo.lower.graph import Graph


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Take the grids away; a line about it, or None."""
    found = [node for node in graph.nodes if node.op_type == "Sigmoid" and _make_whole(graph, node)]
    return f"{len(found)} SiLU without grids inside" if found else None


def _make_whole(graph: Graph, sigmoid: Any) -> bool:
    y = sigmoid.input[0]
    back = graph.producer(y)
    if back is None or back.op_type != "DequantizeLinear" or len(graph.readers(y)) != 2:
        return False
    rounded = graph.producer(back.input[0])
    inside = graph.grid(sigmoid.output[0])
    if rounded is None or rounded.op_type != "QuantizeLinear" or inside is None:
        return False
    product = graph.only_reader(inside.output, "Mul")
    if product is None or {*product.input} != {y, inside.output}:
        return False
    if graph.only_reader(back.input[0], "DequantizeLinear") is None:
        return False
    graph.redirect(inside.output, sigmoid.output[0])
    graph.redirect(y, rounded.input[0])
    return True
