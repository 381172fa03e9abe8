"""From a float network to the same network on integer grids, for any module that torch.fx can trace.

    trace        the forward pass becomes a list of nodes; submodules of torch.nn stay whole
    fold         BatchNorm disappears in the convolution or linear layer before it: it is one affine map
    split        SiLU becomes x · sigmoid(x) where the scheme wants integers all the way
    place        a FakeQuant behind each value that an integer kernel will read
    replace      each Conv, ConvTranspose and Linear becomes a QuantLayer, weight and bias on grids

Where grids go (FACTS.md, section 4): behind the activation function, never between it and its layer;
values that are only moved (MaxPool, Flatten, nearest Upsample, ...) keep their grid; everything that enters a
Concat shares one; both operands of Add, Mul and MatMul have one. Operations behind the last quantized layer
feed only the outputs and stay in float, as do layers that the scheme skips and kinds not known here.

    print(prepare(network, Scheme.for_target("cpu")))      one line per layer: grids, scales, integer or float
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from octavo.quantize.fake import MODES, FakeQuant, QuantLayer
from octavo.quantize.scheme import Grid, Scheme

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# What a node does with values decides where grids go. Keys: module types, functions, method names.
KINDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "layer": {kind.__name__: (kind,) for kind in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)},
    "activation": {  # follows a layer; the grid stands behind it
        "ReLU": (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"),
        "ReLU6": (nn.ReLU6, F.relu6),
        "LeakyReLU": (nn.LeakyReLU, F.leaky_relu),
        "PReLU": (nn.PReLU, F.prelu, torch.prelu),
        "SiLU": (nn.SiLU, F.silu),
        "Hardswish": (nn.Hardswish, F.hardswish),
        "Hardsigmoid": (nn.Hardsigmoid, F.hardsigmoid),
        "Sigmoid": (nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"),
        "Tanh": (nn.Tanh, F.tanh, torch.tanh, "tanh"),
        "GELU": (nn.GELU, F.gelu),
        "ELU": (nn.ELU, F.elu),
    },
    "move": {  # values come out as they went in
        "MaxPool": (
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d),
            *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
            *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
        ),
        "Flatten": (nn.Flatten, torch.flatten, "flatten"),
        "Reshape": (
            *(nn.Unflatten, torch.reshape, torch.squeeze, torch.unsqueeze),
            *("reshape", "view", "squeeze", "unsqueeze", "contiguous", "expand"),
        ),
        "Transpose": (torch.permute, torch.transpose, "permute", "transpose"),
        "Split": (torch.split, torch.chunk, "split", "chunk", operator.getitem),
        "Upsample": (nn.UpsamplingNearest2d,),
        "PixelShuffle": (nn.PixelShuffle, nn.PixelUnshuffle, F.pixel_shuffle, F.pixel_unshuffle),
        "ZeroPad": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, F.pad),  # zero is on every grid
        "Identity": (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout),
    },
    "join": {"Concat": (torch.cat, torch.concat)},
    "arithmetic": {  # reads grids, makes new values
        "Add": (operator.add, operator.iadd, torch.add, "add", "add_"),
        "Mul": (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
        "MatMul": (operator.matmul, torch.matmul, torch.bmm, "matmul"),
        "AvgPool": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
        "AdaptiveAvgPool": (
            *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
            *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        ),
        "Mean": (torch.mean, "mean"),
        "Upsample": (nn.Upsample, F.interpolate, nn.UpsamplingBilinear2d),
    },
    "size": {"Size": (getattr, len, "size", "dim", "numel")},  # numbers, not values
}
ROLES = {key: (role, name) for role, kinds in KINDS.items() for name, keys in kinds.items() for key in keys}
TWO_OPERANDS = ("Add", "Mul", "MatMul")
OPS = {"placeholder": "input", "output": "output", "get_attr": "constant"}
FUSED = ("ReLU", "ReLU6")  # clipping commutes with rounding: it costs an integer kernel nothing


class TraceError(ValueError):
    """The network's forward pass depends on its data, so no graph of it exists."""


class QuantModel(fx.GraphModule):
    """A network on grids. meta["scheme"] says which; each node's meta has its "role", "kind" and "name" (see KINDS).

    A quantized layer's node knows the quantizers "before" and "after" it by name, or None.
    """

    def __str__(self) -> str:
        from octavo.quantize.describe import describe

        return describe(self)


def prepare(module: nn.Module, scheme: Scheme) -> QuantModel:
    """A copy of `module`, BN folded, with its quantizers in place and off: `calibrate` chooses their ranges.

    The copy computes as the float network does until then. Its state_dict has the folded weights under the float
    network's names, plus the scales; loading such a state makes a fresh copy ready to run.
    Raises TraceError (a ValueError) where the forward pass can't be traced, naming the line.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}: quantize the float32 network (module.float())")
    folded = fold(module, scheme.skip)
    model = QuantModel(folded, folded.graph, type(module).__name__)
    model.meta["scheme"] = scheme
    if scheme.split_silu:
        _split_silu(model, scheme)
    _assign_roles(model)
    for sharing in _wanted(model, scheme):
        _insert_grid(model, scheme, sharing)
    for node in list(model.graph.nodes):
        if _is_quantized(node, scheme):
            _replace_layer(model, scheme, node)
    model.graph.lint()
    model.recompile()
    return model.eval()


def set_mode(model: nn.Module, mode: str) -> None:
    """Switch all quantizers: "off", "observe", "quantize" or "adapt" (see FakeQuant)."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    for grid in grids(model).values():
        if mode == "quantize" and not grid.ready:
            raise ValueError(f"{grid.name} has no range yet: calibrate the model, or load a calibrated state")
        grid.mode, grid.observer = mode, None


def without_grids_inside(model: nn.Module) -> nn.Module:
    """A copy whose grids inside activations (Scheme.split_silu) are off: what a runtime computes that fuses these."""
    model = copy.deepcopy(model)
    for network in model.modules():
        for node in network.graph.nodes if isinstance(network, QuantModel) else ():
            if node.meta["role"] == "grid" and node.meta.get("inside"):
                network.get_submodule(str(node.target)).mode = "off"  # type: ignore[assignment]
    return model


def grids(model: nn.Module) -> dict[str, FakeQuant]:
    """All quantizers, of activations and weights, by name in the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuant)}


def grid_at(model: nn.Module, name: str | None) -> FakeQuant | None:
    """The quantizer of this name."""
    if name is None:
        return None
    found = model.get_submodule(name)
    assert isinstance(found, FakeQuant), name
    return found


def layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers by name, in the order of the network."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLayer)}


# ---- trace and fold


class _Tracer(fx.Tracer):
    def __init__(self, skip: Sequence[str]) -> None:
        super().__init__()
        self.scheme = Scheme(skip=tuple(skip))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What is skipped needn't be traceable: it stays as it is.
        return super().is_leaf_module(m, module_qualified_name) or self.scheme.skips(module_qualified_name)


def trace(module: nn.Module, skip: Sequence[str] = ()) -> fx.GraphModule:
    """A traced copy of `module`, in evaluation mode. Modules whose name fits a pattern of `skip` stay whole."""
    module = copy.deepcopy(module).eval()
    try:
        graph = _Tracer(skip).trace(module)
    except Exception as error:  # whatever the network's own code raised on values that aren't there yet
        inside_torch = str(Path(torch.__file__).parent)
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside_torch)
        ]
        at = frames[-1]
        raise TraceError(
            f"cannot trace {type(module).__name__}: {at.filename}, line {at.lineno}: `{at.line}` ({error}). "
            "A traced forward pass takes the same way whatever the values and shapes: take such a decision in "
            "__init__, move it out of the network, or put it into a submodule and skip that by name"
        ) from error
    model = fx.GraphModule(module, graph, type(module).__name__)
    model.graph.eliminate_dead_code()
    return model


def fold(module: nn.Module, skip: Sequence[str] = ()) -> fx.GraphModule:
    """The float twin of `module` without BatchNorm: folded into the layers before, where there is one."""
    model = trace(module, skip)
    for layer, norm, nodes in norms_behind(model):
        _fold_into(model.get_submodule(layer), model.get_submodule(norm))
        for node in nodes:
            node.replace_all_uses_with(node.all_input_nodes[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return model


def norms_behind(model: fx.GraphModule) -> Iterator[tuple[str, str, list[fx.Node]]]:
    """The layers of a traced network that a BatchNorm, and nothing else, follows: both names, the norm's calls.

    The graph may be changed on the way: a second norm is found behind the layer once the first is taken out.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    for name, nodes in calls.items():
        norm = model.get_submodule(name)
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            continue
        # A layer called twice counts if this norm, and nothing else, follows each call.
        inputs = [node.all_input_nodes[0] for node in nodes]
        owner = str(inputs[0].target)
        if inputs != calls.get(owner) or any(len(node.users) > 1 for node in inputs):
            continue
        if isinstance(model.get_submodule(owner), (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            yield owner, name, nodes


@torch.no_grad()
def _fold_into(layer: Any, norm: Any) -> None:
    """norm(W x + b) = (g W) x + (b - mean) g + shift, with g = gain / sqrt(var + eps), in float64."""
    weight, mean = layer.weight.double(), norm.running_mean.double()
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.affine:
        gain = gain * norm.weight.double()
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    bias = (bias - mean) * gain + (norm.bias.double() if norm.affine else 0)
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, ...); group g owns a slice of both
        shape = weight.shape
        weight = weight.reshape(layer.groups, -1, *shape[1:])
        gain = gain.reshape(layer.groups, 1, shape[1], *[1] * (len(shape) - 2))
        weight = (weight * gain).reshape(shape)
    else:
        weight = weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(weight.float())
    layer.bias = nn.Parameter(bias.float())


# ---- split


def _split_silu(model: fx.GraphModule, scheme: Scheme) -> None:
    """SiLU(W x) as y · sigmoid(y), y = W x: two operations of integers, where a float SiLU would keep W in float.

    Then y and its sigmoid lie on grids as well, as operands of a product do. The product keeps the node's name. What
    stands inside such an activation knows its layer: it is in float when the layer is.
    """
    for node in list(model.graph.nodes):
        key: Any = type(model.get_submodule(node.target)) if node.op == "call_module" else node.target
        if ROLES.get(key) != ("activation", "SiLU"):
            continue
        (value,) = node.all_input_nodes
        layer = model.get_submodule(value.target) if value.op == "call_module" else None
        if ROLES.get(type(layer), "")[:1] != ("layer",) or scheme.skips(value.target) or len(value.users) > 1:
            continue
        with model.graph.inserting_before(node):
            sigmoid = model.graph.call_function(torch.sigmoid, (value,))
        value.meta["inside"] = sigmoid.meta["inside"] = value.target
        node.op, node.target, node.args, node.kwargs = "call_function", operator.mul, (value, sigmoid), {}


# ---- place the grids


def _assign_roles(model: fx.GraphModule) -> None:
    """node.meta: "role" and "kind" (see KINDS), "name" (of the module, or of the node)."""
    for node in model.graph.nodes:
        key: Any = type(model.get_submodule(node.target)) if node.op == "call_module" else node.target
        role, kind = ROLES.get(key, ("other", getattr(key, "__name__", str(key))))
        if node.op in OPS:
            role, kind = OPS[node.op], node.op
        elif role != "size" and not values_of(node):  # arithmetic on sizes
            role, kind = "size", "Size"
        elif kind == "Upsample" and _is_nearest(node, model):
            role = "move"
        elif _is_special(node, key, kind):
            role = "other"
        node.meta.update(role=role, kind=kind, name=node.target if node.op == "call_module" else node.name)


def _is_special(node: fx.Node, key: Any, kind: str) -> bool:
    """Forms of known operations that the rules for their kind don't fit."""
    if key is getattr:  # sizes, but not tensors such as x.mT
        return node.args[1] not in ("shape", "ndim", "dtype", "device")
    if key is operator.getitem:  # one of several results of something unknown
        return bool(values_of(node)[0].meta["role"] == "other")
    if key is F.pad:
        return node.kwargs.get("mode", "constant") != "constant" or bool(node.kwargs.get("value"))
    if kind == "Concat":
        return any(n.meta["role"] == "constant" for n in node.all_input_nodes)
    if kind in TWO_OPERANDS:  # x + 1: integer kernels want both operands on grids
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in values_of(node)]
        return len(operands) < 2 or bool(node.kwargs)
    return False


def _is_nearest(node: fx.Node, model: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "mode", "").startswith("nearest")
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return str(mode).startswith("nearest")


def values_of(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads, constants and sizes left out."""
    return [n for n in node.all_input_nodes if n.meta["role"] not in ("size", "constant")]


def _is_quantized(node: fx.Node, scheme: Scheme) -> bool:
    return node.meta["role"] == "layer" and not scheme.skips(node.meta["name"])


def _sources(node: fx.Node) -> list[fx.Node]:
    """Where a value that was only moved and joined comes from."""
    if node.meta["role"] in ("move", "join"):
        return [source for value in values_of(node) for source in _sources(value)]
    return [node]


def _wanted(model: fx.GraphModule, scheme: Scheme) -> list[list[fx.Node]]:
    """The nodes behind which a grid shall stand, in order; those in one list share it."""
    if scheme.activation is None:
        return []
    wanted: list[fx.Node] = []
    read: set[fx.Node] = set()  # values that a quantized layer reads, directly or through other operations
    for node in reversed(model.graph.nodes):
        role, values = node.meta["role"], values_of(node)
        if _is_quantized(node, scheme):
            if scheme.quantize_outputs and node not in read and node.meta["kind"] != "Linear":
                wanted.append(_behind_relu(node))
                wanted[-1].meta["head"] = True
            wanted.append(values[0])
            read.add(values[0])
        elif node in read and role in ("activation", "move", "join", "arithmetic"):
            read.update(values)
            # An activation follows its layer without a grid between them, but not what was moved or joined.
            apart = role == "activation" and values[0].meta["role"] in ("move", "join")
            if (apart or role in ("join", "arithmetic")) and not scheme.skips(node.meta["name"]):
                wanted += values + [node] * (role == "join")
    sharing: list[set[fx.Node]] = []
    for value in wanted:
        sources = set(_sources(value))
        overlapping = [group for group in sharing if group & sources]
        sharing = [group for group in sharing if not group & sources] + [sources.union(*overlapping)]
    order = {node: i for i, node in enumerate(model.graph.nodes)}
    return sorted((sorted(group, key=order.__getitem__) for group in sharing), key=lambda g: order[g[0]])


def _behind_relu(node: fx.Node) -> fx.Node:
    """The ReLU that alone reads a layer's output, else the layer."""
    user = next(iter(node.users), node)
    return user if len(node.users) == 1 and user.meta["kind"] in FUSED else node


def _insert_grid(model: fx.GraphModule, scheme: Scheme, sharing: list[fx.Node]) -> None:
    first = sharing[0]
    follows = first.meta["role"] == "activation" and values_of(first)[0].meta["role"] == "layer"
    owner = values_of(first)[0] if follows else first
    grid = scheme.grid("activation", owner.meta["name"])
    assert grid is not None
    quantizer = FakeQuant(grid, first.meta["name"], scheme.calibrator, scheme.calibrator_options)
    if first.meta.get("head"):  # the highest scores are the best finds: clip none of them
        quantizer.calibrator, quantizer.options = "max", {}
    if first.meta["role"] == "layer" and first.meta.get("inside") and scheme.calibrator == "mse":
        quantizer.options["behind"] = "silu"  # all that reads it
    if first.meta["role"] == "input" and len(sharing) == 1 and scheme.input_range is not None:
        _fix(quantizer, scheme.input_range)
    name = f"{first.name}_grid"
    model.add_submodule(name, quantizer)
    last_input = [n for n in model.graph.nodes if n.op == "placeholder"][-1]
    for source in sharing:
        with model.graph.inserting_after(last_input if source.op == "placeholder" else source):
            call = model.graph.call_module(name, (source,))
        call.meta.update(role="grid", kind="FakeQuant", name=name, inside=source.meta.get("inside"))
        others = [user for user in source.users if user is not call]
        source.replace_all_uses_with(call, delete_user_cb=others.__contains__)


def _fix(quantizer: FakeQuant, limits: tuple[float, float]) -> None:
    """The grid whose integers are limits[0] .. limits[1]: for a uint8 image, the pixels themselves."""
    grid = quantizer.grid
    scale = (limits[1] - limits[0]) / (grid.high - grid.low)
    zero_point = grid.low - limits[0] / scale
    if zero_point == int(zero_point) and (zero_point == 0 or not grid.symmetric):
        quantizer.set(torch.tensor(scale), torch.tensor(int(zero_point)))
    else:
        quantizer.set_range(torch.tensor(limits[0]), torch.tensor(limits[1]))
    quantizer.fixed = True


def _replace_layer(model: fx.GraphModule, scheme: Scheme, node: fx.Node) -> None:
    name = str(node.target)
    before, after = grid_before(values_of(node)[0]), grid_after(node)
    node.meta.update(before=before, after=after)
    layer = model.get_submodule(name)
    if not isinstance(layer, QuantLayer):  # else it is called twice
        _set_submodule(model, name, _quant_layer(layer, name, scheme))
    with model.graph.inserting_before(node):
        arguments = [None if grid is None else model.graph.get_attr(grid) for grid in (before, after)]
    for argument in arguments:
        if argument is not None:
            argument.meta.update(role="constant", kind="get_attr", name=argument.name)
    node.args = (node.args[0], *arguments)


def _quant_layer(layer: Any, name: str, scheme: Scheme) -> QuantLayer:
    grid = scheme.grid("weight", name)
    assert grid is not None
    transposed = isinstance(layer, TRANSPOSED)
    shape = layer.weight.shape
    rows, axis = (shape[1], 1) if transposed else (shape[0], 0)
    if grid.granularity == "group":
        if transposed or layer.weight[0].numel() % grid.group:
            grid = Grid(grid.bits, grid.signed, grid.symmetric, "channel", grid.narrow)
        else:
            rows = layer.weight.numel() // grid.group
    weight_grid = FakeQuant(grid, f"{name}.weight", scheme.weight_calibrator, rows=rows, axis=axis)
    # One int32 scale per output channel must exist.
    integer_bias = (
        scheme.integer_bias and grid.granularity != "group" and not (transposed and layer.groups > 1)
    )
    return QuantLayer(layer, weight_grid, integer_bias)


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def grid_before(value: fx.Node) -> str | None:
    """The quantizer whose grid a value lies on: moving keeps it, and what is joined shares it."""
    while value.meta["role"] in ("move", "join"):
        value = values_of(value)[0]
    return str(value.target) if value.meta["role"] == "grid" else None


def grid_after(node: fx.Node) -> str | None:
    """The quantizer that alone reads a layer's output, directly or behind a ReLU."""
    last = _behind_relu(node)
    user = next(iter(last.users), last)
    return str(user.target) if len(last.users) == 1 and user.meta["role"] == "grid" else None
