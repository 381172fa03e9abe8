"""Average pools between grids as depthwise convolutions with weights of 1: the same sums, in a faster kernel.

    DequantizeLinear -> AveragePool -> grid      becomes      DequantizeLinear -> Conv(ones · 1/places) -> grid

ONNX Runtime's pool of integers goes through floats: four of them are a twentieth of the time of VGG19, beside 16
convolutions of integers. Its depthwise convolution adds the integers in vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.lower.graph import Graph, attributes

# They keep the number of channels.
ALONG = ("QuantizeLinear", "DequantizeLinear", "Relu", "MaxPool", "AveragePool")


def apply(graph: Graph, multiple: int = 1) -> str | None:
    """Replace pools that need no padding; a line about it, or None."""
    found = [node for node in list(graph.nodes) if node.op_type == "AveragePool" and _as_layer(graph, node)]
    more = "s" * (len(found) > 1)
    return f"{len(found)} average pool{more} as depthwise convolution{more}" if found else None


def _as_layer(graph: Graph, pool: Any) -> bool:
    given = attributes(pool)
    kernel = given["kernel_shape"]
    plain = {"kernel_shape", "strides", "count_include_pad", "ceil_mode", "pads", "auto_pad", "dilations"}
    free = not given.get("ceil_mode") and not any(given.get("pads", ())) and "auto_pad" not in given
    undilated = all(d == 1 for d in given.get("dilations", ()))
    if not given.keys() <= plain or not free or not undilated or len(kernel) != 2:
        return False
    x = graph.producer(pool.input[0])
    channels = _channels(graph, pool.input[0])
    if x is None or x.op_type != "DequantizeLinear" or not channels or graph.grid(pool.output[0]) is None:
        return False
    from onnx import numpy_helper

    shape = graph.constant(np.array([channels, 1, *kernel]))
    ones = graph.derive("ConstantOfShape", shape, value=numpy_helper.from_array(np.ones(1, np.int8)))
    scale = graph.constant(np.float32(1 / np.prod(kernel)))
    weight = graph.add("DequantizeLinear", ones, scale, graph.constant(np.int8(0)))
    strides = given.get("strides", [1, 1])
    graph.redirect(
        pool.output[0],
        graph.add("Conv", pool.input[0], weight, group=channels, kernel_shape=kernel, strides=strides),
    )
    return True


def _channels(graph: Graph, name: str) -> int:
    """Of a value behind a layer; 0 where that can't be seen."""
    node = graph.producer(name)
    while node is not None and node.op_type in ALONG:
        node = graph.producer(node.input[0])
    layer = graph.layer(node) if node is not None and node.op_type == "Conv" else None
    return layer.outputs if layer else 0
