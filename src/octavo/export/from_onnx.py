"""A float network's weights back from the ONNX file that export wrote: a module to train, to quantize, to learn from.

In such a file a layer has its module's name, a PReLU none, and BatchNorm is folded (quantize/unfold.py has it back).

    read(build("mtcnn-relu")["pnet"], "pnet.onnx")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.folder import FolderError
from octavo.quantize.prepare import norms_behind, trace
from octavo.quantize.unfold import unfold

LAYERS = ("Conv", "ConvTranspose", "Gemm")  # those that export names
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def read(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Give `module` the weights of its float export and switch it to evaluation mode: it computes the same.

    FolderError for a quantized file, one of another network, and a module that can't be traced or has weights without
    a name in the file: embeddings, recurrent layers, attention.
    """
    file = _File(Path(path))
    found = file.layers()
    try:
        for layer, activation in _activations(module).items():
            found |= {f"{activation}.weight": slopes for slopes in file.slopes(layer)}
        unfold(module, found)
    except ValueError as error:
        raise FolderError(f"{path} can't be read back: {error}") from error


def _activations(module: nn.Module) -> dict[str, str]:
    """{layer: the PReLU behind it, or behind its norm}."""
    traced = trace(module)
    layers = {norm: layer for layer, norm, _ in norms_behind(traced)}
    found = {}
    for call in traced.graph.nodes:
        if call.op == "call_module" and isinstance(traced.get_submodule(str(call.target)), nn.PReLU):
            before = str(call.all_input_nodes[0].target)
            found[layers.get(before, before)] = str(call.target)
    return found


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
        self.named: dict[str, Any] = {n.name: n for n in graph.node if n.name and n.op_type in LAYERS}
        self.stored = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}

    def tensor(self, name: str) -> Tensor:
        if name not in self.stored or self.stored[name].dtype != "float32":
            what = self.stored[name].dtype if name in self.stored else "computed weights"
            raise FolderError(f"{self.path} holds {what}: only stored float32 is read back")
        return torch.from_numpy(self.stored[name].copy())

    def layers(self) -> dict[str, Tensor]:
        """Weights, as torch has them, and biases of the named layers, by their names in a state dict."""
        found = {}
        for name, node in self.named.items():
            weight, *bias = map(self.tensor, filter(None, node.input[1:]))
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            found[f"{name}.weight"] = (
                weight if node.op_type != "Gemm" or transposed else weight.T.contiguous()
            )
            found |= {f"{name}.bias": value for value in bias}
        return found

    def slopes(self, layer: str) -> list[Tensor]:
        """Those of the PReLU that follows a layer, (channels,), if one does."""
        outputs = self.named[layer].output if layer in self.named else ()
        behind = [node for node in self.nodes if node.op_type == "PRelu" and node.input[0] in outputs]
        return [self.tensor(node.input[1]).flatten() for node in behind]
