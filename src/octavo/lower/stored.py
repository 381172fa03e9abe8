"""Weights that lie on a grid of 8 bits, stored as the integers that they are: a quarter of the file.

    float W (rows, ...)  ->  int8 W, a scale for each row -> DequantizeLinear -> what W was, but for rounding

Which they are is seen from the numbers: octavo.quantize.dynamic.weight_only leaves such weights behind, one scale per
output. The runtime computes as before, in float; only the file is smaller. Weights of a kind that an integer operator
reads (octavo.lower.dynamic) are integers already.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from octavo.folder import atomic

SMALLEST = 1024  # values: below, the scales and the nodes outweigh what is saved
OFF = 2e-3  # of a step that a weight may be away from its integer, by rounding of floats
STEPS = 127


def stored(path: str | PathLike[str], out: str | PathLike[str]) -> list[str]:
    """Write `out` from the file `path`; the names of the weights that are integers now."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    graph, done = model.graph, []
    nodes: list[Any] = []
    for constant in list(graph.initializer):
        if constant.data_type != onnx.TensorProto.FLOAT or len(constant.dims) < 2:
            continue
        weight = numpy_helper.to_array(constant)
        if weight.size < SMALLEST or (found := on_grid(weight)) is None:
            continue
        integers, scale, axis = found
        name = constant.name
        parts = {"integers": integers, "scale": scale, "zero": np.zeros(len(scale), np.int8)}
        graph.initializer.remove(constant)
        graph.initializer.extend(numpy_helper.from_array(v, f"{name}_{k}") for k, v in parts.items())
        rows = name if integers.shape == weight.shape else f"{name}_rows"
        given = [f"{name}_{k}" for k in parts]
        nodes.append(helper.make_node("DequantizeLinear", given, [rows], f"{name}_stored", axis=axis))
        if rows != name:
            shape = numpy_helper.from_array(np.array(weight.shape, np.int64), f"{name}_shape")
            graph.initializer.append(shape)
            nodes.append(helper.make_node("Reshape", [rows, shape.name], [name], f"{name}_shaped"))
        done.append(name)
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *own])
    onnx.checker.check_model(model)
    with atomic(out) as temporary:
        onnx.save(model, str(temporary))
    return done


def on_grid(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """int8, a scale for each row, and the rows' axis, where each row is whole steps of its largest value / 127.

    Rows are those of the first axis, of the first two, which become one (the directions of a recurrent layer, then its
    gates), or of the second (of a MatMul, whose outputs come last).
    """
    first = weight.reshape(len(weight), -1)
    if (found := _steps(first)) is not None:
        return found[0].reshape(weight.shape), found[1], 0
    if weight.ndim > 2:
        found = _steps(weight.reshape(int(np.prod(weight.shape[:2])), -1))
        return None if found is None else (*found, 0)
    found = _steps(first.T)
    return None if found is None else (np.ascontiguousarray(found[0].T), found[1], 1)


def _steps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    scale = np.abs(rows).max(1) / STEPS
    steps = rows / np.where(scale == 0, 1, scale)[:, None]
    if np.abs(steps - np.round(steps)).max() > OFF:
        return None
    return np.round(steps).astype(np.int8), scale.astype(np.float32)
