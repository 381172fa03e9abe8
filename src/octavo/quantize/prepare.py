"""From a float network to the same network on integer grids, for any module that torch.fx can trace.

    trace        the forward pass becomes a list of nodes; submodules of torch.nn stay whole
    fold         BatchNorm disappears in the convolution or linear layer before it: it is one affine map
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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

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
        "Reshape": (nn.Unflatten, torch.reshape, torch.squeeze, torch.unsqueeze)
        + ("reshape", "view", "squeeze", "unsqueeze", "contiguous", "expand"),
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
FUSED = ("ReLU", "ReLU6")  # clipping commutes with rounding: it costs an integer kernel nothing


class TraceError(ValueError):
    """The network's forward pass depends on its data, so no graph of it exists."""


class QuantModel(fx.GraphModule):
    """A network on grids. `meta["scheme"]` says which; its nodes carry their role and why they are in float."""

    def __str__(self) -> str:
        return describe(self)



def prepare(module: nn.Module, scheme: Scheme) -> nn.Module:
    """A copy of `module`, BN folded, with its quantizers in place and off: `calibrate` chooses their ranges.

    The copy computes as the float network does until then. Its state_dict has the folded weights under the float
    network's names, plus the scales; loading such a state makes a fresh copy ready to run.
    Raises TraceError (a ValueError) where the forward pass can't be traced, naming the line.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}: quantize the float32 network (module.float())")
    traced = fold(module, scheme.skip)
    model = QuantModel(traced, traced.graph, type(module).__name__)
    model.meta["scheme"] = scheme
    _assign_roles(model)
    for group in _groups(model, scheme):
        _insert_grid(model, scheme, group)
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


def grids(model: nn.Module) -> dict[str, FakeQuant]:
    """All quantizers, of activations and weights, by name in the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuant)}


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
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside_torch)]
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
    calls: dict[str, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    for target, nodes in calls.items():
        norm = model.get_submodule(target)
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            continue
        # A layer called twice is folded if this norm, and nothing else, follows each call.
        inputs = [node.args[0] for node in nodes]
        owners = {node.target for node in inputs if isinstance(node, fx.Node) and node.op == "call_module"}
        owner = owners.pop() if len(owners) == 1 else None
        if owner is None or inputs != calls[owner] or any(len(node.users) > 1 for node in calls[owner]):
            continue
        layer = model.get_submodule(owner)
        if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            continue
        _fold_into(layer, norm)
        for node in nodes:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return model


@torch.no_grad()
def _fold_into(layer: nn.Module, norm: nn.Module) -> None:
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


# ---- place the grids


def _assign_roles(model: fx.GraphModule) -> None:
    """node.meta: "role" and "kind" (see KINDS), "name" (of the module, or of the node)."""
    for node in model.graph.nodes:
        key: Any = node.target
        if node.op == "call_module":
            key = type(model.get_submodule(node.target))
        role, kind = ROLES.get(key, ("other", getattr(key, "__name__", str(key))))
        if node.op in ("placeholder", "output", "get_attr"):
            role, kind = {"placeholder": "input", "output": "output", "get_attr": "constant"}[node.op], node.op
        elif role != "size" and not _values(node):  # arithmetic on sizes
            role, kind = "size", "Size"
        elif kind == "Upsample" and _is_nearest(node, model):
            role = "move"
        elif key is getattr and node.args[1] not in ("shape", "ndim", "dtype", "device"):
            role = "other"
        elif key is operator.getitem and _values(node)[0].meta["role"] == "other":
            role = "other"  # one of several results of something unknown
        elif key is F.pad and (node.kwargs.get("mode", "constant") != "constant" or node.kwargs.get("value")):
            role = "other"
        elif kind in TWO_OPERANDS and (len(_operands(node)) < 2 or node.kwargs):
            role = "other"  # x + 1: integer kernels want both operands on grids
        node.meta.update(role=role, kind=kind, name=node.target if node.op == "call_module" else node.name)


def _is_nearest(node: fx.Node, model: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "mode", "").startswith("nearest")
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return str(mode).startswith("nearest")


def _values(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads, constants and sizes left out."""
    return [n for n in node.all_input_nodes if n.meta["role"] not in ("size", "constant")]


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.args[:2] if isinstance(n, fx.Node) and n in _values(node)]


def _is_quantized(node: fx.Node, scheme: Scheme) -> bool:
    return node.meta["role"] == "layer" and not scheme.skips(node.meta["name"])


def _sources(node: fx.Node) -> list[fx.Node]:
    """Where a value that was only moved and joined comes from."""
    if node.meta["role"] in ("move", "join"):
        return [source for value in _values(node) for source in _sources(value)]
    return [node]


def _groups(model: fx.GraphModule, scheme: Scheme) -> list[list[fx.Node]]:
    """Nodes whose value gets a grid; those in one list share it."""
    if scheme.activation is None:
        return []
    wanted: list[fx.Node] = []
    reach: set[fx.Node] = set()  # values that some integer kernel reads, at once or through others
    for node in reversed(model.graph.nodes):
        role = node.meta["role"]
        if _is_quantized(node, scheme):
            if scheme.quantize_outputs and node not in reach and node.meta["kind"] != "Linear":
                user = next(iter(node.users), node)
                wanted.append(user if len(node.users) == 1 and user.meta["kind"] in FUSED else node)
                wanted[-1].meta["head"] = True
            wanted += _values(node)[:1]
            reach |= set(_values(node)[:1])
        elif node in reach and role in ("activation", "move", "join", "arithmetic"):
            values = _values(node)
            reach |= set(values)
            moved = role == "activation" and values[0].meta["role"] in ("move", "join")
            if moved or (role in ("join", "arithmetic") and not scheme.skips(node.meta["name"])):
                wanted += values
                wanted += [node] if role == "join" else []
    groups: list[list[fx.Node]] = []
    for value in wanted:
        members = set(_sources(value))
        for group in [g for g in groups if members & set(g)]:
            members |= set(group)
            groups.remove(group)
        groups.append([n for n in model.graph.nodes if n in members])
    order = {node: i for i, node in enumerate(model.graph.nodes)}
    return sorted(groups, key=lambda group: order[group[0]])


def _insert_grid(model: fx.GraphModule, scheme: Scheme, group: list[fx.Node]) -> None:
    first = group[0]
    owner = first
    if first.meta["role"] == "activation" and _values(first)[0].meta["role"] == "layer":
        owner = _values(first)[0]
    grid = scheme.grid("activation", owner.meta["name"])
    assert grid is not None
    name = f"{first.name}_grid"
    quantizer = FakeQuant(grid, first.meta["name"], scheme.calibrator, scheme.calibrator_options)
    if first.meta.get("head"):  # the highest scores are the best finds: clip none of them
        quantizer.calibrator, quantizer.options = "max", {}
    if first.meta["role"] == "input" and len(group) == 1 and scheme.input_range is not None:
        _fix(quantizer, scheme.input_range)
    model.add_submodule(name, quantizer)
    last_input = [n for n in model.graph.nodes if n.op == "placeholder"][-1]
    for source in group:
        with model.graph.inserting_after(last_input if source.op == "placeholder" else source):
            call = model.graph.call_module(name, (source,))
        call.meta.update(role="grid", kind="FakeQuant", name=name)
        source.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)


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
    before, after = grid_before(_values(node)[0]), grid_after(node)
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


def _quant_layer(layer: nn.Module, name: str, scheme: Scheme) -> QuantLayer:
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
    weight_grid = FakeQuant(grid, f"{name}.weight", rows=rows, axis=axis)
    # One int32 scale per output channel must exist.
    integer_bias = scheme.integer_bias and grid.granularity != "group" and not (transposed and layer.groups > 1)
    return QuantLayer(layer, weight_grid, integer_bias)


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def grid_before(value: fx.Node) -> str | None:
    """The quantizer whose grid a value lies on: moving keeps it, and what is joined shares it."""
    while value.meta["role"] in ("move", "join"):
        value = _values(value)[0]
    return str(value.target) if value.meta["role"] == "grid" else None


def grid_after(node: fx.Node) -> str | None:
    """The quantizer that alone reads a layer's output, directly or behind a ReLU."""
    user = next(iter(node.users), node)
    if len(node.users) == 1 and user.meta["kind"] in FUSED:
        node, user = user, next(iter(user.users), user)
    return str(user.target) if len(node.users) == 1 and user.meta["role"] == "grid" else None


# ---- explain

# What ONNX Runtime 1.31 computes in integers between two grids, besides layers; measured (tests/unit/test_export.py).
CPU_KERNELS = ("MaxPool", "Flatten", "Reshape", "Transpose", "Split", "Concat", "Add", "Mul", "MatMul", "AvgPool")
CPU_KERNELS += ("Sigmoid", "LeakyReLU", "Upsample", "Identity")


def how(node: fx.Node, model: fx.GraphModule) -> str:
    """What a node will compute in on the scheme's target: "integer", "fused", or "float: why"."""
    scheme: Scheme = model.meta["scheme"]
    role, kind, name = node.meta["role"], node.meta["kind"], node.meta["name"]
    values = _values(node)
    if scheme.skips(name):
        return "float: skipped by the scheme"
    if role == "layer":
        return _how_layer(node, model, scheme)
    if role == "other":
        why = "one operand is a constant" if kind in TWO_OPERANDS else "not a kind known here"
        return f"float: {'no layer before it to fold into' if kind.startswith('BatchNorm') else why}"
    if role not in ("activation", "move", "join", "arithmetic"):
        return ""
    if role == "activation" and kind in FUSED and values[0].meta["role"] in ("layer", "arithmetic"):
        return "fused" if grid_after(node) else "float"
    if not all(grid_before(value) for value in values):
        return "float"
    if role in ("activation", "arithmetic") and not grid_after(node):
        return "float: no grid behind it"
    if scheme.target == "cpu" and (kind not in CPU_KERNELS or (kind == "Upsample" and role != "move")):
        return f"float: ONNX Runtime has no integer {kind}"
    return "integer"


def _how_layer(node: fx.Node, model: fx.GraphModule, scheme: Scheme) -> str:
    layer = model.get_submodule(str(node.target))
    assert isinstance(layer, QuantLayer)
    after = node.meta["after"]
    if node.meta["before"] is None:
        return "float, from integer weights"
    if scheme.target != "cpu":
        return "integer" if after else "integer, float output"
    kind, user = node.meta["kind"], next(iter(node.users))
    if kind.startswith("ConvTranspose"):
        return f"float: ONNX Runtime has no integer {kind}"
    if getattr(layer.layer, "padding_mode", "zeros") != "zeros":
        return "float: padding other than zeros is a layer of its own"
    if after is None:
        if kind == "Linear":
            return "integer, float output"
        why = f"{user.meta['kind']} before the grid" if user.meta["role"] == "activation" else "no grid behind it"
        return f"float: {why}"
    grid = model.get_submodule(after)
    assert isinstance(grid, FakeQuant)
    if user.meta["role"] == "activation" and grid.ready and int(grid.zero_point) != grid.grid.low:
        return "float: a ReLU disappears only before a grid that starts at zero"
    return "integer"


def describe(model: nn.Module) -> str:
    """One line per layer: its grids, the scale and zero-point of its output, and whether it is integer."""
    if not isinstance(model, QuantModel):
        raise ValueError(f"{type(model).__name__} is not a quantized model: prepare it first")
    header = ("layer", "kind", "weight", "activation", "scale", "zero-point", "computes in")
    rows = [row for node in model.graph.nodes if (row := _row(node, model))]
    return _table([header, *rows])


def _row(node: fx.Node, model: fx.GraphModule) -> tuple[str, ...] | None:
    if node.meta["role"] in ("size", "constant", "output", "grid"):
        return None
    weight = ""
    if node.op == "call_module" and isinstance(layer := model.get_submodule(str(node.target)), QuantLayer):
        weight = str(layer.weight_grid.grid)
    grid = next((str(user.target) for user in node.users if user.meta["role"] == "grid"), None)
    columns = ["", "", ""]
    if grid is not None:
        quantizer = model.get_submodule(grid)
        assert isinstance(quantizer, FakeQuant)
        columns[0] = str(quantizer.grid) + (" (fixed)" if quantizer.fixed else "")
        ready = quantizer.ready
        columns[1:] = [f"{float(quantizer.scale):.6g}", str(int(quantizer.zero_point))] if ready else ["?", "?"]
    return (node.meta["name"], node.meta["kind"], weight, *columns, how(node, model))


def _table(rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
