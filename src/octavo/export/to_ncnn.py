"""nn.Module -> the two files that ncnn reads, and its integers from our grids.

    NAME.ncnn.param   the layers, one a line: type, name, number of inputs and outputs, their names, parameters
    NAME.ncnn.bin     the weights, layer by layer
    NAME.ncnn.table   of a quantized network: ncnn's calibration table, as ncnn2table writes it

pnnx translates the float network, and folds its BatchNorm. ncnn reads no Q/DQ: a quantized network is translated as
the float one with the same weights, then its layers get our integers and scales, as ncnn2int8 does with a table

    NAME_param_0 s_1 ... s_n      127 over the largest weight of each output channel (or group)
    NAME s                        127 over the largest input

Which of pnnx's layers is which of ours its weights tell, which are the same to the last bit. ncnn knows symmetric
grids only (target arm), adds float biases, and rounds the inputs of a layer, not what it answers: where a value
is rounded for something else (an Add), it stays in float here.

A float layer's weights in the .bin: four bytes 0, then float32; an integer layer's: a tag, int8 up to a multiple
of four bytes. Behind them the bias, and of integer layers the two lines of the table, in float32.
"""

from __future__ import annotations

import copy
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo.export.to_onnx import Normalised
from octavo.folder import FolderError, atomic
from octavo.quantize.fake import FakeQuant, QuantLayer
from octavo.quantize.prepare import QuantModel, grid_at

MAGIC = "7767517"
FLOAT, INTEGERS = 0, 0x000D4B38  # what the weights of a layer begin with in the .bin


def write(
    module: nn.Module,
    path: Path,
    example: Tensor,
    *,
    dynamic: Mapping[int, str],
    outputs: Sequence[str],
    preprocessing: Mapping[str, Any],
) -> None:
    """Write path.ncnn.param and path.ncnn.bin, and path.ncnn.table of a quantized module.

    Arguments as for octavo.export.export. The file takes one image (c, h, w) of raw pixels in float32, "image".
    ValueError where a grid is none of ncnn's, ImportError without pnnx.
    """
    integers = list(integer_layers(module)) if isinstance(module, QuantModel) else []
    network = without_grids(module) if isinstance(module, QuantModel) else copy.deepcopy(module).eval().cpu()
    param, weights = translated(Normalised(network, preprocessing), example, dynamic)
    layers = [renamed(layer, outputs) for layer in read_layers(param, weights)]
    files: dict[str, bytes] = {}
    if integers:
        layers = [with_integers(layer, integers) for layer in layers]
        files[".table"] = calibration_table(layers).encode()
        layers = [answering_integers(layer, layers) for layer in layers]
    files[".param"] = text(layers).encode()
    files[".bin"] = b"".join(layer.stored() for layer in layers)
    for suffix, content in files.items():
        with atomic(path.with_name(f"{path.name}.ncnn{suffix}")) as temporary:
            temporary.write_bytes(content)


# ---- our side


@dataclass(frozen=True)
class Integers:
    """A layer on grids: what its float weights are, for recognising it, and its integers with their scales."""

    name: str
    weight: bytes
    integers: np.ndarray  # (outputs, ...) int8
    weight_scale: np.ndarray  # (outputs,) steps per unit
    input_scale: float


def integer_layers(module: QuantModel) -> Iterator[Integers]:
    """The layers of which ncnn can compute in integers what the module does."""
    for node in module.graph.nodes:
        if node.meta["role"] != "layer" or node.meta.get("before") is None:
            continue
        layer, before = module.get_submodule(str(node.target)), grid_at(module, node.meta["before"])
        assert isinstance(layer, QuantLayer)
        assert before is not None
        if not (symmetric(before) and symmetric(layer.weight_grid)):
            raise ValueError(
                f"{node.target} lies on {before.grid} and {layer.weight_grid.grid}, and ncnn knows symmetric grids "
                "only: octavo quantize ... --target arm"
            )
        weight = layer.weight.detach().cpu()
        scale = layer.weight_grid.scale.cpu().reshape(-1).expand(len(weight))
        yield Integers(
            str(node.target),
            weight.numpy().tobytes(),
            layer.weight_grid.integers(weight).numpy(),
            1 / scale.numpy(),
            1 / float(before.scale),
        )


def symmetric(grid: FakeQuant) -> bool:
    """Eight bits around zero, in one tensor or channel by channel."""
    kind = grid.grid
    return kind.signed and kind.symmetric and kind.bits == 8 and kind.granularity in ("tensor", "channel")


def without_grids(module: QuantModel) -> nn.Module:
    """The float network with the module's weights: what it computes with its grids off, and no trace of them."""
    model = copy.deepcopy(module).eval().cpu()
    for node in list(model.graph.nodes):
        if node.meta["role"] == "grid":
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
        elif node.meta["role"] == "layer" and isinstance(
            layer := model.get_submodule(str(node.target)), QuantLayer
        ):
            node.args = node.args[:1]
            model.set_submodule(str(node.target), layer.layer)
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
    return model


# ---- ncnn's side


@dataclass(frozen=True)
class Layer:
    """A line of the .param, and what belongs to it in the .bin."""

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: Mapping[str, str]  # by their numbers
    weight: np.ndarray | None = None  # float32, or int8 on a grid
    others: tuple[np.ndarray, ...] = ()  # float32: bias, scales

    def __str__(self) -> str:
        given = (f"{key}={value}" for key, value in self.parameters.items())
        count = f"{len(self.bottoms)} {len(self.tops)}"
        return " ".join([f"{self.kind:<24} {self.name:<24} {count}", *self.bottoms, *self.tops, *given])

    def stored(self) -> bytes:
        """Its part of the .bin."""
        others = b"".join(array.astype("<f4").tobytes() for array in self.others)
        if self.weight is None:
            return others
        if self.weight.dtype != np.int8:
            return struct.pack("<I", FLOAT) + self.weight.astype("<f4").tobytes() + others
        return struct.pack("<I", INTEGERS) + self.weight.tobytes() + bytes(-self.weight.size % 4) + others


# The numbers of the parameters that say how many weights there are, and whether biases.
WEIGHTED = {"Convolution": ("6", "5"), "ConvolutionDepthWise": ("6", "5"), "InnerProduct": ("2", "1")}


def read_layers(param: str, weights: bytes) -> Iterator[Layer]:
    """The layers of a float network as pnnx writes it, with their weights."""
    place = 0

    def taken(count: int) -> np.ndarray:
        nonlocal place
        place += 4 * count
        return np.frombuffer(weights, "<f4", count, place - 4 * count)

    for line in param.splitlines()[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        ends = int(inputs), int(inputs) + int(outputs)
        parameters = dict(word.split("=", 1) for word in rest[ends[1] :])
        layer = Layer(kind, name, tuple(rest[: ends[0]]), tuple(rest[ends[0] : ends[1]]), parameters)
        if kind in WEIGHTED:
            size, bias = WEIGHTED[kind]
            place += 4  # the tag, FLOAT
            weight = taken(int(parameters[size]))
            biases = (taken(int(parameters["0"])),) if parameters.get(bias, "0") == "1" else ()
            layer = replace(layer, weight=weight, others=biases)
        elif kind == "PReLU":
            layer = replace(layer, others=(taken(int(parameters["0"])),))
        yield layer
    if place != len(weights):
        raise ValueError(
            "the network has layers whose weights ncnn stores in a way not known here: "
            f"{len(weights) - place} bytes are left"
        )


def text(layers: Sequence[Layer]) -> str:
    """The .param."""
    blobs = {blob for layer in layers for blob in layer.tops}
    return f"{MAGIC}\n{len(layers)} {len(blobs)}\n" + "".join(f"{layer}\n" for layer in layers)


def renamed(layer: Layer, outputs: Sequence[str]) -> Layer:
    """The network's input is "image", its outputs have their names; pnnx calls them in0, out0, ..."""
    names = {"in0": "image"} | {f"out{i}": name for i, name in enumerate(outputs)}
    tops, bottoms = (tuple(names.get(blob, blob) for blob in blobs) for blobs in (layer.tops, layer.bottoms))
    return replace(layer, tops=tops, bottoms=bottoms)


def with_integers(layer: Layer, integers: Sequence[Integers]) -> Layer:
    """The layer in integers where it is one of ours."""
    if layer.kind not in WEIGHTED or layer.weight is None:
        return layer
    same = layer.weight.tobytes()
    ours = next((one for one in integers if one.weight == same), None)
    if ours is None:
        return layer  # kept in float
    scales = ours.weight_scale, np.array([ours.input_scale])
    return replace(
        layer,
        parameters={**layer.parameters, "8": "1"},  # int8_scale_term: scales per channel, floats behind
        weight=ours.integers.reshape(-1),
        others=(*layer.others, *scales),
    )


def answering_integers(layer: Layer, layers: Sequence[Layer]) -> Layer:
    """The integer layer, which rounds its answer itself where only integer layers read it."""
    if not in_integers(layer):
        return layer
    behind = list(readers(layer.tops[0], layers))
    if not behind or not all(in_integers(reader) for reader in behind):
        return layer
    scale = behind[0].others[-1]  # of their input: a value has one grid
    parameters = {**layer.parameters, "8": "101"}
    return replace(layer, parameters=parameters, others=(*layer.others, scale))


def readers(blob: str, layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers that read a value, where it is only handed out (Split) those behind."""
    for layer in layers:
        if blob in layer.bottoms:
            if layer.kind == "Split":
                for top in layer.tops:
                    yield from readers(top, layers)
            else:
                yield layer


def in_integers(layer: Layer) -> bool:
    return layer.weight is not None and layer.weight.dtype == np.int8


def calibration_table(layers: Sequence[Layer]) -> str:
    """ncnn's table: the lines of all weights, then those of all inputs."""
    ours = [layer for layer in layers if in_integers(layer)]
    weights = [f"{layer.name}_param_0 " + " ".join(f"{s:.9g}" for s in layer.others[-2]) for layer in ours]
    inputs = [f"{layer.name} {layer.others[-1][0]:.9g}" for layer in ours]
    return "\n".join([*weights, *inputs]) + "\n"


def translated(network: nn.Module, example: Tensor, dynamic: Mapping[int, str]) -> tuple[str, bytes]:
    """pnnx's .param and .bin of a float network on one image; free heights and widths stay free."""
    try:
        import pnnx
    except ImportError:
        raise ImportError("this needs pnnx, which is not installed: pip install 'octavo[ncnn]'") from None
    shape = [1, *example.shape[1:]]
    other = [side + 64 * (axis in dynamic and axis > 1) for axis, side in enumerate(shape)]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        source = Path(temporary) / "network.pt"
        with warnings.catch_warnings():  # TorchScript is deprecated, and what pnnx reads
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(network.eval(), torch.zeros(shape), check_trace=False).save(str(source))
        shapes = [f"inputshape={shape}f32".replace(" ", "")]
        if other != shape:
            shapes.append(f"inputshape2={other}f32".replace(" ", ""))
        run = subprocess.run(
            [pnnx.EXEC_PATH, str(source), *shapes, "fp16=0"],
            cwd=temporary,
            capture_output=True,
            text=True,
            check=False,
        )
        param, weights = (source.with_name(f"network.ncnn.{kind}") for kind in ("param", "bin"))
        if run.returncode or not param.is_file():
            told = (run.stderr or run.stdout).strip().splitlines()
            raise FolderError(f"pnnx cannot translate the network: {told[-1] if told else run.returncode}")
        return param.read_text(), weights.read_bytes()
