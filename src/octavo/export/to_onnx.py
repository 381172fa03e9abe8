"""nn.Module -> an ONNX file that takes raw uint8 pixels.

A float network is written with BatchNorm folded. A quantized one is written as a Q/DQ graph: each grid is a
QuantizeLinear and a DequantizeLinear, weights and int32 biases are stored as integers with a DequantizeLinear.
Runtimes turn DequantizeLinear -> Conv -> QuantizeLinear into one integer convolution. Opset 19; every
zero-point is written out, since ONNX Runtime's matcher wants to see it.

Where a grid holds exactly the 256 values of a pixel (target cpu), the image needs no QuantizeLinear: its
bytes are the integers. Else the normalisation stands in front: Cast, Sub, Mul.

    export(network, "pnet.onnx", example, target="cpu", dynamic={2: "h", 3: "w"}, outputs=["face", "box"],
           preprocessing={"offset": 128, "scale": 1 / 128})
"""

from __future__ import annotations

import ast
import copy
import logging
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octavo.folder import atomic
from octavo.quantize.fake import FakeQuant, QuantLayer
from octavo.quantize.prepare import QuantModel, TraceError, fold, grid_at, grid_before, grids

OPSET = 19  # the first with all we write; TensorRT takes 19 and 20, ONNX Runtime 1.31 trips over s8 from 21
TARGETS = ("cpu", "tensorrt")


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    target: str | None = None,
    dynamic: Mapping[int, str] | None = None,
    outputs: Sequence[str],
    preprocessing: Mapping[str, Any],
    tail: nn.Module | None = None,
) -> int:
    """Write `module`, float or prepared and calibrated, as ONNX and return the file's size in bytes.

    example: one batch (n, c, h, w) as the module takes it, or of uint8 pixels; only its shape counts.
    target: must be that of the module's scheme; None for float modules.
    dynamic: axes of the image that may vary, with a name each. outputs: a name for each output, in order.
    preprocessing: {"offset", "scale"}, the module takes (pixels - offset) * scale.
    tail: computed in float of the module's outputs, such as a detector's decoding; `outputs` are then its own.
    The file has one input "image", uint8. It replaces an older one in one step. ValueError for what can't be.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("export needs the onnx package: pip install 'octavo[train]'") from None
    if isinstance(module, QuantModel):
        network = _quantized(module, target, preprocessing)
    elif grids(module):
        raise ValueError(f"{type(module).__name__} holds quantizers but was not made by prepare")
    else:
        network = Normalised(_float(module), preprocessing)
    if tail is not None:
        network = Then(network, tail)
    model = _to_onnx(network, example, dict(dynamic or {}))
    _name_interface(model, outputs, dict(dynamic or {}))
    _shrink(model)
    align(model)
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


# ---- the module that is written


class Normalised(nn.Module):
    """Pixels -> what the network takes."""

    def __init__(self, network: nn.Module, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.offset, self.scale = float(preprocessing["offset"]), float(preprocessing["scale"])

    def forward(self, image: Tensor) -> Any:
        return self.network((image.to(torch.float32) - self.offset) * self.scale)


class Then(nn.Module):
    """A network, and what is computed of its outputs."""

    def __init__(self, network: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.network, self.tail = network, tail

    def forward(self, image: Tensor) -> Any:
        outputs = self.network(image)
        return self.tail(*([outputs] if isinstance(outputs, Tensor) else outputs))


class _Grid(nn.Module):
    """QuantizeLinear and DequantizeLinear, or the second alone."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: FakeQuant, read_integers: bool = False) -> None:
        super().__init__()
        self.read_integers = read_integers  # the input is integer already
        dtype = torch.int8 if grid.grid.signed else torch.uint8
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.to(dtype))
        full = (-128, 127) if grid.grid.signed else (0, 255)
        # QuantizeLinear saturates at the type's ends: a smaller grid needs its own.
        self.limits = None if (grid.grid.low, grid.grid.high) == full else [float(x) for x in grid.range()]

    def forward(self, x: Tensor) -> Tensor:
        if not self.read_integers:
            if self.limits is not None:
                x = x.clamp(*self.limits)
            x = _operator("QuantizeLinear", (x, self.scale, self.zero_point), self.zero_point.dtype, x.shape)
        return _operator("DequantizeLinear", (x, self.scale, self.zero_point), torch.float32, x.shape)


class _Integers(nn.Module):
    """A stored tensor of integers (rows, ...), read through DequantizeLinear."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, integers: Tensor, scale: Tensor, zero_point: Tensor, shape: Sequence[int], axis: int
    ) -> None:
        super().__init__()
        self.shape, self.axis = tuple(shape), axis if scale.dim() else None
        self.register_buffer("integers", integers.contiguous())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.to(integers.dtype))

    def forward(self) -> Tensor:
        inputs = (self.integers, self.scale, self.zero_point)
        axis: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        x = _operator("DequantizeLinear", inputs, torch.float32, self.integers.shape, axis)
        return x if self.integers.shape == self.shape else x.reshape(self.shape)


class _Layer(nn.Module):
    """A QuantLayer at one place of the network, with its integers stored."""

    def __init__(self, layer: QuantLayer, before: FakeQuant | None) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer.layer)
        grid, weight = layer.weight_grid, layer.weight.detach()
        integers = grid.integers(weight)
        if grid.grid.granularity == "group":
            integers = grid.rows(integers)
        self.weight = _Integers(integers, grid.scale, grid.zero_point, weight.shape, grid.axis)
        self.bias: nn.Module | None = None
        if layer.integer_bias and layer.bias is not None and before is not None:
            scale = before.scale * grid.scale
            bias = torch.round(layer.bias.detach() / scale).to(torch.int32)
            self.bias = _Integers(bias, scale, torch.zeros_like(scale), bias.shape, 0)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.layer.bias if self.bias is None else self.bias()
        return functional_call(self.layer, {"weight": self.weight(), "bias": bias}, (x,))


def _operator(
    name: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[Any],
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes or {}, dtype=dtype, shape=shape, version=OPSET)


def _float(module: nn.Module) -> nn.Module:
    try:
        return fold(module).cpu()
    except (
        TraceError
    ):  # the exporter traces in another way, and may get through; BatchNorm is written as it is
        return copy.deepcopy(module).eval().cpu()


def _quantized(module: QuantModel, target: str | None, preprocessing: Mapping[str, Any]) -> nn.Module:
    scheme = module.meta["scheme"]
    if target not in (None, scheme.target):
        raise ValueError(f"the network was quantized for {scheme.target}, not {target}: quantize it again")
    if scheme.target not in TARGETS:
        raise ValueError(f"target {scheme.target} does not read Q/DQ graphs ({', '.join(TARGETS)} do)")
    for name, grid in grids(module).items():
        if not grid.ready:
            raise ValueError(f"{name} has no range yet: calibrate the model before it is exported")
    module = copy.deepcopy(module).eval().cpu()
    model = copy.deepcopy(module)
    direct = False
    for node in list(model.graph.nodes):
        role, name = node.meta["role"], str(node.target)
        if role == "grid":
            quantizer = grid_at(module, name)
            assert quantizer is not None
            first = node.all_input_nodes[0].op == "placeholder"
            reads_pixels = first and _holds_pixels(quantizer, preprocessing)
            direct = direct or reads_pixels
            model.add_submodule(name, _Grid(quantizer, reads_pixels))
        elif role == "layer" and "before" in node.meta:
            layer = module.get_submodule(name)
            assert isinstance(layer, QuantLayer)
            node.target, node.args = f"{node.name}_layer", node.args[:1]
            model.add_submodule(node.target, _Layer(layer, grid_at(module, node.meta["before"])))
        elif role in ("move", "join") and (shared := grid_before(node)) and not _is_tuple(node):
            # A moved value lies on its grid already; the runtimes' matchers want to see it said.
            others = list(node.users)
            own = model.get_submodule(shared)
            assert isinstance(own, _Grid)
            if own.read_integers:  # the pixels' grid; what was moved is float by now
                shared = f"{shared}_moved"
                quantizer = grid_at(module, str(grid_before(node)))
                assert quantizer is not None
                model.add_submodule(shared, _Grid(quantizer))
            with model.graph.inserting_after(node):
                call = model.graph.call_module(shared, (node,))
            call.meta.update(role="grid", kind="FakeQuant", name=call.name)
            node.replace_all_uses_with(call, delete_user_cb=others.__contains__)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model if direct else Normalised(model, preprocessing)


def _holds_pixels(grid: FakeQuant, preprocessing: Mapping[str, Any]) -> bool:
    """Whether the grid's integers are uint8 pixels as they are."""
    same = torch.tensor(float(preprocessing["scale"])) == grid.scale
    whole = (grid.grid.low, grid.grid.high) == (0, 255)
    return bool(whole and same and grid.zero_point == float(preprocessing["offset"]))


def _is_tuple(node: torch.fx.Node) -> bool:
    return any(user.target is operator.getitem for user in node.users)


# ---- torch -> ONNX


def _to_onnx(network: nn.Module, example: Tensor, dynamic: Mapping[int, str]) -> Any:
    # torch.export takes a size of 1 for a constant: a varying batch is traced with 2.
    sizes = [2 if axis in dynamic and size == 1 else size for axis, size in enumerate(example.shape)]
    image = torch.zeros(sizes, dtype=torch.uint8)
    shapes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(network, (image,), dynamic_shapes=(shapes,), strict=False)
            written = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # torch.export and the ONNX exporter have many of their own
        varying = f" with varying {', '.join(dynamic.values())}" if dynamic else ""
        reason = str(error).strip().split("\n\n")[0]
        raise ValueError(f"cannot export the network{varying}: {reason}") from error
    assert written is not None
    return written.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are about its own parts (torchvision not installed, deprecated pytree calls)."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _name_interface(model: Any, outputs: Sequence[str], dynamic: Mapping[int, str]) -> None:
    """Input "image", outputs as given, varying axes by their names (output axes that follow from them: none)."""
    graph = model.graph
    if len(graph.output) != len(outputs):
        raise ValueError(
            f"the network has {len(graph.output)} outputs, {len(outputs)} names were given: {outputs}"
        )
    renamed = {graph.input[0].name: "image"} | {
        o.name: name for o, name in zip(graph.output, outputs, strict=True)
    }
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = renamed[value.name]
    symbols = {}
    for axis, name in dynamic.items():
        size = graph.input[0].type.tensor_type.shape.dim[axis]
        symbols[size.dim_param] = name
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in symbols:
                size.dim_param = symbols[size.dim_param]
            elif size.dim_param:
                size.ClearField("dim_param")


DEFAULTS: dict[str, Any] = {
    **{
        "group": 1,
        "auto_pad": b"NOTSET",
        "storage_order": 0,
        "ceil_mode": 0,
        "alpha": 1.0,
        "beta": 1.0,
        "transA": 0,
    },
    "count_include_pad": 0,
}


def _shrink(model: Any) -> None:
    """Leave out all that only helps to debug the exporter: in a small network it outweighs the weights.

    Layers keep their module's name; every other name becomes a letter or two, equal constants become one.
    """
    graph = model.graph
    del model.metadata_props[:], graph.value_info[:], graph.metadata_props[:]
    model.producer_name, graph.name = "octavo", "g"
    for field in ("producer_version", "doc_string"):
        model.ClearField(field)  # an empty string would still take two bytes
    graph.ClearField("doc_string")
    seen: set[str] = set()
    for node in graph.node:
        name = _module_name(node)
        node.name = next(
            n for n in (name, *(f"{name}_{i}" for i in range(2, len(graph.node) + 2))) if n not in seen
        )
        seen |= {node.name} - {""}
        if not node.name:
            node.ClearField("name")
        del node.metadata_props[:]
        node.ClearField("doc_string")
        kept = [a for a in node.attribute if not _is_default(a)]
        del node.attribute[:]
        node.attribute.extend(kept)
    same: dict[bytes, str] = {}
    merged: dict[str, str] = {}
    for constant in list(graph.initializer):
        name, constant.name = constant.name, ""
        constant.ClearField("doc_string")
        del constant.metadata_props[:]
        merged[name] = same.setdefault(constant.SerializeToString(deterministic=True), name)
        constant.name = name
        if merged[name] != name:
            graph.initializer.remove(constant)
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    short = {value.name: value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_short(merged.get(name, name), short) for name in names]
    for constant in list(graph.initializer):
        if constant.name in short:
            constant.name = short[constant.name]
        else:
            graph.initializer.remove(constant)


def align(model: Any) -> None:
    """Put the values of float32 and int32 constants at multiples of 4 in the file.

    So another file may refer to them (octavo.lower.files): runtimes map such bytes and read them in place. They
    come first, pushed into place by spaces in the doc_string of the one before, all by letters of the graph's
    name: about two bytes for each.
    """
    from onnx import GraphProto, TensorProto

    graph = model.graph
    words = [
        c for c in graph.initializer if c.data_type in (TensorProto.FLOAT, TensorProto.INT32) and c.raw_data
    ]
    others = [c for c in graph.initializer if not any(c is word for word in words)]
    if not words:
        return
    placed = GraphProto()  # of each record the values come last
    placed.initializer.add().CopyFrom(words[0])
    first = placed.ByteSize()
    for word in words[1:]:
        before = placed.initializer[-1]
        placed.initializer.add().CopyFrom(word)
        while (placed.ByteSize() - first) % 4:
            before.doc_string += " "
    placed.initializer.extend(others)
    del graph.initializer[:]
    graph.initializer.extend(placed.initializer)
    start = words[0].SerializeToString(deterministic=True)
    while (model.SerializeToString(deterministic=True).index(start) + len(start)) % 4:
        graph.name += "g"


def align_file(path: str | os.PathLike[str]) -> None:
    """The same for a file of another tool, whose constants may keep their values elsewhere in the record."""
    import onnx

    model = onnx.load(path)
    for constant in model.graph.initializer:
        constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant), constant.name))
    align(model)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _short(name: str, names: dict[str, str]) -> str:
    if not name:
        return name  # an optional input left out
    if name not in names:
        number, text = len(names), ""
        while number or not text:
            number, digit = divmod(number, 26)
            text = chr(97 + digit) + text
        names[name] = text if text not in names.values() else text + "_"
    return names[name]


def _module_name(node: Any) -> str:
    """Where a layer of weights comes from, "conv1.0"; nothing for other nodes."""
    scopes = [p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not scopes:
        return ""
    return str((["", *ast.literal_eval(scopes[0])])[-2]).removeprefix("network.")


def _is_default(attribute: Any) -> bool:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("dilations", "strides"):
        return all(v == 1 for v in value)
    if attribute.name == "pads":
        return not any(value)
    return attribute.name in DEFAULTS and value == DEFAULTS[attribute.name]
