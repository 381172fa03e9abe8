"""Better weights to quantize, without training (Nagel et al. 2019, arXiv 1906.04721).

Cross-layer equalization. With one scale per tensor a channel of small weights drowns in the steps of a large
one. But ReLU(s x) = s ReLU(x) for s > 0, so between two layers each channel's scale is ours to choose:

    W2 f(W1 x + b1)  =  (W2 S) f(S^-1 W1 x + S^-1 b1)         S = diag(s),   s_i = sqrt(r1_i / r2_i)

makes the ranges r1_i = max |W1[i, :]| and r2_i = max |W2[:, i]| equal. Chains are swept until nothing moves.
Allowed between the layers is what is positively homogeneous and keeps channels apart: ReLU, LeakyReLU, PReLU,
max and average pools, zero padding, flatten. Not ReLU6 (6 does not scale), nor SiLU: such pairs stay as they
are. The network computes what it did before.

Bias correction. Rounded weights W + E shift the mean output of a layer by E E[x], an error that repeats at
every pixel; the bias can take it back. E[x] comes from the BN before the layer (no data), or the shift is
measured on a few batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from octavo.quantize.fake import QuantLayer
from octavo.quantize.prepare import BATCH_NORMS, ROLES, TRANSPOSED, QuantModel, fold, trace

ELEMENTWISE = ("ReLU", "LeakyReLU", "PReLU", "Identity")
SPATIAL = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "ZeroPad", "Upsample", "Flatten")


def equalize(network: nn.Module, skip: Sequence[str] = (), sweeps: int = 50) -> fx.GraphModule:
    """A copy of `network`, BN folded, that computes the same with balanced weights: give it to prepare().

    skip: name patterns of modules to leave alone. meta["gains"]: the factor of each output channel of each
    changed layer, {name: (C,)}; meta["means"]: what `expected_inputs` says now that BN is gone.
    """
    model = fold(network, skip).double()
    links = find_links(model)
    gains = {
        first: torch.ones(_by_output(model.get_submodule(first)).shape[:2].numel()) for first, _ in links
    }
    for _ in range(sweeps):
        moved = 0.0
        for first, seconds in links:
            s = _scales(model, first, seconds)
            _divide(model, first, seconds, s)
            gains[first] = gains[first] / s
            moved = max(moved, float(s.log().abs().max()))
        if moved < 1e-3:
            break
    model.float()
    model.meta["gains"] = {name: gain.float() for name, gain in gains.items()}
    model.meta["means"] = expected_inputs(network, skip, model.meta["gains"])
    return model


def find_links(model: fx.GraphModule) -> list[tuple[str, list[str]]]:
    """(layer, the layers that alone read its output), through homogeneous operations only; in order."""
    calls = [node.target for node in model.graph.nodes if node.op == "call_module"]
    links = []
    for node in model.graph.nodes:
        if not _is_layer(model, node) or calls.count(node.target) > 1:
            continue
        seconds = _readers(model, node, isinstance(model.get_submodule(node.target), nn.Linear), False)
        if seconds and all(calls.count(second) == 1 for second in seconds):
            links.append((str(node.target), seconds))
    return links


def _readers(model: fx.GraphModule, node: fx.Node, linear: bool, flat: bool) -> list[str] | None:
    """Names of the layers that a value reaches; None if it reaches anything else."""
    found: list[str] = []
    for user in node.users:
        kind = _kind(model, user)
        if _is_layer(model, user):
            if isinstance(model.get_submodule(str(user.target)), nn.Linear) != (linear or flat):
                return None  # a Linear on an image mixes columns, not channels
            found.append(str(user.target))
            continue
        passes = kind in ELEMENTWISE or (kind in SPATIAL and not linear)
        if not passes or user.args[0] is not node or not _keeps_channels(model, user, kind):
            return None
        further = _readers(model, user, linear, flat or kind == "Flatten")
        if further is None:
            return None
        found += further
    return found or None


def _keeps_channels(model: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    if kind == "ZeroPad":
        return node.op == "call_module"  # F.pad may pad with other things
    if kind != "Flatten":
        return True
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        return bool(module.start_dim == 1)
    return bool((list(node.args[1:2]) or [node.kwargs.get("start_dim", 0)])[0] == 1)


def _kind(model: fx.GraphModule, node: fx.Node) -> str:
    key: Any = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return ROLES.get(key, ("other", ""))[1]


def _is_layer(model: fx.GraphModule, node: fx.Node) -> bool:
    return (
        node.op == "call_module"
        and ROLES.get(type(model.get_submodule(str(node.target))), ("",))[0] == "layer"
    )


def _by_output(layer: Any) -> Tensor:
    """The weight seen as (groups, outputs per group, ...)."""
    weight: Tensor = layer.weight
    if isinstance(layer, TRANSPOSED):
        return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)
    return weight[None]


def _by_input(layer: Any, weight: Tensor, channels: int) -> Tensor:
    """The weight seen as (groups, channels per group, outputs per group, ...); a Linear reads flattened ones."""
    if isinstance(layer, nn.Linear):
        return weight.unflatten(1, (channels, -1)).transpose(0, 1)[None]
    if isinstance(layer, TRANSPOSED):
        return weight.unflatten(0, (layer.groups, -1))
    return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)


def _largest(weight: Tensor) -> Tensor:
    return weight.abs().flatten(2).amax(2).flatten()


@torch.no_grad()
def _scales(model: nn.Module, first: str, seconds: list[str]) -> Tensor:
    r1 = _largest(_by_output(model.get_submodule(first)))
    readers: list[Any] = [model.get_submodule(name) for name in seconds]
    r2 = torch.stack([_largest(_by_input(layer, layer.weight, len(r1))) for layer in readers]).amax(0)
    return torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)  # a dead channel has no scale to share


@torch.no_grad()
def _divide(model: nn.Module, first: str, seconds: list[str], s: Tensor) -> None:
    def times(weight: Tensor, factor: Tensor) -> None:  # weight is a view: in place
        weight *= factor.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))

    layer: Any = model.get_submodule(first)
    times(_by_output(layer), 1 / s)
    if layer.bias is not None:
        layer.bias /= s
    for name in seconds:
        layer = model.get_submodule(name)
        times(_by_input(layer, layer.weight, len(s)), s)


# Bias correction ----------------------------------------------------------------------------------


@torch.no_grad()
def correct_bias(qmodel: nn.Module, network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Shift each bias of a calibrated `qmodel` so that the layer's mean output is the float network's.

    Layer by layer from the input on, so that a layer sees its predecessors corrected. network: what qmodel was
    prepared from. Returns what was added, {name: (C,)}.
    """
    quantized, batches = _quantized(qmodel), list(batches)
    if not batches:
        raise ValueError("bias correction needs at least one batch of images")
    assert isinstance(qmodel, QuantModel)
    qmodel.eval()
    twin = fold(network, qmodel.meta["scheme"].skip)
    wanted = _means(twin, {name: twin.get_submodule(name) for name in quantized}, batches)
    # All batches go through the network together, node by node: a forward pass for each layer would take hours.
    step, last = fx.Interpreter(qmodel), _last_readers(qmodel.graph)
    values: list[dict[fx.Node, Any]] = [{} for _ in batches]
    added: dict[str, Tensor] = {}
    calls = [str(node.target) for node in qmodel.graph.nodes if node.op == "call_module"]

    def run(node: fx.Node) -> list[Any]:
        results = []
        for step.env in values:
            results.append(step.run_node(node))
        return results

    for node in qmodel.graph.nodes:
        name = str(node.target)
        layer = quantized.get(name)
        if layer is not None and layer.bias is not None and name not in added:
            alone = calls.count(name) == 1
            mean = _mean(run(node), layer) if alone else _means(qmodel, {name: layer}, batches)[name]
            added[name] = wanted[name] - mean
            layer.bias.add_(added[name])
        results = batches if node.op == "placeholder" else run(node)
        for known, result in zip(values, results, strict=True):
            known[node] = result
            for read in last[node]:
                del known[read]
    return added


def _last_readers(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node the values that nothing behind it reads."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last |= dict.fromkeys([node, *node.all_input_nodes], node)
    read: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
    for value, node in last.items():
        read[node].append(value)
    return read


def _mean(outputs: Sequence[Tensor], layer: nn.Module) -> Tensor:
    """Of each channel of a layer's outputs."""
    rows = [_rows(output, layer) for output in outputs]
    return (torch.stack([r.sum(0) for r in rows]).sum(0) / sum(map(len, rows))).float()


def _rows(output: Tensor, layer: nn.Module) -> Tensor:
    """(values, channels), float64."""
    linear = isinstance(layer.layer if isinstance(layer, QuantLayer) else layer, nn.Linear)
    return (output if linear else output.movedim(1, -1)).flatten(0, -2).double()


def _means(model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean output per channel of some layers."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str, layer: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = _rows(output, layer)
            sums[name] = sums.get(name, 0) + rows.sum(0)
            counts[name] += len(rows)

        return hook

    handles = [layer.register_forward_hook(watch(name, layer)) for name, layer in layers.items()]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).float() for name, total in sums.items()}


@torch.no_grad()
def correct_bias_from_norms(qmodel: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """The same without data, for layers that read a BN through an activation.

    network: the float network with its BN, or what `equalize` made of it (which remembers them). Channels leave
    BN with mean `bias` and deviation |weight|; taken as normal, their mean behind a ReLU is known.
    Returns what was added, {name: (C,)}; layers missing there keep their bias.
    """
    means = _meta(network).get("means") or expected_inputs(network)
    added = {}
    for name, layer in _quantized(qmodel).items():
        if layer.bias is not None and name in means:
            error = layer.weight_grid(layer.weight) - layer.weight
            shift = _by_input(layer.layer, error, len(means[name]))  # (groups, inputs, outputs, ...)
            shift = shift.flatten(2).unflatten(2, (shift.shape[2], -1)).sum(3)
            added[name] = -(shift * means[name].reshape(*shift.shape[:2], 1)).sum(1).flatten()
            layer.bias.add_(added[name])
    return added


def expected_inputs(
    network: nn.Module, skip: Sequence[str] = (), gains: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """E[x] per channel, {layer: (C,)}, where a layer reads BN -> activation -> (average pool, flatten).

    gains: {layer before a BN: (C,)}, factors of its output's channels.
    """
    model, means = trace(network, skip), {}
    for node in model.graph.nodes:
        if not _is_layer(model, node):
            continue
        value = node.args[0]
        while _kind(model, value) in ("Identity", "AvgPool", "AdaptiveAvgPool", "Flatten"):
            value = value.args[0]
        act = None
        if _kind(model, value) in ("ReLU", "ReLU6") or (
            value.op == "call_module" and _kind(model, value) in ELEMENTWISE
        ):
            act, value = value, value.args[0]
        norm: Any = model.get_submodule(value.target) if value.op == "call_module" else None
        if isinstance(norm, BATCH_NORMS) and norm.weight is not None:
            gain = (gains or {}).get(str(value.args[0].target), torch.ones_like(norm.weight))
            means[str(node.target)] = gain * _mean_behind(
                model, act, norm.bias.detach(), norm.weight.detach().abs()
            )
    return means


def _mean_behind(model: fx.GraphModule, act: fx.Node | None, mean: Tensor, deviation: Tensor) -> Tensor:
    """E[f(x)] of a normal x. For ReLU it is deviation * density + mean * probability at mean / deviation."""

    def relu(mean: Tensor) -> Tensor:
        z = mean / deviation.clamp(min=1e-12)
        return deviation * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) + mean * torch.special.ndtr(z)

    if act is None:
        return mean
    kind = _kind(model, act)
    if kind == "ReLU6":
        return relu(mean) - relu(mean - 6)
    module: Any = model.get_submodule(str(act.target)) if act.op == "call_module" else None
    slope = {"LeakyReLU": "negative_slope", "PReLU": "weight"}.get(kind)
    below = getattr(module, slope) if slope else 0.0
    return relu(mean) + below * (mean - relu(mean))


def _meta(module: nn.Module) -> dict[str, Any]:
    return module.meta if isinstance(module, fx.GraphModule) else {}


def _quantized(qmodel: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers, in the order of the forward pass."""
    if not isinstance(qmodel, QuantModel):
        raise ValueError(f"{type(qmodel).__name__} is not a quantized model: prepare and calibrate it first")
    names = [str(node.target) for node in qmodel.graph.nodes if node.op == "call_module"]
    modules = {name: qmodel.get_submodule(name) for name in names}
    return {name: module for name, module in modules.items() if isinstance(module, QuantLayer)}
