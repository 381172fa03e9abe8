"""Samples -> range: which part of the real line should the integers cover?

An observer sees batches of one tensor and then names a range (low, high). Wide ranges round coarsely,
narrow ones clip; each method draws the line differently:

    max             the smallest and largest value ever seen: clips nothing, one outlier ruins it
    moving_average  the same, but an exponential average over batches: one odd batch counts little
    percentile      leaves a fixed share of the values outside (Wu et al. 2020, arXiv 2004.09602)
    mse             minimises E[(x - q(x))^2], clipping and rounding together; `behind` a function f that alone reads
                    the value, E[(f(x) - f(q(x)))^2]
    entropy         minimises KL(float histogram || quantized histogram), as TensorRT does (Migacz 2017)

Always low <= 0 <= high, so that zero (padding, ReLU) can be exact; a symmetric grid gets low == -high, a
symmetric unsigned one (0, high). All zeros give (0, 0): whoever makes a scale of it must not divide by it.

The last three methods look at a histogram of bounded size. Its bins are [k, k+1) * 2**e / N in |x|, kept
for each sign, and 2**e is the power of two just above the largest |x|. When a larger value arrives, pairs
of bins merge, and the result is the histogram that would have been counted at once: it depends on the
data alone, never on the order or size of the batches. Exact zeros are counted apart: they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Every method's parameters, with the origin of the default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "max": {},
    "moving_average": {
        "decay": 0.9
    },  # ten batches of memory: calibration sees tens of batches, not thousands
    "percentile": {"percentile": 99.99, "bins": 2048},  # the best all-round one in Wu et al. 2020, table 5
    "mse": {"bins": 2048, "behind": None},  # the name of a function, see FUNCTIONS
    "entropy": {"bins": 2048, "levels": None},  # Migacz 2017; None: half the grid, 128 at 8 bits
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu}
SMALLEST = -100  # exponent of the finest histogram: keeps 2**k in float32's range


class Grid(Protocol):
    """What an observer needs to know of scheme.Grid; the integers are low..high."""

    @property
    def bits(self) -> int: ...
    @property
    def low(self) -> int: ...
    @property
    def high(self) -> int: ...
    @property
    def signed(self) -> bool: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def granularity(self) -> str: ...


def make(name: str, grid: Grid, axis: int = 0, **params: Any) -> Observer:
    """An observer by name, for tensors that will be rounded to `grid`.

    grid.granularity "tensor" gives one range, anything else one per index of `axis` (for groups, hand in
    the weight reshaped so that each group is one index). `params` replace the defaults above.
    """
    if name not in DEFAULTS:
        raise ValueError(f"unknown observer {name!r}; choose one of {', '.join(DEFAULTS)}")
    unknown = set(params) - set(DEFAULTS[name])
    if unknown:
        known = ", ".join(DEFAULTS[name]) or "none"
        raise ValueError(f"observer {name!r} has no parameter {', '.join(sorted(unknown))} (it has: {known})")
    params = DEFAULTS[name] | params
    if not 0 < params.get("percentile", 100) <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {params['percentile']}")
    if not 0 <= params.get("decay", 0) < 1:
        raise ValueError(f"decay must lie in [0, 1), got {params['decay']}")
    if params.get("bins", 2) < 2 or params.get("bins", 2) & (params.get("bins", 2) - 1):
        raise ValueError(f"bins must be a power of two, got {params['bins']}")
    if params.get("behind") not in (None, *FUNCTIONS):
        raise ValueError(f"behind is one of {', '.join(FUNCTIONS)}, or None, got {params['behind']!r}")
    return Observer(name, grid, axis, params)


class Observer:
    """Keeps the statistics of one tensor between batches. Use `make`."""

    def __init__(self, name: str, grid: Grid, axis: int, params: dict[str, Any]) -> None:
        self.name, self.grid, self.axis, self.params = name, grid, axis, params
        self.low: Tensor | None = None  # (C,) float32, C = 1 per tensor
        self.high: Tensor | None = None
        self.histogram: Histogram | None = None

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value}" for key, value in self.params.items() if value is not None)
        return f"Observer({self.name}, per {self.grid.granularity}{settings})"

    def update(self, x: Tensor) -> None:
        """Look at one more batch: any shape; finite."""
        rows = self._rows(x)
        low, high = rows.aminmax(dim=1)
        if not (low.isfinite() & high.isfinite()).all():
            bad = int((~x.isfinite()).sum())
            raise ValueError(
                f"cannot observe a tensor with {bad} NaN or Inf of {x.numel()} values (shape "
                f"{tuple(x.shape)}): check the input's normalisation and the float model's output first"
            )
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif len(low) != len(self.low):
            raise ValueError(f"saw {len(self.low)} channels before, now {len(low)} (axis {self.axis})")
        elif self.name == "moving_average":
            self.low, self.high = (
                self.low.lerp(low, 1 - self.params["decay"]),
                self.high.lerp(high, 1 - self.params["decay"]),
            )
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if "bins" in self.params:
            # Twice the bins: up to half of them lie above the largest value.
            self.histogram = self.histogram or Histogram(len(low), 2 * self.params["bins"], rows.device)
            self.histogram.add(rows)

    def range(self) -> tuple[Tensor, Tensor]:
        """(low, high), float32: scalars per tensor, (C,) per channel."""
        if self.low is None or self.high is None:
            raise ValueError(
                "no data was observed: run at least one batch through the model before ranges are read"
            )
        low, high = self.low.clamp(max=0).double(), self.high.clamp(min=0).double()
        if self.grid.symmetric:
            high = torch.maximum(-low, high) if self.grid.signed else high
            low = -high if self.grid.signed else torch.zeros_like(low)
        if self.histogram is not None:
            methods: dict[str, Callable[..., tuple[Tensor, Tensor]]]
            methods = {"percentile": percentile, "mse": mse, "entropy": entropy}
            choose = methods[self.name]
            low, high = choose(self.histogram, self.grid, low, high, **self.params)
        low, high = low.float() + 0.0, high.float() + 0.0  # no -0.0
        return (low[0], high[0]) if self.grid.granularity == "tensor" else (low, high)

    def state_dict(self) -> dict[str, Any]:
        """Everything seen so far; plain values and tensors, fit for torch.save."""
        state = {"name": self.name, "params": dict(self.params), "low": self.low, "high": self.high}
        return state | ({"histogram": self.histogram.state_dict()} if self.histogram else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (state["name"], state["params"]) != (self.name, self.params):
            raise ValueError(
                f"the saved state is of {state['name']} {state['params']}, "
                f"this observer is {self.name} {self.params}"
            )
        self.low, self.high, self.histogram = state["low"], state["high"], None
        if "histogram" in state:
            self.histogram = Histogram.from_state_dict(state["histogram"])

    def _rows(self, x: Tensor) -> Tensor:
        """(C, values) float32: one row per range."""
        if x.numel() == 0:
            raise ValueError(f"cannot observe an empty tensor (shape {tuple(x.shape)})")
        x = x.detach().float()
        if self.grid.granularity == "tensor":
            return x.reshape(1, -1)
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(
                f"a range per channel of axis {self.axis} needs more axes than {tuple(x.shape)} has"
            )
        return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)


class Histogram:
    """Counts of |x| per row and sign; see the top of the file.

    counts (C, 2, N) int64: [:, 0] values below zero, [:, 1] above. Bin k of row c covers
    [k, k+1) * width, width = 2**exponent[c] / N. zeros (C,): exact zeros.
    """

    def __init__(self, rows: int, bins: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(rows, 2, bins, dtype=torch.int64, device=device)
        self.zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        self.exponent = torch.full((rows,), SMALLEST, dtype=torch.int64, device=device)

    @property
    def width(self) -> Tensor:
        return torch.ldexp(torch.ones_like(self.exponent, dtype=torch.float64), self.exponent) / self.bins

    @property
    def bins(self) -> int:
        return self.counts.shape[2]

    def add(self, rows: Tensor) -> None:
        """Count (C, values) finite float32."""
        size = rows.abs()
        # frexp: |x| = m * 2**e with m < 1, so 2**e is strictly above every value; its e of 0 is 0, not small
        largest = size.amax(dim=1)
        exponent = torch.frexp(largest).exponent.long().clamp(min=SMALLEST)
        exponent = exponent.where(largest > 0, SMALLEST)
        self._grow(exponent)
        power = (self.bins.bit_length() - 1 - self.exponent).float()
        index = (size * torch.exp2(power)[:, None]).long()  # exact: a power of two moves no digit
        index += self.bins * (rows > 0)
        index += 2 * self.bins * torch.arange(len(rows), device=rows.device)[:, None]
        counts = torch.bincount(index.flatten(), minlength=self.counts.numel()).view_as(self.counts)
        zeros = rows.shape[1] - rows.count_nonzero(dim=1)
        counts[:, 0, 0] -= zeros
        self.counts += counts
        self.zeros += zeros

    def _grow(self, exponent: Tensor) -> None:
        shift = (exponent - self.exponent).clamp(min=0)
        if shift.any():
            bin_ = torch.arange(self.bins, device=shift.device)
            target = (bin_[None] >> shift.clamp(max=62)[:, None])[:, None].expand_as(self.counts)
            self.counts = torch.zeros_like(self.counts).scatter_add_(2, target, self.counts)
            self.exponent = self.exponent + shift

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "zeros": self.zeros, "exponent": self.exponent}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Histogram:
        histogram = cls(len(state["zeros"]), state["counts"].shape[2])
        histogram.counts, histogram.zeros = state["counts"].clone(), state["zeros"].clone()
        histogram.exponent = state["exponent"].clone()
        return histogram


# Each method below: (histogram, grid, low, high: (C,) float64 of `max`) -> the range it prefers.


def percentile(
    histogram: Histogram, grid: Grid, low: Tensor, high: Tensor, percentile: float, bins: int
) -> tuple[Tensor, Tensor]:
    """numpy.percentile(x, [100 - p, p]), of |x| where the grid is symmetric; to one bin's width."""
    below, above = histogram.counts.unbind(1)
    total = histogram.zeros + (below + above).sum(1)
    position = percentile / 100 * (total - 1).double()  # between two samples, in sorted order

    def sample(counts: Tensor, rank: Tensor) -> Tensor:
        """The value of sample `rank` where all samples not in `counts` (C, N) come first and are 0."""
        before = (total - counts.sum(1))[:, None] + counts.cumsum(1) - counts
        at = ((before <= rank[:, None]).sum(1) - 1).clamp(min=0)[:, None]
        inside = (rank[:, None] + 1 - before.gather(1, at)) / counts.gather(1, at).clamp(min=1)
        return ((at + inside.clamp(0, 1)) * histogram.width[:, None])[:, 0] * (rank >= before[:, 0])

    def order(counts: Tensor, limit: Tensor) -> Tensor:
        first, second = (sample(counts, rank).minimum(limit) for rank in (position.floor(), position.ceil()))
        return first.lerp(second, position - position.floor())

    if grid.symmetric and grid.signed:
        high = order(below + above, high)
        return -high, high
    return -order(below, -low), order(above, high)


def mse(
    histogram: Histogram, grid: Grid, low: Tensor, high: Tensor, bins: int, behind: str | None
) -> tuple[Tensor, Tensor]:
    """The range with the least mean squared error, by search; `error`, or `error_behind`, is what is searched."""
    rows = zip(histogram.counts.cpu(), histogram.width.cpu(), low.tolist(), high.tolist(), strict=True)
    measure = partial(error_behind, FUNCTIONS[behind]) if behind else error
    best = [_least(measure, counts, width, grid, low, high) for counts, width, low, high in rows]
    low, high = torch.tensor(best, dtype=torch.float64, device=low.device).T
    return low, high


def _least(
    error: Callable[..., Tensor], counts: Tensor, width: Tensor, grid: Grid, low: float, high: float
) -> tuple[float, float]:
    """First one threshold for both ends; then, where they are free, one at a time, twice."""
    if low == high:
        return low, high
    few = grid.bits <= 4  # integers, so that a step spans many bins
    full = _coarser(counts, width, 4 if few else 1)
    rough = _coarser(*full, 4)  # enough to find the valley, four times faster
    coarse = torch.exp2(-torch.arange(0, 8, 1 / 8, dtype=torch.float64))  # the range times 1 .. 1/256
    fine = torch.exp2(torch.linspace(-1 / 8, 1 / 8, 17, dtype=torch.float64))  # between two coarse neighbours
    wide = torch.exp2(torch.linspace(-2, 2, 33, dtype=torch.float64))
    still = torch.ones(1, dtype=torch.float64)
    widest = max(-low, high)
    starts = [((-widest * coarse).clamp(min=low), (widest * coarse).clamp(max=high))]
    searches = [(full, fine, fine)]
    if not grid.symmetric and low < 0 < high:
        searches = [(rough, wide, still), (rough, still, wide)] * 2 + [
            (full, fine, still),
            (full, still, fine),
        ] * 2
        if few:  # so few zero-points, too, that each is a valley of its own: try them all
            zero = torch.arange(2**grid.bits, dtype=torch.float64)[:, None]
            scale = (high - low) / (2**grid.bits - 1) * coarse[::2]
            starts.append(((-zero * scale).flatten(), ((2**grid.bits - 1 - zero) * scale).flatten()))

    lows, highs = (torch.cat(ends) for ends in zip(*starts, strict=True))
    at = int(error(*rough, grid, lows, highs).argmin())
    for data, shrink_low, shrink_high in searches:
        low, high = min(low, float(lows[at])), max(high, float(highs[at]))
        lows, highs = torch.broadcast_tensors(
            (lows[at] * shrink_low).clamp(min=low), (highs[at] * shrink_high).clamp(max=high)
        )
        at = int(error(*data, grid, lows, highs).argmin())
    return float(lows[at]), float(highs[at])


def _coarser(counts: Tensor, width: Tensor, times: int) -> tuple[Tensor, Tensor]:
    times = min(times, counts.shape[1])
    return counts.unflatten(1, (-1, times)).sum(2), width * times


def error(counts: Tensor, width: Tensor, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """The sum of (x - q(x))^2 over a histogram (2, N), for each range low[k], high[k] (K,).

    Taken as uniform inside a bin, so the integral is exact however coarse the bins: in units of the step,
    around the zero-point, the integral of (y - q(y))^2 from 0 to y is  n/12 + (y - n)^3/3  with n the nearest
    integer, continued by (y - end)^3/3 beyond either end of the grid.
    """
    steps = grid.high - grid.low
    scale = high / grid.high if grid.symmetric else (high - low) / steps
    first = (torch.full_like(scale, grid.low) if grid.symmetric else (low / scale).round())[:, None]
    if grid.symmetric and grid.low == -grid.high:  # such a grid cannot tell x from -x: half the work
        counts = torch.stack([torch.zeros_like(counts[0]), counts.sum(0)])
    density = torch.cat([counts[0].flip(0), counts[1]]).double() / width  # in the order of x
    # sum over bins of density (I(end) - I(start)): each edge counts with what its left bin has more than its right
    change = -torch.diff(density, prepend=density.new_zeros(1), append=density.new_zeros(1))
    edge = change.nonzero()[:, 0]
    y = (edge - counts.shape[1]) * width / scale[:, None]
    inside = torch.minimum(torch.maximum(y, first), first + steps)
    nearest = inside.round()
    rounded, clipped = inside - nearest, y - inside
    integral = nearest / 12 + (rounded * rounded * rounded + clipped * clipped * clipped) / 3
    return integral @ change[edge] * scale**3


def error_behind(
    function: Callable[[Tensor], Tensor], counts: Tensor, width: Tensor, grid: Grid, low: Tensor, high: Tensor
) -> Tensor:
    """The same of what a function makes of both: the sum of (f(x) - f(q(x)))^2, each bin taken at its middle.

    SiLU is the case: below -4 it is nearly zero, so a grid before it need not reach there, and has finer steps.
    """
    steps = grid.high - grid.low
    scale = (high / grid.high if grid.symmetric else (high - low) / steps)[:, None]
    first = torch.full_like(scale, grid.low) if grid.symmetric else (low[:, None] / scale).round()
    number = counts.shape[1]
    seen = torch.cat([counts[0].flip(0), counts[1]])
    used = seen.nonzero()[:, 0]
    x = (used - number + 0.5) * width
    q = (x / scale).round().clamp(first, first + steps) * scale
    return (function(q) - function(x)).square() @ seen[used].double()


def entropy(
    histogram: Histogram, grid: Grid, low: Tensor, high: Tensor, bins: int, levels: int | None
) -> tuple[Tensor, Tensor]:
    """The threshold t on |x| whose clipped and coarsened histogram tells least apart from the full one."""
    levels = levels or 2 ** (grid.bits - 1)
    counts = histogram.counts.sum(1) if not (grid.symmetric and not grid.signed) else histogram.counts[:, 1]
    used = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in counts]
    keep = [
        n if n <= levels else levels + _last_least(divergence(row[:n], levels))
        for row, n in zip(counts, used, strict=True)
    ]
    threshold = torch.tensor(keep, device=low.device) * histogram.width
    return torch.maximum(-threshold, low), torch.minimum(threshold, high)


def divergence(counts: Tensor, levels: int) -> Tensor:
    """KL(P_i || Q_i) for i = levels .. n, where P_i keeps the first i of n bins, (n - levels + 1,).

    P_i puts everything beyond into its last bin. Q_i spreads the count S of each of `levels` equal stretches
    evenly over the m occupied bins in it. In a stretch Q is the constant S/m, so running sums give
      KL = sum_bins P log P  -  sum_stretches P_stretch log(S/m)     with no loop over the bins.
    """
    counts = counts.double()
    n = len(counts)
    keep = torch.arange(levels, n + 1, device=counts.device)
    zero = counts.new_zeros(1)
    running = torch.cat([zero, counts.cumsum(0)])
    occupied = torch.cat([zero, (counts > 0).double().cumsum(0)])
    plogp = torch.cat([zero, torch.xlogy(counts, counts).cumsum(0)])

    edges = keep[:, None] * torch.arange(levels + 1, device=counts.device) // levels  # (K, levels + 1)
    mass, filled = (
        table.index_select(0, edges.flatten()).view_as(edges).diff() for table in (running, occupied)
    )
    total, last = running[-1], counts[keep - 1]
    beyond = total - running[keep]
    filled[:, -1] += (last == 0) & (beyond > 0)  # the outliers occupy the last bin
    height = mass / filled.clamp(min=1)
    p = mass.clone()
    p[:, -1] += beyond

    p_log_p = plogp[keep] - torch.xlogy(last, last) + torch.xlogy(last + beyond, last + beyond)
    p_log_q = (p * height.where(p > 0, 1.0).log()).sum(1)
    # P is divided by total, Q by its own sum: running[keep]
    divergence = (p_log_p - p_log_q) / total - total.log() + running[keep].log()
    return divergence.where(running[keep] > 0, torch.inf)


def _last_least(values: Tensor) -> int:
    """Index of the minimum; of equal ones the last, which clips least."""
    return len(values) - 1 - int(values.flip(0).argmin())
