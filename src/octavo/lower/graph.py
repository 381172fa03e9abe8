"""An ONNX graph to look around in and to change, for the rewrites of this folder.

A rewrite finds its pattern, adds nodes at will and lets the readers of the old value read the new one;
`finish` sorts the nodes and drops what nothing reads any more. Constants are NumPy arrays.

A `Layer` is a Conv or Gemm of integers as octavo.export writes it:

    x_q -> DequantizeLinear -> Conv or Gemm -> [Relu] -> QuantizeLinear -> DequantizeLinear -> ...
    weight  int8, one scale per output channel, zero-point 0;    bias  int32 in steps of x_scale · weight_scale
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Layer:
    """weight (out, in, ...) int8, scale (out,), bias (out,) int32 or None, step (out,) of the int32 sum."""

    node: Any
    x: str  # the dequantized input
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    step: np.ndarray

    @property
    def outputs(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class Grid:
    """What rounds a value: the nodes from a layer's output to its last DequantizeLinear, in order."""

    nodes: tuple[Any, ...]
    scale: str  # names of the constants
    zero_point: str

    @property
    def output(self) -> str:
        return str(self.nodes[-1].output[0])


class Graph:
    """A copy of a model that changes."""

    def __init__(self, model: Any) -> None:
        from onnx import ModelProto, numpy_helper

        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.nodes: list[Any] = list(self.model.graph.node)
        self.constants: dict[str, np.ndarray] = {
            c.name: numpy_helper.to_array(c) for c in self.model.graph.initializer
        }
        self.inputs = [value.name for value in self.model.graph.input]
        self.outputs = [value.name for value in self.model.graph.output]
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)}
        self._names |= {*self.constants, *self.inputs, *self.outputs}

    # ---- look

    def producer(self, name: str) -> Any | None:
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[Any]:
        return [node for node in self.nodes if name in node.input]

    def only_reader(self, name: str, *kinds: str) -> Any | None:
        """The one node that reads a value, if it is of these kinds and the value is no output."""
        readers = self.readers(name)
        if name in self.outputs or len(readers) != 1 or readers[0].op_type not in kinds:
            return None
        return readers[0]

    def shape(self, name: str) -> list[int | str]:
        """Of an input or output; free axes as strings."""
        for value in (*self.model.graph.input, *self.model.graph.output):
            if value.name == name:
                return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]
        raise KeyError(name)

    def layers(self, *kinds: str) -> Iterator[Layer]:
        for node in list(self.nodes):
            if node.op_type in kinds and (layer := self.layer(node)):
                yield layer

    def layer(self, node: Any) -> Layer | None:
        """The integer layer that this Conv or Gemm is, None where it is none."""
        if node.op_type == "Gemm" and (attributes(node).get("transB") != 1 or self._scales(node)):
            return None
        x = self.producer(node.input[0])
        if x is None or x.op_type != "DequantizeLinear":
            return None
        weight = self._stored(node.input[1], np.int8)
        if weight is None:
            return None
        integers, scale = weight
        scale = np.broadcast_to(scale, (len(integers),)).astype(np.float32)
        step = scale * self.constants[x.input[1]].astype(np.float32)
        if len(node.input) < 3 or not node.input[2]:
            return Layer(node, node.input[0], integers, scale, None, step)
        bias = self._stored(node.input[2], np.int32)
        if bias is None:
            return None
        step = np.broadcast_to(bias[1], (len(integers),)).astype(np.float32)
        return Layer(node, node.input[0], integers, scale, bias[0], step)

    def _scales(self, node: Any) -> bool:
        given = attributes(node)
        return given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or bool(given.get("transA"))

    def _stored(self, name: str, dtype: type) -> tuple[np.ndarray, np.ndarray] | None:
        """Integers and scale of a stored tensor with zero-point 0, scales along its first axis or one."""
        node = self.producer(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        integers, scale = (self.constants[value] for value in node.input[:2])
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(1)
        if integers.dtype != dtype or zero.any() or (scale.ndim and attributes(node).get("axis", 1) != 0):
            return None
        return integers, scale

    def grid(self, name: str, *before: str) -> Grid | None:
        """The grid that alone reads a value, at once or behind one node of the kinds `before`."""
        nodes = []
        node = self.only_reader(name, "QuantizeLinear", *before)
        if node is not None and node.op_type != "QuantizeLinear":
            nodes.append(node)
            node = self.only_reader(node.output[0], "QuantizeLinear")
        if node is None:
            return None
        back = self.only_reader(node.output[0], "DequantizeLinear")
        if back is None or list(back.input[1:]) != list(node.input[1:]) or len(node.input) < 3:
            return None
        return Grid((*nodes, node, back), node.input[1], node.input[2])

    def same_grid(self, one: Grid, other: Grid) -> bool:
        return all(
            np.array_equal(self.constants[a], self.constants[b])
            for a, b in ((one.scale, other.scale), (one.zero_point, other.zero_point))
        )

    # ---- change

    def constant(self, value: Any) -> str:
        name = self._new("c")
        self.constants[name] = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        return name

    def add(self, kind: str, *inputs: str, outputs: int | list[str] = 1, **attributes: Any) -> Any:
        """Add a node; its output's name, or their list where outputs says more or gives names."""
        from onnx import helper

        names = outputs if isinstance(outputs, list) else [self._new("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if len(names) == 1 else names

    def add_stored(self, integers: np.ndarray, scale: np.ndarray, axis: int = 0) -> str:
        zeros = np.zeros(len(scale), integers.dtype)
        stored = [self.constant(value) for value in (integers, scale, zeros)]
        return str(self.add("DequantizeLinear", *stored, axis=axis))

    def add_layer(
        self,
        kind: str,
        x: str,
        weight: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray | None,
        step: np.ndarray,
        **attributes: Any,
    ) -> str:
        inputs = [x, self.add_stored(weight, scale)]
        if bias is not None:
            inputs.append(self.add_stored(bias, step))
        return str(self.add(kind, *inputs, **attributes))

    def add_grid(self, x: str, grid: Grid) -> str:
        """The nodes of `grid` once more, behind x."""
        for node in grid.nodes:
            x = str(self.add(node.op_type, x, *node.input[1:], **attributes(node)))
        return x

    def redirect(self, old: str, new: str) -> None:
        """Whoever read `old` reads `new`, an output keeps its name, and what nothing reads now is gone."""
        maker = self.producer(new)
        assert maker is not None
        if old in self.outputs:
            self.remove(self.producer(old))
            maker.output[:] = [old if name == new else name for name in maker.output]
            old, new = new, old
        for node in self.nodes:
            if node is not maker:
                node.input[:] = [new if name == old else name for name in node.input]
        while dead := self._unread():
            self.remove(*dead)

    def _unread(self) -> list[Any]:
        read = {name for node in self.nodes for name in node.input} | {*self.outputs}
        return [node for node in self.nodes if not read.intersection(node.output)]

    def remove(self, *nodes: Any) -> None:
        self.nodes = [node for node in self.nodes if not any(node is gone for gone in nodes)]

    def _new(self, start: str) -> str:
        number = len(self._names)
        while f"{start}{number}" in self._names:
            number += 1
        self._names.add(f"{start}{number}")
        return f"{start}{number}"

    def finish(self) -> Any:
        """The model: only what the outputs need, every node behind what it reads, equal constants once."""
        from onnx import numpy_helper

        makers = {name: node for node in self.nodes for name in node.output}
        done: set[str] = set()
        order: list[Any] = []

        def visit(name: str) -> None:
            stack = [name]
            while stack:
                node = makers.get(stack[-1])
                if node is None or stack[-1] in done:
                    stack.pop()
                    continue
                waiting = [i for i in node.input if i in makers and i not in done]
                if waiting:
                    stack += waiting
                else:
                    done.update(node.output)
                    order.append(node)

        for name in self.outputs:
            visit(name)
        first: dict[Any, str] = {}
        kept: dict[str, np.ndarray] = {}
        for node in order:
            for i, name in enumerate(node.input):
                if name in self.constants:
                    value = self.constants[name]
                    key = (value.dtype.str, value.shape, value.tobytes())
                    node.input[i] = first.setdefault(key, name)
                    kept[node.input[i]] = value
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(order)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in kept.items())
        return self.model


def attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@dataclass(frozen=True)
class Window:
    """Kernel, stride and zero padding of a Conv, each (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]


def window(layer: Layer) -> Window | None:
    """Of a plain two-dimensional Conv: not grouped, not dilated, padding written out. None for another."""
    given = attributes(layer.node)
    if layer.node.op_type != "Conv" or layer.weight.ndim != 4 or given.get("group", 1) != 1:
        return None
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or any(d != 1 for d in given.get("dilations", [])):
        return None
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    height, width = layer.weight.shape[2:]
    down, across = given.get("strides", [1, 1])
    return Window((height, width), (down, across), (top, left), (bottom, right))
