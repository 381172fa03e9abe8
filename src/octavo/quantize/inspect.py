"""What lies in a quantized network: the values of each layer, in float and on their grids, as numbers.

    weights       of each quantized layer, before and after rounding
    activations   what reaches each quantizer: in the float network, and in the quantized one
    outputs       of layers whose result has no quantizer

For each: range, mean, deviation, zeros, dead channels (nothing but zeros), histograms of both networks, and

    clipped        share of the float values more than half a step outside the grid: their error is not rounding
    sqnr           dB lost by rounding this tensor alone: 10 log10(sum x^2 / sum (x - q(x))^2)
    sqnr_network   dB between the two networks at this place: what all the layers so far have added up to
                   (weights don't add up: both numbers are the same)

A wide float histogram in a narrow band of the grid, much clipping, or an sqnr far below its neighbours' is where
to look first. Everything is seen by forward hooks, which are gone afterwards. Memory: one batch of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from octavo.quantize.fake import FakeQuant, QuantLayer
from octavo.quantize.observe import Histogram
from octavo.quantize.prepare import QuantModel, grids, layers, set_mode
from octavo.quantize.sensitivity import as_it_was, sqnr

FINE = 4096  # bins while counting, of each sign, before it is known where the values end
BINS = 64  # bins shown: four integers of an 8-bit grid each


@dataclass(frozen=True)
class Tensors:
    """One tensor of the network. Counts are of `edges[i] <= x < edges[i + 1]`."""

    layer: str
    kind: str  # "weight", "activation" or "output"
    shape: tuple[int, ...]  # of a weight; of an activation the last one seen, without the batch
    grid: str  # as in print(qmodel); "" without one
    scale: float | None  # the largest of its scales
    low: float | None  # what the grid reaches (with several scales: the widest)
    high: float | None
    values: int  # how many were seen
    min: float
    max: float
    mean: float
    std: float
    zeros: float  # share
    clipped: float  # share
    channels: int
    dead: int  # channels
    sqnr: float
    sqnr_network: float
    edges: tuple[float, ...] = field(repr=False)
    float_counts: tuple[int, ...] = field(repr=False)
    quantized_counts: tuple[int, ...] = field(repr=False)

    @property
    def constant(self) -> bool:
        return self.min == self.max

    def to_row(self) -> dict[str, Any]:
        """One row of a CSV file: all but the histograms; None for what is not finite."""
        row = {
            k: v for k, v in asdict(self).items() if k not in ("edges", "float_counts", "quantized_counts")
        }
        row["shape"] = "x".join(map(str, self.shape))
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


class _Watched:
    """Sums over batches of one tensor: of the float network, and of the quantized one."""

    def __init__(self, grid: FakeQuant | None, axis: int) -> None:
        self.grid, self.axis = grid, axis  # axis of the channels
        self.histograms = Histogram(1, FINE), Histogram(1, FINE)
        self.low, self.high = math.inf, -math.inf  # of both networks
        self.count = self.zeros = self.clipped = 0
        self.sum = self.squares = self.rounding = self.distance = 0.0
        self.float_low, self.float_high = math.inf, -math.inf
        self.alive: Tensor | None = None  # (channels,) bool
        self.shape: tuple[int, ...] = ()

    def add(self, x: Tensor, rounded: Tensor, found: Tensor) -> None:
        """x: float values, rounded: the same on the grid, found: those of the quantized network."""
        if not x.isfinite().all():
            bad = int((~x.isfinite()).sum())
            raise ValueError(f"{bad} NaN or Inf of {x.numel()} values: check the float model's output first")
        if not x.numel():
            return
        for histogram, values in zip(self.histograms, (x, found), strict=True):
            histogram.add(values.float().reshape(1, -1))
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        exact = x.double()
        self.float_low = min(self.float_low, float(x.min()))
        self.float_high = max(self.float_high, float(x.max()))
        self.count += x.numel()
        self.zeros += int((x == 0).sum())
        self.sum += float(exact.sum())
        self.squares += float(exact.square().sum())
        self.rounding += float((exact - rounded).square().sum())
        self.distance += float((exact - found).square().sum())
        if self.grid is not None:
            rows, half = self.grid.rows(x), self.grid.scale / 2
            low, high = self.grid.range()
            if half.dim():
                low, high, half = low[:, None], high[:, None], half[:, None]
            self.clipped += int(((rows < low - half) | (rows > high + half)).sum())
        axis = self.axis if self.axis < x.dim() else x.dim() - 1
        alive = (x != 0).movedim(axis, 0).flatten(1).any(1) if x.dim() else (x != 0).reshape(1)
        if self.alive is None or len(self.alive) == len(alive):  # else the channels are no axis of their own
            self.alive = alive if self.alive is None else self.alive | alive
        self.shape = tuple(x.shape)

    def done(self, layer: str, kind: str) -> Tensors:
        grid = self.grid
        low, high = grid.range() if grid is not None else (None, None)
        mean = self.sum / self.count
        alive = self.alive if self.alive is not None else torch.ones(0, dtype=torch.bool)
        edges, counts = shown(self.histograms, self.low, self.high)
        return Tensors(
            layer=layer,
            kind=kind,
            shape=self.shape if kind == "weight" else self.shape[1:],
            grid="" if grid is None else str(grid.grid),
            scale=None if grid is None else float(grid.scale.max()),
            low=None if low is None else float(low.min()),
            high=None if high is None else float(high.max()),
            values=self.count,
            min=self.float_low,
            max=self.float_high,
            mean=mean,
            std=math.sqrt(max(0.0, self.squares / self.count - mean**2)),
            zeros=self.zeros / self.count,
            clipped=self.clipped / self.count,
            channels=len(alive),
            dead=int((~alive).sum()),
            sqnr=sqnr(self.squares, self.rounding) if grid is not None else math.inf,
            sqnr_network=sqnr(self.squares, self.distance),
            edges=edges,
            float_counts=counts[0],
            quantized_counts=counts[1],
        )


def shown(
    histograms: Sequence[Histogram], low: float, high: float, bins: int = BINS
) -> tuple[tuple[float, ...], list[tuple[int, ...]]]:
    """Fine histograms -> `bins` equal ones from low to high: edges (bins + 1) and counts of each.

    A fine bin goes where its middle lies. Equal ends are moved apart by a thousandth.
    """
    if low == high:
        margin = abs(low) / 1000 or 1.0
        low, high = low - margin, high + margin
    step = (high - low) / bins
    edges = (*(low + i * step for i in range(bins)), high)
    counts = []
    for histogram in histograms:
        width = float(histogram.width[0])
        middle = (torch.arange(histogram.bins, dtype=torch.float64) + 0.5) * width
        below, above = histogram.counts[0].unbind(0)
        at = torch.cat([-middle, middle, torch.zeros(1, dtype=torch.float64)])
        weights = torch.cat([below, above, histogram.zeros[:1]])
        index = ((at - low) / step).floor().long().clamp(0, bins - 1)
        total = torch.zeros(bins, dtype=torch.int64).scatter_add_(0, index, weights)
        counts.append(tuple(total.tolist()))
    return edges, counts


def inspect(
    qmodel: nn.Module, batches: Iterable[Tensor], progress: Callable[[int], None] | None = None
) -> list[Tensors]:
    """Statistics of a prepared and calibrated network, in the network's order, each layer's weight first.

    batches: as the network takes them. progress is called with the number of batches done.
    """
    with as_it_was(qmodel) as model:
        watched = {name: _Watched(grid, axis=1) for name, grid in _activations(model).items()}
        watched |= {name: _Watched(None, axis=1) for name in _without_grid(model)}
        done = 0
        for batch in batches:
            in_float, quantized = (
                _seen(model, batch, "off", watched),
                _seen(model, batch, "quantize", watched),
            )
            for name, tensors in in_float.items():
                grid = watched[name].grid
                for x, found in zip(tensors, quantized[name], strict=True):
                    rounded = x if grid is None else grid.unrows(grid.rows(grid.steps(x)) * grid.scale, x)
                    try:
                        watched[name].add(x, rounded, found)
                    except ValueError as error:
                        raise ValueError(f"{_title(model, name)}: {error}") from None
            done += 1
            if progress is not None:
                progress(done)
        if not done:
            raise ValueError("there is no data to look at: give at least one batch")
        return _in_order(model, watched)


def _activations(model: QuantModel) -> dict[str, FakeQuant]:
    """Quantizers of activations by name, in the network's order."""
    found = grids(model)
    names = dict.fromkeys(str(n.target) for n in model.graph.nodes if n.meta["role"] == "grid")
    return {name: found[name] for name in names}


def _without_grid(model: QuantModel) -> list[str]:
    """Layers whose result is rounded nowhere."""
    nodes = [n for n in model.graph.nodes if n.meta["role"] == "layer" and str(n.target) in layers(model)]
    return [str(n.target) for n in nodes if n.meta["after"] is None and not _rounded_later(n)]


def _rounded_later(node: Any) -> bool:
    """Whether a quantizer stands behind the activation function of a layer."""
    users = [user for user in node.users if user.meta["role"] in ("grid", "activation")]
    return any(user.meta["role"] == "grid" or _rounded_later(user) for user in users)


def _seen(model: QuantModel, batch: Tensor, mode: str, names: Iterable[str]) -> dict[str, list[Tensor]]:
    """{quantizer or layer: what came out of it}, one tensor per call, with all quantizers in `mode`."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Callable[..., None]:
        # a copy: an in-place operation may follow
        return lambda module, inputs, output: seen[name].append(output.detach().clone())

    set_mode(model, mode)
    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in seen]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _title(model: QuantModel, name: str) -> str:
    """A layer's name, or that of what a quantizer stands behind."""
    module = model.get_submodule(name)
    return module.name if isinstance(module, FakeQuant) else name


def _in_order(model: QuantModel, watched: dict[str, _Watched]) -> list[Tensors]:
    rows: dict[tuple[str, str], Tensors] = {}
    for node in model.graph.nodes:
        name = str(node.target)
        if node.meta["role"] == "layer" and (name, "weight") not in rows and name in layers(model):
            rows[name, "weight"] = _of_weight(model.get_submodule(name), name)
        if name in watched and node.meta["role"] in ("layer", "grid") and watched[name].count:
            kind = "output" if node.meta["role"] == "layer" else "activation"
            rows[name, kind] = watched[name].done(_title(model, name), kind)
    return list(rows.values())


def _of_weight(layer: nn.Module, name: str) -> Tensors:
    assert isinstance(layer, QuantLayer)
    grid, weight = layer.weight_grid, layer.weight.detach()
    rounded = grid.unrows(grid.rows(grid.steps(weight)) * _column(grid), weight)
    watched = _Watched(grid, grid.axis)
    watched.add(weight, rounded, rounded)
    return watched.done(name, "weight")


def _column(grid: FakeQuant) -> Tensor:
    return grid.scale[:, None] if grid.scale.dim() else grid.scale
