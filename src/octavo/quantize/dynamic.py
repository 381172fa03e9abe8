"""Three ways that need no data: weights as integers, ranges at run time, half precision.

    weight_only(network, bits=4, group=32)    weights stored as integers, read as floats: 4 to 8 times smaller
    quantize_dynamic(network)                 Linear, LSTM, GRU: integer products, the input's range found at each call
    half(network)                             weights and sums in float16, float32 outside: half the size

Weight-only changes nothing but the weights, so it saves memory and no arithmetic. Dynamic quantization suits
layers that read much weight for few values (recurrent and linear ones): a convolution's input is too large to
look through at each call. What it computes is what ONNX's DynamicQuantizeLinear and MatMulInteger do:

    s_x = (max(x, 0) - min(x, 0)) / 255,   z_x = round(-min(x, 0) / s_x)                u8, one range per tensor
    y = s_x s_w sum (q_x - z_x) q_w + b                                                  s8 weights, per output

Every layer made here knows its float twin (`.twin()`), with the weights as the integers have them;
`float_twin(network)` puts them back everywhere, for the exporter: `to_onnx` writes it, and
octavo.lower.dynamic makes the file dynamic with ONNX Runtime's own tool. The loops over time are plain torch:
they say what is computed, slowly. Measured gains in ONNX Runtime: docs/quantization.md.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octavo.quantize.fake import EXACT, scale_of
from octavo.quantize.prepare import TraceError, fold
from octavo.quantize.scheme import Grid

RECURRENT = (nn.LSTM, nn.GRU)
CELLS = (nn.LSTMCell, nn.GRUCell)
DYNAMIC = (nn.Linear, *RECURRENT, *CELLS)
STORED = (*DYNAMIC, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


class Stored(nn.Module):
    """A weight (rows, ...) as integers of 8 or 4 bits, symmetric, a scale per row or per `group` inputs of one.

    Two 4-bit integers share a byte, the first in the low half. A group that does not divide the row is the row.
    """

    integers: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bits: int = 8, group: int | None = None) -> None:
        super().__init__()
        if bits not in (4, 8):
            raise ValueError(f"weights are stored with 4 or 8 bits, got {bits}")
        if weight.dtype != torch.float32 or not weight.isfinite().all():
            raise ValueError(
                f"expected finite float32 weights, got {weight.dtype}: quantize the float network"
            )
        grid = Grid(bits, granularity="channel", narrow=True)
        self.shape, self.bits = tuple(weight.shape), bits
        length = weight[0].numel()
        grouped = weight.detach().reshape(len(weight), -1, group if group and length % group == 0 else length)
        scale, _ = scale_of(grouped.amin(2), grouped.amax(2), grid)
        integers = torch.round(grouped / scale[..., None]).clamp(grid.low, grid.high).to(torch.int8).flatten()
        if bits == 4:
            pairs = torch.cat([integers, integers.new_zeros(len(integers) % 2)]).reshape(-1, 2) & 15
            integers = (pairs[:, 0] | pairs[:, 1] << 4).view(torch.uint8)
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)  # (rows, groups)

    def steps(self) -> Tensor:
        """The integers as floats, (rows, groups, group)."""
        integers = self.integers
        if self.bits == 4:
            halves = torch.stack([integers & 15, integers >> 4], 1).flatten().to(torch.int8)
            count = int(torch.Size(self.shape).numel())
            integers = (halves - 16 * (halves > 7).to(torch.int8))[:count]
        return integers.float().reshape(*self.scale.shape, -1)

    def forward(self) -> Tensor:
        return (self.steps() * self.scale[..., None]).reshape(self.shape)

    def extra_repr(self) -> str:
        per = "row" if self.scale.shape[1] == 1 else f"{self.steps().shape[2]} inputs"
        return f"{self.shape}, s{self.bits}, a scale per {per}"


class _Quantized(nn.Module):
    """A layer whose weights are `Stored` under their names; the rest of it has no values of its own."""

    def __init__(self, layer: nn.Module, bits: int = 8, group: int | None = None) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        self.weights = nn.ModuleDict()
        self.store(layer)
        self._layer = (copy.deepcopy(layer).to("meta"),)  # in a tuple: no submodule, so no part of the state

    def store(self, layer: nn.Module) -> None:
        """Take the weights of a float layer that is built like this one."""
        for name, parameter in layer.named_parameters(recurse=False):
            if "weight" in name:
                self.weights[name] = Stored(parameter, self.bits, self.group)
            else:
                self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    @property
    def layer(self) -> Any:
        """How the layer is built (sizes, stride, ...), without values."""
        return self._layer[0]

    def values(self) -> dict[str, Tensor]:
        """The float layer's parameters, as the integers have them."""
        return {**{name: stored() for name, stored in self.weights.items()}, **dict(self.named_parameters())}

    def twin(self) -> nn.Module:
        """The float layer with the weights that the integers stand for."""
        layer: nn.Module = copy.deepcopy(self.layer).to_empty(device=next(self.buffers()).device)
        layer.load_state_dict(self.values())
        return layer.train(self.training)

    def product(self, x: Tensor, name: str) -> Tensor:
        """x (..., in) times the stored weight of that name, in integers: (..., out)."""
        stored = self.weights[name]
        assert isinstance(stored, Stored)
        steps, scale = round_at_run_time(x)
        weight = stored.steps()[:, 0]
        if weight.shape[1] * 255 * 127 >= EXACT:
            steps, weight = steps.double(), weight.double()
        return (steps @ weight.T).float() * (scale * stored.scale[:, 0])

    def extra_repr(self) -> str:
        return str(self.layer)


def round_at_run_time(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in whole steps from zero, the step): ONNX's DynamicQuantizeLinear, unsigned 8 bits."""
    if not x.numel():
        return x, x.new_ones(())
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero = torch.round(-low / scale)
    return (torch.round(x / scale) + zero).clamp(0, 255) - zero, scale


class WeightOnly(_Quantized):
    """The float layer, its weights read from integers at each call."""

    def forward(self, *inputs: Any) -> Any:
        return functional_call(self.layer, self.values(), inputs)


class DynamicLinear(_Quantized):
    """Linear with integer products, the input's range found at each call."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, "weight")
        return y if self.layer.bias is None else y + self.get_parameter("bias")


class DynamicCell(_Quantized):
    """LSTMCell or GRUCell with integer products of input and state."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        lstm = isinstance(self.layer, nn.LSTMCell)
        zeros = x.new_zeros(*x.shape[:-1], self.layer.hidden_size)
        h, c = (zeros, zeros) if state is None else state if lstm else (state, zeros)
        h, c = step(self, "", self.product(x, "weight_ih"), h, c, lstm)
        return (h, c) if lstm else h


class DynamicRecurrent(_Quantized):
    """LSTM or GRU, layers and directions as the float one has them; dropout between layers is left out.

    The input of a layer is rounded once for all times, its state at each.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        if getattr(layer, "proj_size", 0):
            raise ValueError("an LSTM with proj_size has no dynamic form here: leave it in float")

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if not isinstance(x, Tensor):
            raise ValueError(
                f"expected a tensor of sequences, got {type(x).__name__}: pad the sequences instead"
            )
        like, lstm = self.layer, isinstance(self.layer, nn.LSTM)
        flat, axis = x.dim() == 2, 0 if x.dim() == 2 or not like.batch_first else 1
        x = x.unsqueeze(1) if flat else x.transpose(0, axis)  # (time, n, in)
        ways = 2 if like.bidirectional else 1
        zeros = x.new_zeros(like.num_layers * ways, x.shape[1], like.hidden_size)
        h0, c0 = (zeros, zeros) if state is None else state if lstm else (state, zeros)
        h0, c0 = (s.unsqueeze(1) if s.dim() == 2 else s for s in (h0, c0))
        last: list[tuple[Tensor, Tensor]] = []
        for i in range(like.num_layers):
            passes = []
            for way in range(ways):
                suffix, (h, c) = f"_l{i}" + "_reverse" * way, (s[i * ways + way] for s in (h0, c0))
                inputs = self.product(x, f"weight_ih{suffix}")
                states = []
                for t in range(len(x))[:: -1 if way else 1]:
                    h, c = step(self, suffix, inputs[t], h, c, lstm)
                    states.append(h)
                passes.append(torch.stack(states[:: -1 if way else 1]))
                last.append((h, c))
            x = torch.cat(passes, 2)
        h, c = (torch.stack(s) for s in zip(*last, strict=True))
        if flat:
            x, h, c = x[:, 0], h[:, 0], c[:, 0]
        return x.transpose(0, axis), (h, c) if lstm else h


def step(
    cell: _Quantized, suffix: str, inputs: Tensor, h: Tensor, c: Tensor, lstm: bool
) -> tuple[Tensor, Tensor]:
    """One time step: (h, c) from the input's products (n, gates) and the state. Gates in torch's order."""
    own = cell.product(h, f"weight_hh{suffix}")
    if cell.layer.bias:
        inputs = inputs + cell.get_parameter(f"bias_ih{suffix}")
        own = own + cell.get_parameter(f"bias_hh{suffix}")
    if lstm:
        i, f, g, o = (inputs + own).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (r, z, n), (own_r, own_z, own_n) = inputs.chunk(3, -1), own.chunk(3, -1)
    n = torch.tanh(n + torch.sigmoid(r + own_r) * own_n)
    z = torch.sigmoid(z + own_z)
    return (1 - z) * n + z * h, c


# What is done to a network --------------------------------------------------------------------------


def weight_only(module: nn.Module, *patterns: str, bits: int = 8, group: int | None = None) -> nn.Module:
    """A copy whose weights are stored as integers. patterns: names of layers, such as "decoder.*" (all of them).

    group: inputs that share a scale; 32 is common for 4 bits, None is one scale per output.
    ValueError where no layer fits.
    """
    return _replace(module, patterns, STORED, lambda layer: WeightOnly(layer, bits, group))


def quantize_dynamic(module: nn.Module, *patterns: str) -> nn.Module:
    """A copy whose Linear, LSTM, LSTMCell, GRU and GRUCell multiply integers, with ranges found at each call."""
    return _replace(module, patterns, DYNAMIC, _dynamic)


def _dynamic(layer: nn.Module) -> nn.Module:
    kind = (
        DynamicLinear
        if isinstance(layer, nn.Linear)
        else DynamicCell
        if isinstance(layer, CELLS)
        else DynamicRecurrent
    )
    return kind(layer)


def float_twin(module: nn.Module) -> nn.Module:
    """A copy with every layer of this file put back as a float one, its weights as the integers have them."""
    if isinstance(module, _Quantized):
        return module.twin()
    made = copy.deepcopy(module)
    for name, child in list(made.named_modules()):
        if isinstance(child, _Quantized):
            _set(made, name, child.twin())
    return made


def is_dynamic(module: nn.Module) -> bool:
    """Whether a layer of this file is in it."""
    return any(isinstance(child, _Quantized) for child in module.modules())


def finds_ranges(module: nn.Module) -> bool:
    """Whether a layer of it multiplies integers."""
    return any(
        isinstance(child, _Quantized) and not isinstance(child, WeightOnly) for child in module.modules()
    )


def renew(module: nn.Module, twin: nn.Module) -> None:
    """Give every layer of this file in `module` the weights of its float twin, stored as before; and the rest too."""
    layers = {name: child for name, child in module.named_modules() if isinstance(child, _Quantized)}
    for name, child in layers.items():
        child.store(twin.get_submodule(name))
    own = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, value in twin.state_dict().items():
            if key in own:
                own[key].copy_(value)


def stored_bytes(module: nn.Module) -> int:
    """Of parameters and buffers: what a state dict takes."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _replace(module: nn.Module, patterns: Sequence[str], kinds: tuple[type, ...], make: Any) -> nn.Module:
    if isinstance(module, kinds):
        return make(module)
    made, found = copy.deepcopy(module), 0
    for name, child in list(made.named_modules()):
        if isinstance(child, kinds) and any(fnmatchcase(name, p) for p in patterns or ("*",)):
            _set(made, name, make(child))
            found += 1
    if not found:
        names = (
            ", ".join(name for name, child in module.named_modules() if isinstance(child, kinds)) or "none"
        )
        raise ValueError(
            f"no layer of {type(module).__name__} fits {', '.join(patterns) or '*'}; there are: {names}"
        )
    return made


def _set(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)


class Half(nn.Module):
    """A network of float16 between float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, *inputs: Tensor) -> Any:
        return _to_float(self.network(*[x.half() for x in inputs]))


def half(module: nn.Module) -> nn.Module:
    """A copy in half precision, BatchNorm folded first (in float32). Inputs and outputs stay float32.

    float16 keeps 11 bits of a number and ends at 65504: more exact than 8-bit integers, but large sums overflow
    to Inf, so try it on real images. It halves files and memory everywhere; it is faster where the hardware
    computes in float16 (GPUs, Arm), not in ONNX Runtime on x86, which converts back to float32.
    """
    try:
        folded: nn.Module = fold(module)
    except TraceError:
        folded = copy.deepcopy(module).eval()
    return Half(folded)


def _to_float(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_to_float(v) for v in value)
    return value.float()


# Export ---------------------------------------------------------------------------------------------


def to_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    *example: Tensor,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[int, str] | Sequence[Mapping[int, str]] | None = None,
) -> None:
    """Write a network of float inputs as ONNX (opset 19): the float twin where layers of this file are in it.

    dynamic: axes that may vary, of every input or of each in order. Networks that take images: octavo.export.
    """
    of_each = [dynamic or {}] * len(example) if dynamic is None or isinstance(dynamic, Mapping) else dynamic
    axes = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in of_each)
    # The exporter lends these a form with free lengths while it traces; torch 2.13 would remember the one from before.
    for recurrent in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        recurrent._dispatch_cache.clear()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # the exporter's remarks are about its own parts
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                float_twin(module).eval(),
                example,
                dynamo=True,
                opset_version=19,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=axes if any(axes) else None,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    written = program.model_proto
    for part in (written, written.graph, *written.graph.node, *written.graph.input, *written.graph.output):
        del part.metadata_props[:]  # where in torch each came from
    del written.graph.value_info[:]
    Path(path).write_bytes(written.SerializeToString(deterministic=True))
