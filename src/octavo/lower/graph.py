"""An ONNX graph to look around in and to change, for the rewrites of this folder.

A rewrite finds its pattern, adds nodes at will and lets the readers of the old value read the new one;
`finish` sorts the nodes and drops what nothing reads any more.

Constants are NumPy arrays, stored or derived. A derived one (padded weights, a product of scales) is a node that
reads constants: the runtime computes it once, when it loads the file, and the file holds a node instead of bytes
that it has already.

A `Layer` is a Conv or Gemm of integers as octavo.export writes it:

    x_q -> DequantizeLinear -> Conv or Gemm -> [Relu] -> QuantizeLinear -> DequantizeLinear -> ...
    weight  int8, one scale per output channel, zero-point 0;    bias  int32 in steps of x_scale · weight_scale
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SHORTEST = 64  # bytes; a derived constant that is shorter is stored, a node takes about as much


@dataclass(frozen=True)
class Layer:
    """weight (out, in, ...) int8, scale (out,), bias (out,) int32 or None, step (out,) of the int32 sum."""

    node: Any
    x: str  # the dequantized input
    stored: tuple[str, str, str]  # names of weight, scale, bias ("" for none)
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
        names = self._stored(node.input[1], np.int8)
        if names is None or self.constants[x.input[1]].ndim:
            return None
        weight, scale = (self.constants[name] for name in names)
        if not scale.ndim:  # one for all
            scale = np.broadcast_to(scale, (len(weight),))
            names = names[0], self.constant(scale)
        step = scale * self.constants[x.input[1]]
        if len(node.input) < 3 or not node.input[2]:
            return Layer(node, node.input[0], (*names, ""), weight, scale, None, step)
        bias = self._stored(node.input[2], np.int32)
        if bias is None or (self.constants[bias[1]] != step).any():
            return None
        return Layer(node, node.input[0], (*names, bias[0]), weight, scale, self.constants[bias[0]], step)

    def _scales(self, node: Any) -> bool:
        given = attributes(node)
        return given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or bool(given.get("transA"))

    def _stored(self, name: str, dtype: type) -> tuple[str, str] | None:
        """Names of integers and scale of a stored tensor with zero-point 0, scales along its first axis or one."""
        node = self.producer(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        integers, scale = (self.constants[value] for value in node.input[:2])
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(1)
        if integers.dtype != dtype or zero.any() or (scale.ndim and attributes(node).get("axis", 1) != 0):
            return None
        return node.input[0], node.input[1]

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

    def derive(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A constant computed from others; its name."""
        from onnx.reference import ReferenceEvaluator

        name = str(self.add(kind, *inputs, **attributes))
        computed: Any = ReferenceEvaluator(self.nodes[-1]).run(None, {i: self.constants[i] for i in inputs})
        self.constants[name] = np.asarray(computed[0])
        return name

    def zeros(self, length: int, dtype: Any) -> str:
        """Zero-points: (length,), of int8 or int32."""
        from onnx import numpy_helper

        zero = numpy_helper.from_array(np.zeros(1, dtype))
        return self.derive("ConstantOfShape", self.constant(np.array([length])), value=zero)

    def add_stored(self, integers: str, scale: str, axis: int = 0) -> str:
        """Stored integers, read with these scales along an axis."""
        zeros = self.zeros(len(self.constants[scale]), self.constants[integers].dtype)
        return str(self.add("DequantizeLinear", integers, scale, zeros, axis=axis))

    def add_layer(self, kind: str, x: str, weight: str, scale: str, bias: str = "", **attributes: Any) -> str:
        """A layer over x, which a DequantizeLinear makes. Its constants by name; "" for no bias."""
        inputs = [x, self.add_stored(weight, scale)]
        if bias:
            inputs.append(self.add_stored(bias, self.step(x, scale)))
        return str(self.add(kind, *inputs, **attributes))

    def step(self, x: str, scale: str) -> str:
        """The scales of a bias: those of x and of the weights multiplied."""
        maker = self.producer(x)
        assert maker is not None
        return self.derive("Mul", maker.input[1], scale)

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

    def derive_scales(self) -> None:
        """Zero-points and the scales of biases follow from what is stored."""
        for layer in self.layers("Conv", "Gemm"):
            _, scale, bias = layer.stored
            for name in layer.node.input[1 : 3 if bias else 2]:
                reader = self.producer(name)
                assert reader is not None
                if not self.constants[reader.input[1]].ndim:
                    continue  # one scale for all takes no room
                reader.input[2] = self.zeros(layer.outputs, self.constants[reader.input[0]].dtype)
                if reader.input[0] == bias:
                    reader.input[1] = self.step(layer.x, scale)

    def finish(self) -> Any:
        """The model: only what the outputs need, every node behind what it reads, equal constants once."""
        read = {name for node in self.nodes for name in node.input}
        first: dict[Any, str] = {}
        same = {
            name: first.setdefault((value.dtype.str, value.shape, value.tobytes()), name)
            for name, value in self.constants.items()
            if name in read
        }
        for node in self.nodes:
            node.input[:] = [same.get(name, name) for name in node.input]
        stored = {
            name: value
            for name, value in self.constants.items()
            if value.nbytes <= SHORTEST or self.producer(name) is None
        }
        order = self._sorted(
            {name: node for node in self.nodes for name in node.output if name not in stored}
        )
        needed = dict.fromkeys(name for node in order for name in node.input if name in stored)
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(order)
        graph.initializer.extend(_tensor(stored[name], name) for name in needed)
        known = {opset.domain for opset in self.model.opset_import}
        for domain in sorted({node.domain for node in order} - known):
            self.model.opset_import.add(domain=domain, version=1)  # ONNX Runtime's own operators
        return self.model

    def _sorted(self, makers: dict[str, Any]) -> list[Any]:
        """The nodes that the outputs need, each behind those it reads."""
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
        return order


def _tensor(value: np.ndarray, name: str) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    if value.dtype == np.int64:  # shapes: a byte for each small number
        return helper.make_tensor(name, TensorProto.INT64, value.shape, value.reshape(-1).tolist())
    return numpy_helper.from_array(value, name)


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
