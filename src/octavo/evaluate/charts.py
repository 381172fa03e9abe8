"""Pictures of measurements, drawn with matplotlib (extra `report`); small PNG files for documents.

    sensitivity      a bar per layer, worst first: what quantizing it alone costs; a dot: all but it quantized
    distributions    a histogram per tensor, float behind quantized, with the ends of its grid
    signal_to_noise  a bar per tensor in the network's order: rounding alone, and all the layers so far

They take what octavo.quantize.sensitivity and octavo.quantize.inspect return, but know only its fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.folder import atomic

if TYPE_CHECKING:
    from octavo.quantize.inspect import Tensors
    from octavo.quantize.sensitivity import Table

# Okabe and Ito's colours: told apart by everybody
BLUE, ORANGE, GREY, RED = "#0072B2", "#E69F00", "#999999", "#D55E00"
HIGHEST = 80  # dB drawn at most: nothing above differs for a network
SHOWN = 60  # layers in one chart


def check(path: str | Path) -> None:
    """Say that a chart can't be drawn there before anything long begins: ImportError, or ValueError."""
    if find_spec("matplotlib") is None:
        raise ImportError("charts need matplotlib, which is not installed: pip install 'octavo[report]'")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: charts are PNG files, give a name that ends in .png")


@contextmanager
def _figure(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure of width x height inches that is saved at the end, without a window or a global state."""
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        figure.savefig(
            temporary, format="png", metadata={"Software": None}
        )  # the same bytes for the same data


def sensitivity(table: Table, path: str | Path, title: str = "") -> None:
    """Draw a table of octavo.quantize.sensitivity as bars."""
    rows = table.rows[:SHOWN]
    by_sqnr = table.by == "sqnr"
    with _figure(path, 7, 1.3 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        ends = _ends(table)
        places = range(len(rows))
        widths = [_drawn(min(row.alone)) - ends[0] for row in rows]
        axes.barh(places, widths, left=ends[0], color=BLUE, height=0.65, label="this layer alone quantized")
        axes.plot(
            [_drawn(min(row.others)) for row in rows],
            places,
            **{"marker": "o", "linestyle": "", "color": ORANGE, "label": "all but this layer quantized"},
        )
        axes.axvline(_drawn(min(table.quantized)), color=RED, linewidth=1.2, label="all layers quantized")
        if not by_sqnr:
            axes.axvline(table.reference[0], color=GREY, linewidth=1.2, label="float")
        axes.set_yticks(places, [row.layer for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(*ends)
        axes.set_xlabel("SQNR of the worst output, dB (higher is better)" if by_sqnr else table.by)
        _tidy(axes)
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        if title:
            figure.suptitle(title, fontsize=11)


def _ends(table: Table) -> tuple[float, float]:
    """What the axis shows: SQNR from zero, a metric only where something happens."""
    values = [_drawn(min(v)) for row in table.rows for v in (row.alone, row.others)]
    values.append(_drawn(min(table.quantized)))
    if table.by == "sqnr":
        return min(0.0, *values), max(values) * 1.04
    values += [v for v in table.reference if math.isfinite(v)]
    margin = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def _drawn(decibels: float) -> float:
    return max(-HIGHEST, min(HIGHEST, decibels))


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def distributions(tensors: Sequence[Tensors], path: str | Path, title: str = "") -> None:
    """Draw the histograms of octavo.quantize.inspect: four in a row, counts on a logarithmic axis."""
    check(path)
    from matplotlib.ticker import NullFormatter

    tensors = list(tensors)[: 2 * SHOWN]
    columns = min(4, len(tensors))
    lines = -(-len(tensors) // columns)
    with _figure(path, 2.6 * columns, 1.75 * lines + 0.7) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(tensors) :]:
            axes.set_visible(False)
        for axes, tensor in zip(grid, tensors, strict=False):
            axes.stairs(tensor.float_counts, tensor.edges, fill=True, color=GREY, alpha=0.6)
            axes.stairs(tensor.quantized_counts, tensor.edges, color=BLUE, linewidth=0.9)
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(0.5, 2 * max(20, *tensor.float_counts, *tensor.quantized_counts))
            axes.yaxis.set_minor_formatter(NullFormatter())
            for end in (tensor.low, tensor.high):
                if end is not None:
                    axes.axvline(end, color=RED, linewidth=0.9, linestyle="--")
            lost = f"{tensor.sqnr_network:.0f} dB" if math.isfinite(tensor.sqnr_network) else "exact"
            axes.set_title(f"{tensor.layer} {tensor.kind}: {lost}", fontsize=8)
            note = [f"{tensor.clipped:.2%} clipped"] if tensor.clipped else []
            note += [f"{tensor.dead} of {tensor.channels} dead"] if tensor.dead else []
            axes.text(
                *(0.98, 0.95, "\n".join(note)),
                **{"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 7, "color": RED},
            )
            _tidy(axes)
            axes.tick_params(labelsize=6)
        figure.legend(handles=_handles(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        if title:
            figure.suptitle(title, fontsize=11)


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(color=GREY, alpha=0.6, label="float network"),
        Line2D([], [], color=BLUE, linewidth=0.9, label="quantized network"),
        Line2D([], [], color=RED, linewidth=0.9, linestyle="--", label="ends of the grid"),
    ]


def signal_to_noise(tensors: Sequence[Tensors], path: str | Path, title: str = "") -> None:
    """Draw the SQNR of every tensor of octavo.quantize.inspect; what is exact has no bar."""
    tensors = list(tensors)[: 2 * SHOWN]
    with _figure(path, 7, 1.3 + 0.23 * len(tensors)) as figure:
        axes = figure.subplots()
        for shift, name, color, label in (
            (-0.2, "sqnr", ORANGE, "rounding this tensor alone"),
            (0.2, "sqnr_network", BLUE, "between the networks at this place"),
        ):
            values = [getattr(tensor, name) for tensor in tensors]
            drawn = [_drawn(value) if math.isfinite(value) else 0 for value in values]
            axes.barh([i + shift for i in range(len(drawn))], drawn, height=0.38, color=color, label=label)
        axes.set_yticks(range(len(tensors)), [f"{tensor.layer} {tensor.kind}" for tensor in tensors])
        axes.invert_yaxis()
        axes.set_xlabel("SQNR, dB (no bar: exact, or not rounded here)")
        _tidy(axes)
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        if title:
            figure.suptitle(title, fontsize=11)
