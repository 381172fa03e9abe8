"""Does an exported graph keep the rules of the machine it is for? What breaks one is named, explained, answered.

    for finding in check("pnet.onnx", "tensorrt"):
        print(finding)

Nothing is run: only operators, types and constants are read, so a graph for TensorRT can be judged where there
is none. Each rule is a `Rule` below. TensorRT's are from its documentation of explicit quantization; ONNX
Runtime's were measured with 1.31 (tests/unit/test_check.py asks it again); docs/quantization.md tells them.

    error     the target refuses it, or computes something else than was meant
    warning   it runs, but slower or less exactly than it could
    hint      worth knowing; often meant so

A grid is said by a pair: QuantizeLinear rounds to it, DequantizeLinear reads it. A layer is a Conv, ConvTranspose,
Gemm or MatMul whose weights are stored in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np

from octavo.lower.graph import Graph, attributes

TARGETS = ("tensorrt", "cpu", "openvino", "ncnn")
NAMES = {"tensorrt": "TensorRT", "cpu": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn"}
LEVELS = ("error", "warning", "hint")

PAIR = ("QuantizeLinear", "DequantizeLinear")
CLIPPING = ("Relu", "Clip")  # commute with rounding: an integer kernel does them for nothing
ACTIVATIONS = (
    *CLIPPING,
    "LeakyRelu",
    "PRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Gelu",
    "Mish",
)
MOVES = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Slice",
    "Identity",
    "Pad",
)
# Over these ONNX Runtime moves a DequantizeLinear by itself, not over Flatten and DepthToSpace.
CROSSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "Pad")
INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
SCORE_STEPS = 100  # a score from 0 to 1 on fewer steps than this loses its order


@dataclass(frozen=True)
class Finding:
    """One rule broken at one place."""

    level: str
    rule: str
    node: str  # its name in the file, or what it follows
    what: str
    why: str
    do: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.level}: {self.node}: {self.what}. {self.why} {self.do}"


def check(model: Any, target: str) -> list[Finding]:
    """The rules of `target` that a graph breaks, errors first.

    model: path of an .onnx file, or onnx.ModelProto. ValueError for an unknown target, a file that is no ONNX
    graph, or where the onnx package is missing.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("checking needs the onnx package: pip install 'octavo[train]'") from None
    if target not in TARGETS:
        raise ValueError(f"no target {target!r}; there are: {', '.join(TARGETS)}")
    if isinstance(model, (str, PathLike)):
        path = model
        try:
            model = onnx.load(str(path))
        except FileNotFoundError:
            raise
        except Exception as error:  # protobuf's own kinds
            raise ValueError(f"{path} is no ONNX file ({error})") from None
        if not model.graph.node:
            raise ValueError(f"{path} is no ONNX file, or an empty one")
    view = View(model)
    found = []
    for rule in RULES:
        if target not in rule.levels:
            continue
        for hit in rule.find(view, target):
            level, why = hit.level or rule.levels[target], rule.why.format(target=NAMES[target])
            found.append(Finding(level, rule.name, hit.node, hit.what, why, hit.do or rule.do))
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


@dataclass(frozen=True)
class Hit:
    node: str
    what: str
    do: str = ""  # instead of the rule's
    level: str = ""


@dataclass(frozen=True)
class Rule:
    name: str
    levels: Mapping[str, str]  # of each target that has this rule
    find: Callable[[View, str], Iterator[Hit]]
    why: str
    do: str


# What a rule looks at -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A QuantizeLinear or DequantizeLinear. None: not a constant; dtype None: nothing says it."""

    node: Any
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    dtype: np.dtype | None

    def same(self, other: Point) -> bool:
        """Whether both mean the same grid (what is no constant is trusted)."""
        if self.scale is None or other.scale is None:
            return True
        zeros = [0 if p.zero_point is None else p.zero_point for p in (self, other)]
        shapes = self.scale.shape == other.scale.shape or max(self.scale.size, other.scale.size) == 1
        return bool(shapes and np.array_equal(self.scale, other.scale) and np.all(zeros[0] == zeros[1]))


@dataclass(frozen=True)
class Layer:
    """A node with stored weights. `reader`: the DequantizeLinear of its weights, None where they are floats."""

    node: Any
    x: str
    weight: np.ndarray
    reader: Any | None
    axis: int | None  # of the stored weight's output channels; None: reshaped on the way
    bias: str
    channels: tuple[int, int]  # in, out
    groups: int


class View:
    """A graph by value names."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        graph = Graph(model)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.constants, self.outputs = graph.constants, graph.outputs
        for node in graph.nodes:
            if node.op_type == "Constant" and "value" in attributes(node):
                self.constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
        self.nodes = [node for node in graph.nodes if node.op_type != "Constant"]
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.reading: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.reading.setdefault(name, []).append(node)
        self.inputs = {name: graph.shape(name) for name in graph.inputs if name not in self.constants}
        self.points = [self.point(node) for node in self.nodes if node.op_type in PAIR]
        self.layers = [layer for node in self.nodes if (layer := self._layer(node))]

    def maker(self, name: str, *kinds: str) -> Any | None:
        node = self.makers.get(name)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def readers(self, node: Any) -> list[Any]:
        return [reader for name in node.output for reader in self.reading.get(name, [])]

    def follower(self, node: Any) -> Any | None:
        """The one node that reads what this one makes."""
        readers = self.readers(node)
        return readers[0] if len(readers) == 1 and not set(node.output) & set(self.outputs) else None

    def label(self, node: Any) -> str:
        """The node's name, or where it stands: exporters seldom name a QuantizeLinear."""
        if node.name:
            return str(node.name)
        above, steps = node, 0
        while steps < 8 and above.input and (above := self.maker(above.input[0])) is not None:
            steps += 1
            if above.name:
                return f"{node.op_type} behind {above.name}"
        below = self.readers(node)
        for reader in below:  # grows: the nearest come first
            if reader.name:
                return f"{node.op_type} before {reader.name}"
            below += [r for r in self.readers(reader) if not any(r is b for b in below)]
        return f"{node.op_type} {node.output[0]!r}"

    def point(self, node: Any) -> Point:
        scale = self.constants.get(node.input[1])
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        stored = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        dtype = zero.dtype if zero is not None else stored.dtype if stored is not None else None
        if dtype is None and not (len(node.input) > 2 and node.input[2]):
            before = self.maker(node.input[0], "QuantizeLinear")
            if node.op_type == "QuantizeLinear":
                dtype = np.dtype(np.uint8)  # what ONNX says of a QuantizeLinear without a zero-point
            elif before is not None:
                dtype = self.point(before).dtype
        return Point(node, scale, zero, dtype)

    def is_stored(self, node: Any) -> bool:
        """Whether a Q or DQ node is about a constant: a weight or bias."""
        name = node.input[0]
        before = self.maker(name, "QuantizeLinear")
        return name in self.constants or (before is not None and before.input[0] in self.constants)

    def grid_of(self, name: str) -> Point | None:
        """The grid a value lies on: read at once, or moved since."""
        node = self.maker(name)
        while node is not None and node.op_type in MOVES:
            node = self.maker(node.input[0])
        return self.point(node) if node is not None and node.op_type == "DequantizeLinear" else None

    def quantizer(self, node: Any) -> Point | None:
        """The QuantizeLinear that alone reads what a node makes."""
        after = self.follower(node)
        return self.point(after) if after is not None and after.op_type == "QuantizeLinear" else None

    def reaches(self, node: Any, kind: str) -> bool:
        """Whether a node of this kind comes anywhere after."""
        seen: set[int] = set()
        stack = [node]
        while stack:
            for reader in self.readers(stack.pop()):
                if reader.op_type == kind:
                    return True
                if id(reader) not in seen:
                    seen.add(id(reader))
                    stack.append(reader)
        return False

    def _layer(self, node: Any) -> Layer | None:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        found = self._stored(node.input[1])
        if found is None:
            return None
        weight, reader, turned, reshaped = found
        given, shape = attributes(node), weight.shape
        if reshaped and reader is not None:
            shape = self._shape_after(node.input[1], shape)
        groups, axis = given.get("group", 1), 0
        if node.op_type == "Conv":
            channels = (shape[1] * groups, shape[0])
        elif node.op_type == "ConvTranspose":
            channels, axis = (shape[0], shape[1] * groups), 1
        else:
            axis = 0 if bool(given.get("transB", 0)) != turned else len(shape) - 1
            channels = (shape[1 - axis] if len(shape) == 2 else shape[-2], shape[axis])
        bias = node.input[2] if len(node.input) > 2 and node.op_type != "MatMul" else ""
        return Layer(node, node.input[0], weight, reader, None if reshaped else axis, bias, channels, groups)

    def _stored(self, name: str) -> tuple[np.ndarray, Any | None, bool, bool] | None:
        """(constant, its DequantizeLinear, whether transposed and reshaped on the way) behind a value."""
        reader, turned, reshaped = None, False, False
        for _ in range(8):
            if name in self.constants:
                return self.constants[name], reader, turned, reshaped
            node = self.maker(
                name, "DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Identity"
            )
            if node is None:
                return None
            reader = node if node.op_type == "DequantizeLinear" else reader
            turned ^= node.op_type == "Transpose"
            reshaped |= node.op_type == "Reshape"
            name = node.input[0]
        return None

    def _shape_after(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        node = self.maker(name, "Reshape")
        wanted = None if node is None else self.constants.get(node.input[1])
        return shape if wanted is None else tuple(np.empty(shape, np.bool_).reshape(wanted).shape)


# The rules ------------------------------------------------------------------------------------------


def _opset(view: View, target: str) -> Iterator[Hit]:
    if not view.points:
        return
    if view.opset < 13:
        yield Hit("the file", f"opset {view.opset}, 13 is the least", level="error")
    signed = any(p.dtype == np.int8 and not view.is_stored(p.node) for p in view.points)
    if view.opset > 20 and target != "openvino" and (target == "tensorrt" or signed):
        yield Hit("the file", f"opset {view.opset}, 20 is the last that is known to be good")


def _zero_points(view: View, target: str) -> Iterator[Hit]:
    for p in _said_once(view):
        if p.zero_point is not None and p.zero_point.any():
            yield Hit(view.label(p.node), f"zero-point {_short(p.zero_point)}")


def _types(view: View, target: str) -> Iterator[Hit]:
    for p in _said_once(view):
        if p.dtype is not None and p.dtype.kind in "iu" and p.dtype not in (np.int8, np.int32):
            said = "no zero-point, which means uint8" if p.zero_point is None else f"{p.dtype.name} integers"
            if p.dtype.name not in ("int4", "uint4"):
                yield Hit(view.label(p.node), said)


def _said_once(view: View) -> Iterator[Point]:
    """Every grid: its QuantizeLinear, or the DequantizeLinear of what is stored or given."""
    for p in view.points:
        if p.node.op_type == "QuantizeLinear" or view.maker(p.node.input[0], "QuantizeLinear") is None:
            yield p


def _integer_bias(view: View, target: str) -> Iterator[Hit]:
    for p in view.points:
        if p.dtype == np.int32:
            yield Hit(view.label(p.node), "an int32 bias behind a DequantizeLinear")


def _integer_ops(view: View, target: str) -> Iterator[Hit]:
    for node in view.nodes:
        if node.op_type in INTEGER_OPS or node.domain.startswith("com.microsoft"):
            yield Hit(
                view.label(node), f"{node.op_type} {'of ONNX Runtime alone' if node.domain else ''}".strip()
            )


def _any_pair(view: View, target: str) -> Iterator[Hit]:
    if view.points:
        many = len(view.points)
        yield Hit(
            view.label(view.points[0].node), f"this and {many - 1} more QuantizeLinear and DequantizeLinear"
        )


def _pairs(view: View, target: str) -> Iterator[Hit]:
    for p in view.points:
        before = (
            view.maker(p.node.input[0], "QuantizeLinear") if p.node.op_type == "DequantizeLinear" else None
        )
        if before is not None and not p.same(rounded := view.point(before)):
            what = f"rounded to {_grid(rounded)}, read as {_grid(p)}"
            yield Hit(view.label(p.node), what)


def _scales(view: View, target: str) -> Iterator[Hit]:
    for p in _said_once(view):
        if p.scale is not None and not (np.isfinite(p.scale).all() and (p.scale > 0).all()):
            yield Hit(view.label(p.node), f"scale {_short(p.scale)}")


def _before_activation(view: View, target: str) -> Iterator[Hit]:
    kinds = CLIPPING if target == "cpu" else ACTIVATIONS
    for layer in view.layers:
        rounded = view.quantizer(layer.node)
        back = None if rounded is None else view.follower(rounded.node)
        if back is None or back.op_type != "DequantizeLinear":
            continue
        for activation in view.readers(back):
            # What leaves the network in float behind a rounded head is rounded once, which is meant.
            if activation.op_type in kinds and view.reaches(activation, "QuantizeLinear"):
                yield Hit(
                    view.label(layer.node), f"a QuantizeLinear stands between it and its {activation.op_type}"
                )
                break


def _concat(view: View, target: str) -> Iterator[Hit]:
    for node in view.nodes:
        if node.op_type != "Concat":
            continue
        grids = [view.grid_of(name) for name in node.input if name not in view.constants]
        known = [g for g in grids if g is not None]
        if known and len(known) < len(grids):
            yield Hit(view.label(node), f"{len(grids) - len(known)} of its {len(grids)} inputs have no grid")
        behind = view.quantizer(node)
        both = [*known, *([behind] if behind and known else [])]
        if any(not both[0].same(g) for g in both[1:]):
            said = ", ".join(_grid(g) for g in known) + (f" -> {_grid(behind)}" if behind else "")
            yield Hit(view.label(node), f"its grids differ: {said}")


def _pool(view: View, target: str) -> Iterator[Hit]:
    for node in view.nodes:
        before, behind = (
            (view.grid_of(node.input[0]), view.quantizer(node)) if node.op_type == "MaxPool" else (None, None)
        )
        if before and behind and not before.same(behind):
            yield Hit(view.label(node), f"{_grid(before)} before it, {_grid(behind)} behind it")


def _residual(view: View, target: str) -> Iterator[Hit]:
    makes = {id(layer.node) for layer in view.layers if layer.reader is not None and view.grid_of(layer.x)}

    def from_layer(name: str) -> bool:
        node = view.maker(name)
        while node is not None and node.op_type in ACTIVATIONS:
            node = view.maker(node.input[0])
        return id(node) in makes

    for node in view.nodes:
        if node.op_type != "Add" or any(name in view.constants for name in node.input):
            continue
        on_grid = [view.grid_of(name) is not None for name in node.input]
        layers = [from_layer(name) for name in node.input]
        if all(on_grid) or not (any(on_grid) or any(layers)) or not view.reaches(node, "QuantizeLinear"):
            continue
        # TensorRT and OpenVINO add inside the kernel of the layer whose output is still unrounded.
        if target != "cpu" and sum(on_grid) == 1 and layers[on_grid.index(False)]:
            continue
        bare = [name for name, fine in zip(node.input, on_grid, strict=True) if not fine]
        missing = ", ".join(_from(view, name) for name in bare)
        yield Hit(view.label(node), f"no QuantizeLinear on what comes from {missing}")


def _from(view: View, name: str) -> str:
    node = view.maker(name)
    return f"the input {name!r}" if node is None else view.label(node)


def _inputs(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        on_grid = view.grid_of(layer.x) is not None
        if on_grid and layer.reader is None:
            yield Hit(view.label(layer.node), "its weights are floats, its input is integer", level="hint")
        elif layer.reader is not None and not on_grid:
            yield Hit(view.label(layer.node), "its weights are integers, its input is float")


def _weights(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        if layer.reader is None or layer.axis is None:
            continue
        p, given = view.point(layer.reader), attributes(layer.reader)
        if p.scale is None or given.get("block_size"):
            continue
        name = view.label(layer.node)
        axis = given.get("axis", 1) % layer.weight.ndim
        if p.scale.size == 1 and layer.weight.shape[layer.axis] > 1:
            yield Hit(name, f"one scale for all {layer.weight.shape[layer.axis]} output channels")
        elif p.scale.ndim and p.scale.size > 1 and axis != layer.axis:
            what = f"its weights' scales lie along axis {axis}, output channels along axis {layer.axis}"
            yield Hit(
                name, what, "Quantize the weights again, with the axis of the output channels.", "error"
            )


def _lowest(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        if layer.reader is not None and layer.weight.dtype == np.int8 and (layer.weight == -128).any():
            yield Hit(view.label(layer.node), "its weights use -128")


def _bias_scale(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        bias = view.maker(layer.bias, "DequantizeLinear")
        before = view.maker(layer.x, "DequantizeLinear")
        if layer.reader is None or bias is None or before is None:
            continue
        scales = [view.point(node).scale for node in (bias, before, layer.reader)]
        if any(scale is None for scale in scales):
            continue
        stated, x, w = (np.asarray(scale, np.float64) for scale in scales)
        if w.ndim < 2 and not np.allclose(stated, x * w, rtol=1e-4, atol=0):
            yield Hit(view.label(layer.node), f"its bias has scale {_short(stated)}, not {_short(x * w)}")


def _float_bias(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        if layer.reader is not None and layer.bias in view.constants and view.grid_of(layer.x):
            yield Hit(view.label(layer.node), "its bias is stored as floats")


def _stays_float(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        if layer.reader is None:
            continue
        said = _why_float(view, layer)
        if said:
            yield Hit(view.label(layer.node), *said)


def _why_float(view: View, layer: Layer) -> tuple[str, str] | None:
    """What keeps a layer of integer weights in float in ONNX Runtime, and what to do; None: it is integer."""
    node, kind = layer.node, layer.node.op_type
    if kind == "ConvTranspose":
        return "ONNX Runtime has no integer ConvTranspose", "Leave it in float, or use Resize and Conv."
    before = view.maker(layer.x)
    while before is not None and before.op_type in CROSSED:
        before = view.maker(before.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return (
            f"its input comes from {'the input' if before is None else before.op_type}, not from a DequantizeLinear",
            "Put QuantizeLinear and DequantizeLinear behind what stands before it, with the same grid.",
        )
    bias = view.maker(layer.bias, "DequantizeLinear")
    for what, reader in (("input", before), ("weight", layer.reader), ("bias", bias)):
        if (
            reader is not None
            and (len(reader.input) < 3 or not reader.input[2])
            and (kind != "Conv" or what == "input")
        ):
            return (
                f"the DequantizeLinear of its {what} has no zero-point",
                "Write zero-points out, zeros too.",
            )
    if kind != "Conv":
        return None
    after = view.follower(node)
    clipped = after is not None and after.op_type in CLIPPING
    if clipped:
        after = view.follower(after)
    if after is None or after.op_type != "QuantizeLinear":
        if after is not None and after.op_type in ACTIVATIONS:
            what = f"{after.op_type} stands between it and its QuantizeLinear"
            return what, "Take ReLU where it costs no accuracy."
        if len(view.readers(node)) > 1:
            return (
                "several nodes read its output before it is rounded",
                "Let them all read the DequantizeLinear.",
            )
        return (
            "no QuantizeLinear behind it",
            "A head: fine to keep where outputs must be exact; else Scheme(quantize_outputs=True), or let octavo "
            "export write the lowered form.",
        )
    p = view.point(after)
    if clipped and p.dtype == np.int8 and p.zero_point is not None and int(p.zero_point.flat[0]) != -128:
        return (
            "a ReLU stands before a signed grid that does not start at zero",
            "Quantize for target cpu: unsigned, zero-point 0 after ReLU.",
        )
    return None


def _tiny(view: View, target: str) -> Iterator[Hit]:
    for layer in view.layers:
        if layer.reader is None or layer.node.op_type != "Conv" or not view.grid_of(layer.x):
            continue
        cin, cout = layer.channels
        few = (
            cin // layer.groups % 4 or cout < 16
            if target == "cpu"
            else min(cin, cout) < 16 or layer.groups > 1
        )
        if few:
            yield Hit(view.label(layer.node), f"{cin} -> {cout} channels{_grouped(layer)}")


def _grouped(layer: Layer) -> str:
    return f" in {layer.groups} groups" if layer.groups > 1 else ""


def _mixed(view: View, target: str) -> Iterator[Hit]:
    for node in view.nodes:
        if node.op_type == "Concat":
            scores = [_is_score(view, name) for name in node.input if name not in view.constants]
            point = view.quantizer(node) or next(
                (g for name in node.input if (g := view.grid_of(name))), None
            )
            if any(scores) and not all(scores) and point and point.scale is not None:
                steps = 1 / float(point.scale.max())
                if steps < SCORE_STEPS:
                    what = f"scores and other values on one grid: {steps:.3g} steps from score 0 to 1"
                    yield Hit(view.label(node), what)
        elif node.op_type == "DequantizeLinear" and not view.is_stored(node):
            parts = [r for r in view.readers(node) if r.op_type in ("Split", "Slice")]
            ways = [reader for part in parts for reader in _ways(view, part)]
            scores = [reader.op_type in ("Sigmoid", "Softmax") for reader in ways]
            if any(scores) and not all(scores):
                what = "one grid for a tensor of which a part becomes scores (Sigmoid, Softmax) and a part does not"
                yield Hit(view.label(node), what, level="warning")


def _is_score(view: View, name: str) -> bool:
    node = view.maker(name)
    while node is not None and node.op_type in (*MOVES, *PAIR):
        node = view.maker(node.input[0])
    return node is not None and node.op_type in ("Sigmoid", "Softmax")


def _ways(view: View, node: Any) -> Iterator[Any]:
    """What reads each output of a node first, beyond moves; the node itself for an output of the network."""
    for name in node.output:
        if name in view.outputs:
            yield node
        for reader in view.reading.get(name, []):
            if reader.op_type in (*MOVES, *PAIR):
                yield from _ways(view, reader)
            else:
                yield reader


def _nothing(view: View, target: str) -> Iterator[Hit]:
    if view.layers and not view.points and not any(_integer_ops(view, target)):
        yield Hit("the file", "no QuantizeLinear: every layer runs in float")


def _shapes(view: View, target: str) -> Iterator[Hit]:
    for name, shape in view.inputs.items():
        free = [f"axis {i}" for i, size in enumerate(shape) if i > 0 and not isinstance(size, int)]
        if free:
            yield Hit(f"input {name!r}", f"{', '.join(free)} may vary")


def _prelu(view: View, target: str) -> Iterator[Hit]:
    for node in view.nodes:
        if node.op_type == "PRelu":
            yield Hit(view.label(node), "an operator of its own")


def _grid(p: Point) -> str:
    if p.scale is None:
        return "a grid that is computed"
    zero = 0 if p.zero_point is None else _short(p.zero_point)
    return f"scale {_short(p.scale)}, zero-point {zero}"


def _short(values: np.ndarray) -> str:
    flat = [f"{v:.4g}" for v in np.asarray(values).reshape(-1)[:3]]
    return ", ".join(flat) + (", ..." if np.size(values) > 3 else "")


def _all(level: str, *targets: str) -> dict[str, str]:
    return dict.fromkeys(targets or ("tensorrt", "cpu", "openvino"), level)


RULES: Sequence[Rule] = (
    Rule(
        "any-qdq",
        _all("error", "ncnn"),
        _any_pair,
        "ncnn cannot import Q/DQ graphs.",
        "Export the float network and convert that; ncnn takes its scales from a .table file.",
    ),
    Rule(
        "integer-op",
        {"tensorrt": "error", "ncnn": "error", "openvino": "warning"},
        _integer_ops,
        "{target} reads Q/DQ pairs and makes its integer layers itself; operators of integers are foreign to it.",
        "Export Q/DQ pairs: QuantizeLinear and DequantizeLinear around float layers.",
    ),
    Rule(
        "opset",
        _all("warning"),
        _opset,
        "Scales per channel came with opset 13; from 21 ONNX Runtime 1.31 leaves signed activations in float.",
        "Export with opset 19.",
    ),
    Rule(
        "scale",
        _all("error"),
        _scales,
        "A scale is a positive number: everything else makes zeros, infinities or NaN.",
        "Calibrate again, with images that reach this layer.",
    ),
    Rule(
        "pair",
        _all("error"),
        _pairs,
        "A value is read on another grid than it was rounded to: the numbers are wrong.",
        "Give QuantizeLinear and DequantizeLinear the same scale and zero-point.",
    ),
    Rule(
        "zero-point",
        _all("error", "tensorrt"),
        _zero_points,
        "TensorRT's grids are symmetric: it refuses any other zero-point than 0.",
        "Quantize for target tensorrt.",
    ),
    Rule(
        "type",
        _all("error", "tensorrt"),
        _types,
        "TensorRT's 8-bit grids are signed (int8).",
        "Quantize for target tensorrt.",
    ),
    Rule(
        "int32-bias",
        _all("error", "tensorrt"),
        _integer_bias,
        "TensorRT wants biases in float and rounds them itself.",
        "Quantize for target tensorrt: it leaves biases as they are.",
    ),
    Rule(
        "bias-scale",
        _all("warning", "cpu", "openvino"),
        _bias_scale,
        "An integer kernel adds the bias to its sum, whose steps are input scale times weight scale: with other "
        "steps the layer stays in float.",
        "Round the bias to steps of input scale times weight scale.",
    ),
    Rule(
        "weight-scales",
        {"tensorrt": "warning", "cpu": "hint", "openvino": "hint"},
        _weights,
        "Channels differ in range: one scale for all costs accuracy and saves nothing, and kernels know no other "
        "axis than that of the output channels.",
        'Quantize weights per channel: Grid(granularity="channel").',
    ),
    Rule(
        "lowest-weight",
        _all("warning", "tensorrt"),
        _lowest,
        "TensorRT's weights go from -127 to 127.",
        "Quantize weights with Grid(narrow=True).",
    ),
    Rule(
        "scores-and-boxes",
        _all("error"),
        _mixed,
        "The largest box decides the step, and scores of 0 to 1 fall on few of them.",
        "Keep the heads in float (keep their layers by name), or concatenate behind the last grid.",
    ),
    Rule(
        "stays-float",
        _all("warning", "cpu"),
        _stays_float,
        "The layer was rounded to integers but is computed in float: it loses accuracy and gains no speed.",
        "",
    ),
    Rule(
        "input-or-weight",
        _all("warning", "tensorrt", "openvino"),
        _inputs,
        "An integer layer needs both its input and its weights on grids.",
        "Quantize both, or keep the layer in float by name.",
    ),
    Rule(
        "before-activation",
        _all("warning"),
        _before_activation,
        "Layer and activation are one kernel; a rounding between them splits it, and rounds twice.",
        "Put the grid behind the activation only.",
    ),
    Rule(
        "concat",
        {"tensorrt": "warning", "openvino": "warning", "cpu": "hint"},
        _concat,
        "Joining is copying if all inputs and the output share one grid; else every input is rounded again.",
        "Give all of them one grid (octavo.quantize does).",
    ),
    Rule(
        "max-pool",
        _all("warning"),
        _pool,
        "A maximum is one of its inputs: on the same grid nothing has to be computed again.",
        "Give both sides of MaxPool one grid.",
    ),
    Rule(
        "residual",
        _all("warning"),
        _residual,
        "An Add joins a kernel of integers only if what it adds lies on a grid too.",
        "Quantize the other input of the Add as well.",
    ),
    Rule(
        "float-bias",
        _all("hint", "cpu"),
        _float_bias,
        "ONNX Runtime rounds such biases to int32 when it loads the file, older versions leave the layer in float.",
        "Quantize for target cpu: then the network is calibrated and trained with the rounding.",
    ),
    Rule(
        "channels",
        _all("hint", "tensorrt", "cpu"),
        _tiny,
        "Integer kernels take channels by 4 and 16 (groups one by one): with few, float is often faster.",
        "Measure it; for ONNX Runtime let octavo export write the lowered form, for TensorRT leave it in FP16.",
    ),
    Rule(
        "prelu",
        _all("hint", "ncnn", "cpu"),
        _prelu,
        "{target} computes PRelu in float, behind the layer.",
        "Take ReLU where it costs no accuracy.",
    ),
    Rule(
        "free-shape",
        _all("hint", "openvino"),
        _shapes,
        "OpenVINO compiles for every new shape, and its kernels for fixed shapes are faster.",
        "Export with fixed sizes where the images have one size.",
    ),
    Rule(
        "not-quantized",
        _all("hint"),
        _nothing,
        "{target} quantizes nothing by itself.",
        "octavo quantize, then octavo export.",
    ),
)
