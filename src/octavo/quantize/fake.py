"""Rounding to an integer grid and back, inside a network of floats.

    q = clamp(round(x / scale) + zero_point, low, high)        round half to even, as ONNX QuantizeLinear
    y = (q - zero_point) * scale                               as ONNX DequantizeLinear

`FakeQuant` does this to a tensor: what comes out is float, but only values of the grid. `QuantLayer` is a
convolution or linear layer that reads its weight and bias from grids as well; where its input and output lie
on grids too, it computes what an integer kernel computes, to the last bit:

    int32   a = sum (q_x - z_x) * q_w + q_b,    q_b = round(b / (s_x * s_w))
    output  q_y = round(a * (s_x * s_w / s_y)) + z_y

While training, rounding is passed over by the gradient (straight-through), which is zero where a value
was clipped (Jacob et al. 2018, arXiv 1712.05877; Krishnamoorthi 2018, arXiv 1806.08342).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from octavo.quantize import observe
from octavo.quantize.scheme import Grid

MODES = ("off", "observe", "quantize", "adapt")
SMALLEST = 2.0**-100  # of a scale: products of two stay normal float32 numbers
EXACT = 2**24  # integers up to here, and their sums, are exact in float32
BIAS_LIMIT = 2**30  # of int32's 2**31: leaves as much room for the sum of products


def scale_of(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The scale (float32) and zero-point (int32) that make `grid` cover low..high; zero is always on the grid.

    An empty range (only zeros were seen) gets scale 1.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    if grid.symmetric:
        scale = torch.maximum(-low, high) / grid.high
        zero_point = torch.zeros_like(scale)
    else:
        scale = (high - low) / (grid.high - grid.low)
        zero_point = grid.low - torch.round(low / scale.clamp(min=SMALLEST))
    scale = torch.where(scale > 0, scale.clamp(min=SMALLEST), 1.0).float()
    return scale, zero_point.clamp(grid.low, grid.high).int()


class FakeQuant(nn.Module):
    """Rounds a tensor to its grid and back. State: scale (float32), zero_point (int32), shape () or (rows,).

    mode "off": passes the tensor on; "observe": the same, and collects its range; "quantize": rounds;
    "adapt": collects, sets the range, then rounds (the first part of quantization-aware training).
    A scale of NaN means that no range was chosen yet. Loading a state with a range switches to "quantize".
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        grid: Grid,
        name: str = "",
        calibrator: str = "max",
        options: Mapping[str, Any] | None = None,
        rows: int = 1,
        axis: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.name, self.axis = grid, name, axis
        self.calibrator, self.options = calibrator, dict(options or {})
        self.mode = "off"
        self.fixed = False
        self.observer: observe.Observer | None = None
        shape = () if grid.granularity == "tensor" else (rows,)
        self.register_buffer("scale", torch.full(shape, math.nan))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))

    @property
    def ready(self) -> bool:
        return bool(self.scale.isfinite().all())

    @property
    def active(self) -> bool:
        return self.mode in ("quantize", "adapt")

    def new_observer(self) -> observe.Observer:
        return observe.make(self.calibrator, self.grid, **self.options)

    def moving_average(self) -> observe.Observer:
        """What "adapt" collects with: it goes on from the present range."""
        observer = observe.make("moving_average", self.grid)
        if self.ready:
            observer.low, observer.high = (row.detach().reshape(-1) for row in self.range())
        return observer

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """low, high: shape of the scale."""
        self.set(*scale_of(low, high, self.grid))

    def set(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "observe" or (self.mode == "adapt" and self.training):
            self.observe(x)
        return self.fake_quantize(x) if self.active else x

    def observe(self, x: Tensor) -> None:
        if self.fixed:
            low, high = self.range()
            if not (x.min() >= low - self.scale / 2 and x.max() <= high + self.scale / 2):  # NaN is neither
                raise ValueError(
                    f"the input {self.name} reaches from {x.min():g} to {x.max():g}, but the scheme's input_range is "
                    f"{low:g} to {high:g}: normalise the images first"
                )
            return
        if self.observer is None and self.mode == "adapt":
            self.observer = self.moving_average()
        self.observer = self.observer or self.new_observer()
        rows = self.rows(x.detach())
        try:
            self.observer.update(rows if self.mode == "observe" else _seen_by_all(rows))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if self.mode == "adapt":
            self.set_range(*self.observer.range())

    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest value of the grid."""
        return (self.grid.low - self.zero_point) * self.scale, (self.grid.high - self.zero_point) * self.scale

    def steps(self, x: Tensor) -> Tensor:
        """q - zero_point of the formula above, as floats: how many steps of the scale x is from zero."""
        scale, zero_point = self._column(self.scale), self._column(self.zero_point)
        steps = torch.round(self.rows(x).float() / scale)
        return self.unrows(steps.clamp(self.grid.low - zero_point, self.grid.high - zero_point), x)

    def integers(self, x: Tensor) -> Tensor:
        """q of the formula above, as it is stored."""
        q = self.rows(self.steps(x)) + self._column(self.zero_point)
        return self.unrows(q, x).to(torch.int8 if self.grid.signed else torch.uint8)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """x rounded to the grid, as floats."""
        grid = self.grid
        if self.scale.dtype != torch.float32:
            raise ValueError(
                f"{self.name}: scales are {self.scale.dtype}; a quantized model stays in float32"
            )
        if not (self.training and torch.is_grad_enabled()):
            return self.unrows(self.rows(self.steps(x)) * self._column(self.scale), x)
        if self.scale.requires_grad:
            return self.unrows(self._learned(self.rows(x)), x)
        # The fused kernel multiplies by 1 / scale: within one rounding of the division in `steps`.
        if grid.granularity == "tensor":
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, grid.low, grid.high)
        rounded = torch.fake_quantize_per_channel_affine(
            self.rows(x), self.scale, self.zero_point, 0, grid.low, grid.high
        )
        return self.unrows(rounded, x)

    def _learned(self, rows: Tensor) -> Tensor:
        """With a gradient for the scale too: round(x/s) - x/s inside, low or high where x is clipped (LSQ).

        Esser et al. 2020, arXiv 1902.08153. Its gradient is divided by sqrt(values per scale * high).
        """
        slower = 1 / math.sqrt(max(1, rows.numel() // self.scale.numel()) * self.grid.high)
        scale = self.scale * slower + (self.scale * (1 - slower)).detach()
        scale, zero_point = self._column(scale), self._column(self.zero_point)
        return _round(rows / scale).clamp(self.grid.low - zero_point, self.grid.high - zero_point) * scale

    def rows(self, x: Tensor) -> Tensor:
        """x with one row per scale; unchanged with one scale in all."""
        if self.grid.granularity == "tensor":
            return x
        return x.transpose(0, self.axis).reshape(len(self.scale), -1)

    def unrows(self, rows: Tensor, like: Tensor) -> Tensor:
        if self.grid.granularity == "tensor":
            return rows
        return rows.reshape(like.transpose(0, self.axis).shape).transpose(0, self.axis)

    def _column(self, parameter: Tensor) -> Tensor:
        return parameter if self.grid.granularity == "tensor" else parameter[:, None]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.ready and self.mode == "off":
            self.mode = "quantize"

    def extra_repr(self) -> str:
        return f"{self.grid}, {self.mode}"


class QuantLayer(nn.Module):
    """A layer of weights, as the float one was, whose weight and bias are read from grids.

    State: weight, bias (float, trainable, under the names they had), weight_grid.scale, weight_grid.zero_point.
    """

    def __init__(self, layer: Any, weight_grid: FakeQuant, integer_bias: bool) -> None:
        super().__init__()
        self.weight: nn.Parameter = layer.weight
        self.bias: nn.Parameter | None = layer.bias
        self.weight_grid = weight_grid
        self.integer_bias = integer_bias
        self._layer = (layer,)  # in a tuple: not registered, so its parameters aren't listed twice

    @property
    def layer(self) -> Any:
        """The float layer, which knows stride, padding and the like; it shares our parameters."""
        return self._layer[0]

    def apply_layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        parameters: dict[str, Any] = {"weight": weight, "bias": bias}
        return functional_call(self.layer, parameters, (x,))

    def forward(self, x: Tensor, before: FakeQuant | None, after: FakeQuant | None) -> Tensor:
        """x lies on the grid `before`; the result, after a ReLU at most, will be rounded to `after`."""
        if not self.weight_grid.active:
            return self.apply_layer(x, self.weight, self.bias)
        if self.weight_grid.mode == "adapt" and self.training and self.weight_grid.calibrator == "max":
            self.fit_weight([before])  # histograms would cost more than the step itself
        if before is None or not before.active or not self.integer_bias:
            return self.apply_layer(x, self.weight_grid.fake_quantize(self.weight), self.bias)
        step = before.scale * self.weight_grid.scale  # of the int32 sum; () or (channels,)
        if self.training:
            bias = None if self.bias is None else _round(self.bias / step) * step
            return self.apply_layer(x, self.weight_grid.fake_quantize(self.weight), bias)
        return self._integer(x, before, after, step)

    def _integer(self, x: Tensor, before: FakeQuant, after: FakeQuant | None, step: Tensor) -> Tensor:
        q_x = torch.round(x / before.scale)  # already less its zero-point
        q_w = self.weight_grid.steps(self.weight)
        q_b = None if self.bias is None else torch.round(self.bias / step)
        largest = q_w.abs().transpose(0, self.weight_grid.axis).flatten(1).sum(1).max()
        largest = largest * (before.grid.high - before.grid.low)
        if largest + (0 if q_b is None else q_b.abs().max()) >= EXACT:
            q_x, q_w, q_b = q_x.double(), q_w.double(), None if q_b is None else q_b.double()
        with torch.autocast(x.device.type, enabled=False):
            total = self.apply_layer(q_x, q_w, q_b).float()
        channels = [-1] + [1] * (0 if isinstance(self.layer, nn.Linear) else x.dim() - 2)
        if after is None or not after.active:
            return total * step.reshape(channels)
        return torch.round(total * (step / after.scale).reshape(channels)) * after.scale

    @torch.no_grad()
    def fit_weight(self, before: list[FakeQuant | None]) -> None:
        """Choose the weight's scales from the weight. `before`: the grids of this layer's inputs, one per call."""
        observer = self.weight_grid.new_observer()
        observer.update(self.weight_grid.rows(self.weight))
        low, high = observer.range()
        scale, zero_point = scale_of(low, high, self.weight_grid.grid)
        # A channel of zeros says nothing about its scale, but the bias is rounded by it: take the largest one.
        live = high > low
        if live.any():
            scale = torch.where(live, scale, scale[live].max())
        if self.integer_bias and self.bias is not None:
            # A bias far larger than its weights would leave int32: then the weights matter less than its steps.
            largest = self.bias.abs() if scale.dim() else self.bias.abs().max()
            for grid in before:
                if grid is not None and grid.ready:
                    scale = torch.maximum(scale, largest / (grid.scale * BIAS_LIMIT))
        self.weight_grid.set(scale, zero_point)

    def extra_repr(self) -> str:
        return str(self.layer)


def _seen_by_all(rows: Tensor) -> Tensor:
    """The least and largest value of a batch over all processes of a distributed training, whose grids must agree."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    ends = (
        torch.stack([-rows.amin(-1), rows.amax(-1)])
        if rows.dim() > 1
        else torch.stack([-rows.min(), rows.max()])
    )
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return torch.stack([-ends[0], ends[1]], dim=-1)


def _round(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()
