"""A search over settings as a picture: a heat map over two axes, one of them for each value of the third.

Yellow is good, with the score in each field. Framed: what was chosen; dashed: the settings before; grey: the wanted
precision is not reached there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octavo.evaluate.charts import RED, check, drawing
from octavo.evaluate.tuning import Axis, Point

MOST = 3  # axes that a picture has room for
WRITTEN = 9  # values along an axis up to which the scores can be written into their fields


def check_axes(path: str | Path, axes: Sequence[Axis]) -> None:
    """Say before a search that it can't be drawn: ImportError, or ValueError."""
    check(path)
    if not 1 <= len(axes) <= MOST:
        what = ", ".join(axis.label for axis in axes) or "no threshold"
        raise ValueError(f"a heat map has one to {MOST} axes, but here {what} would be varied together")


def draw(
    axes: Mapping[Axis, Sequence[float]],
    points: Sequence[Point],
    before: Mapping[str, Any],
    chosen: Mapping[str, Any],
    path: str | Path,
    title: str = "",
) -> None:
    """Draw the points of a grid over one to three axes with their values; before and chosen: settings to mark."""
    check_axes(path, list(axes))
    order = list(axes)
    scores = np.full([len(axes[axis]) for axis in order] + [1] * (MOST - len(order)), np.nan)
    for point in points:
        if point.score is not None:
            scores[_place(axes, point.settings)] = point.score
    across, down, panels = scores.shape
    columns = min(panels, 3)
    lines = -(-panels // columns)
    ends = (np.nanmin(scores), np.nanmax(scores))
    with drawing(
        path, max(4.5, 0.5 + columns * (0.9 + 0.45 * across)), 1.0 + lines * (0.8 + 0.36 * down)
    ) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for panel, field in enumerate(grid):
            if panel >= panels:
                field.set_visible(False)
                continue
            shown = scores[:, :, panel].T
            picture = field.imshow(
                shown, cmap="viridis", vmin=ends[0], vmax=ends[1], origin="lower", aspect="auto"
            )
            field.set_facecolor("#dddddd")
            if max(across, down) <= WRITTEN:
                _write(field, shown, ends)
            _ticks(field, axes, order, panel)
            for settings, style in ((before, "--"), (chosen, "-")):
                place = _place(axes, settings)
                if place and place[2] == panel:
                    _frame(field, place[0], place[1], style)
        figure.colorbar(picture, ax=list(grid), shrink=0.8, pad=0.02).ax.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=10)


def _place(axes: Mapping[Axis, Sequence[float]], settings: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Column, row and panel of the settings; None where they lie outside of what was tried."""
    values = [(tried, axis.of(settings)) for axis, tried in axes.items()]
    if any(value not in tried for tried, value in values):
        return None
    found = [*(list(tried).index(value) for tried, value in values), 0, 0]
    return found[0], found[1], found[2]


def _write(field: Any, shown: np.ndarray, ends: tuple[float, float]) -> None:
    middle, digits = (ends[0] + ends[1]) / 2, 3 if ends[1] - ends[0] > 0.02 else 4
    for row, column in np.argwhere(~np.isnan(shown)):
        score = shown[row, column]
        colour = "black" if score > middle else "white"
        text = f"{score:.{digits}f}".lstrip("0")
        field.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)


def _ticks(field: Any, axes: Mapping[Axis, Sequence[float]], order: Sequence[Axis], panel: int) -> None:
    labels = [[f"{value:g}".lstrip("0") for value in axes[axis]] for axis in order]
    field.set_xticks(range(len(labels[0])), labels[0])
    field.set_xlabel(order[0].label, fontsize=8)
    field.set_yticks(*((range(len(labels[1])), labels[1]) if len(order) > 1 else ([], [])))
    if len(order) > 1:
        field.set_ylabel(order[1].label, fontsize=8)
    if len(order) > 2:
        field.set_title(f"{order[2].label} {labels[2][panel]}", fontsize=8)
    field.tick_params(labelsize=7, length=2)


def _frame(field: Any, column: int, row: int, style: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.46, row - 0.46)
    field.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=RED, linewidth=1.8, linestyle=style))
