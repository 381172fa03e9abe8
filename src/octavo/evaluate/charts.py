"""Pictures of measurements, drawn with matplotlib (extra `report`); small PNG or SVG files for documents.

    precision_recall  a stair per model or subset, under which the average precision is the area
    points            a line of points per model over named groups, such as sizes of faces
    shares            a line per model: the share of all things whose error is at most x
    trade             a dot per choice, cost against gain, and a stair below those that no other one beats in both
    growth            a panel per question: what is measured against what grows
    sensitivity       a bar per layer, worst first: what quantizing it alone costs; a dot: all but it quantized
    distributions     a histogram per tensor, float behind quantized, with the ends of its grid
    signal_to_noise   a bar per tensor in the network's order: rounding alone, and all the layers so far

The last three take what octavo.quantize.sensitivity and octavo.quantize.inspect return, but know only its fields.
The text of an SVG file stays text, in the font of the page around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
# Of lines, in turn: colour and dashes (points), so that print and any eye can tell them apart. The first is the
# colour of the text.
SERIES = tuple(
    (colour, dashes)
    for dashes in ((), (5, 2), (1.5, 1.5))
    for colour in ("#000000", BLUE, RED, "#009E73", "#CC79A7", ORANGE, "#56B4E9")
)
FORMATS = (".png", ".svg")
HIGHEST = 80  # dB drawn at most: nothing above differs for a network
SHOWN = 60  # layers in one chart


def check(path: str | Path) -> None:
    """Say that a chart can't be drawn there before anything long begins: ImportError, or ValueError."""
    if find_spec("matplotlib") is None:
        raise ImportError("charts need matplotlib, which is not installed: pip install 'octavo[report]'")
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path}: charts are PNG or SVG files, give a name that ends in {' or '.join(FORMATS)}"
        )


@contextmanager
def drawing(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure of width x height inches that is saved at the end, without a window or a global state."""
    check(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The same bytes for the same data: no dates, and no random names within the file.
    kind = Path(path).suffix.lower()[1:]
    unsaid = {"png": ["Software"], "svg": ["Creator", "Date", "Format", "Type"]}[kind]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": Path(path).stem, "text.parse_math": False}
    with rc_context(style):
        figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            figure.savefig(temporary, format=kind, transparent=kind == "svg", metadata=dict.fromkeys(unsaid))


def precision_recall(
    curves: Mapping[str, tuple[Iterable[float], Iterable[float]]],
    path: str | Path,
    title: str = "",
    legend: bool = True,
) -> None:
    """Draw {name: the steps of a Curve}. Where all curves begin flat at the top, only the end is shown."""
    with drawing(path, 4, 3) as figure:
        axes = figure.subplots()
        left = max((x for x in (0, 0.5, 0.8, 0.9) if all(_flat(c, x) for c in curves.values())), default=0)
        for (name, (recall, precision)), style in zip(curves.items(), _styles(), strict=False):
            if steps := list(zip(recall, precision, strict=True)):
                axes.plot(
                    [0, *(r for r, _ in steps), steps[-1][0]],
                    [steps[0][1], *(p for _, p in steps), 0],
                    label=name,
                    **style,
                    drawstyle="steps-pre",
                )
        axes.set_xlim(left, 1 + 0.02 * (1 - left))
        axes.set_ylim(0.5 if left else 0, 1.01)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        _round_ticks(axes.xaxis)
        _finish(figure, axes, title, legend)


def _flat(curve: tuple[Iterable[float], Iterable[float]], recall: float) -> bool:
    """Nothing worth seeing happens below this recall."""
    return any(p >= 0.97 for r, p in zip(*curve, strict=True) if r >= recall)


def points(
    values: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str = "",
    legend: bool = True,
    labels: tuple[str, str] = ("", ""),
) -> None:
    """Draw {name: {group: value}}; a name may lack groups. labels: of the axis of groups, and of values."""
    groups = list(dict.fromkeys(group for of in values.values() for group in of))
    drawn = [v for of in values.values() for v in of.values()]
    with drawing(path, 4, 3) as figure:
        axes = figure.subplots()
        shift = min(0.08, 0.5 / max(1, len(values)))  # side by side: equal values would hide each other
        for i, ((name, of), style) in enumerate(zip(values.items(), _styles(), strict=False)):
            there = [
                (groups.index(group) + (i - (len(values) - 1) / 2) * shift, v) for group, v in of.items()
            ]
            axes.plot(*zip(*there, strict=True), label=name, marker="o", markersize=4, **style)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylim(_floor(min(drawn, default=0)), 1.01)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _finish(figure, axes, title, legend)


def _floor(lowest: float) -> float:
    """Where an axis of shares begins: zero, unless everything lies far above it."""
    return max((v for v in (0, 0.5, 0.8, 0.9) if v <= lowest - 0.02), default=0)


def shares(
    values: Mapping[str, tuple[Sequence[float], float]],
    path: str | Path,
    title: str = "",
    legend: bool = True,
    labels: tuple[str, str] = ("", "share"),
) -> None:
    """Draw {name: (quantiles, reached)}: values from the least to the largest of equal shares of all that have
    one, and the share that has one at all, at which the line ends.
    """
    with drawing(path, 4, 3) as figure:
        axes = figure.subplots()
        end = max((of[round(0.98 * (len(of) - 1))] for of, _ in values.values() if len(of)), default=1)
        for (name, (of, reached)), style in zip(values.items(), _styles(), strict=False):
            axes.plot(of, [reached * i / max(1, len(of) - 1) for i in range(len(of))], label=name, **style)
        axes.set_xlim(0, end or 1)
        _round_ticks(axes.xaxis)
        axes.set_ylim(0, 1.01)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _finish(figure, axes, title, legend)


def trade(
    choices: Mapping[tuple[float, float], str], path: str | Path, labels: tuple[str, str], title: str = ""
) -> None:
    """Draw {(cost, gain): name, or nothing}; what is named is marked. labels: of costs and gains."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(choices, key=lambda choice: (choice[0], -choice[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    with drawing(path, 5, 3.4) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*choices, strict=True), color=GREY, marker="o", markersize=3, linestyle="")
        axes.plot(*zip(*best, strict=True), color=BLUE, marker="o", markersize=3, drawstyle="steps-post")
        for (cost, gain), name in choices.items():
            if name:
                axes.plot(cost, gain, color=RED, marker="o", markersize=6)
                where = {"xytext": (6, -10), "textcoords": "offset points", "fontsize": 8}
                axes.annotate(name, (cost, gain), **where)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _round_ticks(axes.xaxis)
        _finish(figure, axes, title, legend=False)


def growth(
    values: Mapping[str, Mapping[float, float]], labels: Mapping[str, tuple[str, str]], path: str | Path
) -> None:
    """Draw {question: {size: measured}} side by side, both axes from zero: a straight line grows in proportion.

    labels: {question: (of sizes, of what is measured)}.
    """
    with drawing(path, 3 * len(values), 2.6) as figure:
        for axes, (question, of) in zip(
            figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
        ):
            axes.plot(list(of), list(of.values()), color=BLUE, marker="o", markersize=4, linewidth=1.3)
            axes.set_xlim(0, max(of) * 1.05)
            axes.set_ylim(0, max(of.values()) * 1.1)
            axes.set_xlabel(labels[question][0])
            axes.set_ylabel(labels[question][1])
            _round_ticks(axes.xaxis)
            _finish(figure, axes, "", legend=False)


def _styles() -> Iterator[dict[str, Any]]:
    """Of one line after the other; the first is wide and pale, so that it is seen below an equal one."""
    for i, (colour, dashes) in enumerate(SERIES):
        how = {"linewidth": 1.3} if i else {"linewidth": 4, "alpha": 0.35, "solid_capstyle": "butt"}
        yield {"color": colour, "linestyle": (0, dashes) if dashes else "-", **how}


def _round_ticks(axis: Any) -> None:
    """Few and round: 0.8 0.85 0.9, never 0.825."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _finish(figure: Any, axes: Any, title: str, legend: bool) -> None:
    axes.grid(color=GREY, alpha=0.35, linewidth=0.6)
    _tidy(axes)
    if legend:
        axes.legend(fontsize=8, frameon=False, loc="best")
    if title:
        figure.suptitle(title, fontsize=11)


def sensitivity(table: Table, path: str | Path, title: str = "") -> None:
    """Draw a table of octavo.quantize.sensitivity as bars."""
    rows = table.rows[:SHOWN]
    by_sqnr = table.by == "sqnr"
    with drawing(path, 7, 1.3 + 0.27 * len(rows)) as figure:
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
    with drawing(path, 2.6 * columns, 1.75 * lines + 0.7) as figure:
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
    with drawing(path, 7, 1.3 + 0.23 * len(tensors)) as figure:
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
