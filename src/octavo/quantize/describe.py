"""What was done to each layer of a quantized network, as one table: print(qmodel).

"computes in" says what the scheme's target will make of a node: "integer"; "fused" for a ReLU, which is a clip of
the integers; or "float" and why. For target cpu that is ONNX Runtime 1.31 as measured (tests/unit/test_export.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx, nn

from octavo.quantize.fake import QuantLayer
from octavo.quantize.prepare import (
    FUSED,
    TWO_OPERANDS,
    QuantModel,
    grid_after,
    grid_at,
    grid_before,
    values_of,
)
from octavo.quantize.scheme import Scheme

# What ONNX Runtime computes in integers between two grids, besides layers.
CPU_MOVES = ("MaxPool", "Flatten", "Reshape", "Transpose", "Split", "Concat", "Upsample", "Identity")
CPU_ARITHMETIC = ("Add", "Mul", "MatMul", "AvgPool", "Sigmoid", "LeakyReLU")


def describe(model: nn.Module) -> str:
    """One line per layer: its grids, the scale and zero-point of its output, and whether it is integer."""
    if not isinstance(model, QuantModel):
        raise ValueError(f"{type(model).__name__} is not a quantized model: prepare it first")
    header = ("layer", "kind", "weight", "activation", "scale", "zero-point", "computes in")
    hidden = ("size", "constant", "output", "grid")
    nodes = [node for node in model.graph.nodes if node.meta["role"] not in hidden]
    return _table([header, *(_row(node, model) for node in nodes)])


def how(node: fx.Node, model: QuantModel) -> str:
    """What a node will compute in on the scheme's target: "integer", "fused", or "float: why"."""
    scheme: Scheme = model.meta["scheme"]
    role, kind, values = node.meta["role"], node.meta["kind"], values_of(node)
    if scheme.skips(node.meta["name"]):
        return "float: skipped by the scheme"
    if role == "layer":
        return _how_layer(node, model, scheme)
    if role == "other":
        if kind.startswith("BatchNorm"):
            return "float: no layer before it to fold into"
        return f"float: {'one operand is a constant' if kind in TWO_OPERANDS else 'not a kind known here'}"
    if role not in ("activation", "move", "join", "arithmetic"):
        return ""
    if role == "activation" and kind in FUSED and values[0].meta["role"] in ("layer", "arithmetic"):
        in_integers = values[0].meta["role"] == "arithmetic" or values[0].meta.get("before")
        return "fused" if in_integers and grid_after(node) else "float"
    if not all(grid_before(value) for value in values):
        return "float"
    if role in ("activation", "arithmetic") and not grid_after(node):
        return "float: no grid behind it"
    known = CPU_MOVES if role in ("move", "join") else CPU_ARITHMETIC
    if scheme.target == "cpu" and kind not in known:
        return f"float: ONNX Runtime has no integer {kind}"
    return "integer"


def _how_layer(node: fx.Node, model: QuantModel, scheme: Scheme) -> str:
    layer = model.get_submodule(str(node.target))
    assert isinstance(layer, QuantLayer)
    before, after = grid_at(model, node.meta["before"]), grid_at(model, node.meta["after"])
    if before is None:
        return "float, from integer weights"
    if scheme.target != "cpu":
        return "integer" if after else "integer, float output"
    kind, user = node.meta["kind"], next(iter(node.users))
    if kind.startswith("ConvTranspose"):
        return f"float: ONNX Runtime has no integer {kind}"
    if getattr(layer.layer, "padding_mode", "zeros") != "zeros":
        return "float: padding other than zeros is a layer of its own"
    activation = user.meta["kind"] if user.meta["role"] == "activation" else None
    if after is None:
        if kind == "Linear":
            return "integer, float output"
        return f"float: {activation} before the grid" if activation else "float: no grid behind it"
    if activation and after.ready and int(after.zero_point) != after.grid.low:
        return f"float: {activation} disappears only before a grid that starts at zero"
    return "integer"


def _row(node: fx.Node, model: QuantModel) -> tuple[str, ...]:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    weight = str(module.weight_grid.grid) if isinstance(module, QuantLayer) else ""
    grid = grid_at(model, next((str(u.target) for u in node.users if u.meta["role"] == "grid"), None))
    activation = scale = zero_point = ""
    if grid is not None:
        activation = str(grid.grid) + (" (fixed)" if grid.fixed else "")
        scale, zero_point = "?", "?"
        if grid.ready:
            scale, zero_point = f"{float(grid.scale):.6g}", str(int(grid.zero_point))
    name, kind = node.meta["name"], node.meta["kind"]
    return (name, kind, weight, activation, scale, zero_point, how(node, model))


def _table(rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
