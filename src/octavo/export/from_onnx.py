"""A float network's weights back from the ONNX file that export wrote: a module to train, to quantize, to learn from.

In such a file a layer has its module's name, and a BatchNorm is folded into the layer W x + b before it. That is read
as it is, and the norm becomes one that changes nothing in evaluation mode, whatever mean and var are:

    norm(y) = (y - mean) / sqrt(var + eps) · gain + shift,    y = W x,  gain = sqrt(var + eps),  shift = mean + b

They are taken from dead leaves (quantize/synthetic.py), so that training, where a norm uses the batch's own mean and
variance, starts near the network that was read.

    read(build("mtcnn-relu")["pnet"], "pnet.onnx", (1, 3, 12, 12), {"offset": 128, "scale": 1 / 128})
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.folder import FolderError
from octavo.quantize import synthetic
from octavo.quantize.prepare import TraceError, norms_behind, trace

LAYERS = ("Conv", "ConvTranspose", "Gemm")  # those that export names
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
PIXELS = 2**18  # of the images together that mean and var are taken from; there are 2 to 256 images
SMALLEST = 1e-5  # var of what never varies


def read(
    module: nn.Module,
    path: str | os.PathLike[str],
    shape: Sequence[int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Give `module`, freshly built, the weights of its float export, and switch it to evaluation mode.

    shape, preprocessing: a batch of pixels (n, c, h, w) and how they are normalised, as export was told; wanted where
    there is BatchNorm. FolderError for a quantized file, one of another network, and a module that can't be traced:
    what the file has no name for (embeddings, recurrent layers, attention) is not read.
    """
    file = _File(Path(path))
    try:
        traced = trace(module)
    except TraceError as error:
        raise FolderError(f"{path} can't be read back: {type(module).__name__} can't be traced") from error
    norms = {layer: norm for layer, norm, _ in norms_behind(traced)}
    layers = {norm: layer for layer, norm in norms.items()}
    slopes: dict[str, str] = {}  # {layer: the PReLU behind it or its norm}
    for call in traced.graph.nodes:
        if call.op == "call_module" and isinstance(traced.get_submodule(str(call.target)), nn.PReLU):
            before = str(call.all_input_nodes[0].target)
            slopes[layers.get(before, before)] = str(call.target)
    state = module.state_dict()
    found: dict[str, Tensor] = {}
    for layer in file.layers:
        norm, (weight, bias) = norms.get(layer), file.weights(layer)
        given = {f"{layer}.weight": weight, f"{norm or layer}.bias": bias}
        if norm:
            given[f"{norm}.weight"] = state.get(f"{norm}.weight")
        if layer in slopes:
            given[f"{slopes[layer]}.weight"] = file.slopes(layer)
        # Zero is a bias that export left out, or that the norm's shift holds now.
        zero = [name for name in (f"{layer}.bias", f"{norm}.bias") if name in state]
        found |= {name: torch.zeros_like(state[name]) for name in zero}
        found |= {name: value for name, value in given.items() if value is not None}
    _check(found, module, path)
    module.load_state_dict(state | found)
    module.eval()
    if norms:
        if shape is None or preprocessing is None:
            raise FolderError(f"{path} can't be read back: it has BatchNorm, and is given no pixels")
        _set_statistics(module, norms.values(), _pixels(shape, preprocessing))


def _check(found: Mapping[str, Tensor], module: nn.Module, path: str | os.PathLike[str]) -> None:
    """FolderError unless the file had all parameters, and no others, in their shapes."""
    wanted = dict(module.named_parameters())
    problems = [
        *(f"{name} has no named place in the file" for name in wanted if name not in found),
        *(f"the file has {name}, the network has not" for name in found if name not in wanted),
        *(
            f"{name} has the shape {tuple(value.shape)} in the file, not {tuple(wanted[name].shape)}"
            for name, value in found.items()
            if name in wanted and value.shape != wanted[name].shape
        ),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise FolderError(f"{path} can't be read back into {type(module).__name__}: {problems[0]}{more}")


@torch.no_grad()
def _set_statistics(module: nn.Module, norms: Iterable[str], x: Tensor) -> None:
    """Give each norm, whose shift is b, mean and var of what it is given of `x`; its output becomes y + b."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
        for name in norms
    ]
    module(x)
    for hook in hooks:
        hook.remove()
    for name, y in seen.items():
        norm: Any = module.get_submodule(name)
        rows = y.transpose(0, 1).flatten(1)  # (channels, all else)
        norm.running_mean.copy_(rows.mean(1))
        norm.running_var.copy_(rows.var(1, correction=0).clamp(min=SMALLEST))
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.add_(norm.running_mean)


def _pixels(shape: Sequence[int], preprocessing: Mapping[str, Any]) -> Tensor:
    """Dead leaves as the network takes them."""
    count = min(256, max(2, PIXELS // (shape[2] * shape[3])))
    images = synthetic.images((count, *shape[1:])).float()
    return (images - float(preprocessing["offset"])) * float(preprocessing["scale"])


class _File:
    """An ONNX file: the nodes that export named, and the tensors that are stored."""

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ImportError:
            raise FolderError(
                f"{path} is read back by the onnx package: pip install 'octavo[train]'"
            ) from None
        try:
            graph = onnx.load(path).graph
        except Exception as error:  # protobuf's, onnx' and the system's
            raise FolderError(f"{path} is no ONNX file that can be read: {error}") from None
        if any(node.op_type in INTEGERS for node in graph.node):
            raise FolderError(f"{path} is quantized: its weights are integers. Read the float network's file")
        self.path, self.nodes = path, list(graph.node)
        self.layers = {node.name: node for node in graph.node if node.name and node.op_type in LAYERS}
        self.stored = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}

    def tensor(self, name: str) -> Tensor | None:
        """A stored tensor; None for one that is computed."""
        if name not in self.stored:
            return None
        if self.stored[name].dtype != "float32":
            raise FolderError(f"{self.path} holds {self.stored[name].dtype}: only float32 is read back")
        return torch.from_numpy(self.stored[name].copy())

    def weights(self, layer: str) -> tuple[Tensor | None, Tensor | None]:
        """A layer's weight, as torch has it, and bias."""
        node = self.layers[layer]
        weight, bias = (self.tensor(name) for name in (*node.input, "", "")[1:3])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if weight is not None and node.op_type == "Gemm" and not transposed:
            weight = weight.T.contiguous()
        return weight, bias

    def slopes(self, layer: str) -> Tensor | None:
        """Those of the PReLU that follows a layer, (channels,)."""
        (output,) = self.layers[layer].output
        behind = [node for node in self.nodes if node.op_type == "PRelu" and node.input[0] == output]
        slopes = self.tensor(behind[0].input[1]) if behind else None
        return None if slopes is None else slopes.flatten()
