"""Which thresholds and NMS serve a finished model best? Points around the present settings, scored on images.

    ap       average precision
    f1       2 P R / (P + R) of what is reported
    recall   R of what is reported, where P reaches a wanted precision

Thresholds work together, so every combination of them is a point of a grid; the NMS that stand on top of them are
tried one at a time afterwards. Of the points whose score is `within` the best one's, the one with the least work for
the networks is taken: a few hundred images don't tell such scores apart, a clock does.

Precision is a lower bound where not everything in the background of the photographs is annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

BY = ("ap", "f1", "recall")
THRESHOLDS = ("thresholds", "confidence")  # what settings of that kind are called
LOWEST, HIGHEST = 0.01, 0.99  # values tried: at 0 and 1 a threshold is none, or nothing


@dataclass(frozen=True)
class Axis:
    """A number to be tuned: settings[name], or settings[name][index] where that is several.

    reports   it only cuts off what is reported, so AP is measured with it as low as the family's MEASURING
    alone     it is tried for itself after the grid of the others
    """

    label: str
    name: str
    index: int | None = None
    reports: bool = False
    alone: bool = False

    def of(self, settings: Mapping[str, Any]) -> float:
        value = settings[self.name]
        return float(value if self.index is None else value[self.index])

    def put(self, settings: Mapping[str, Any], value: float) -> dict[str, Any]:
        if self.index is None:
            return {**settings, self.name: value}
        several = list(settings[self.name])
        several[self.index] = value
        return {**settings, self.name: tuple(several)}

    def around(self, settings: Mapping[str, Any], span: float, steps: int) -> tuple[float, ...]:
        """`steps` values from span below the present one to span above it, and the present one; rising."""
        present = self.of(settings)
        values = np.clip(np.linspace(present - span, present + span, steps), LOWEST, HIGHEST)
        return tuple(sorted({*np.round(values, 4).tolist(), present}))


def axes_of(settings: Mapping[str, Any], measuring: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of a family that names none: the thresholds that it lowers to measure AP, then `nms` if it has one.

    Of several thresholds the last one reports.
    """

    def numbers(name: str, alone: bool) -> list[Axis]:
        if not isinstance(settings[name], (list, tuple)):
            return [Axis(name, name, None, not alone, alone)]
        last = len(settings[name]) - 1
        return [Axis(f"{name} {i + 1}", name, i, i == last and not alone, alone) for i in range(last + 1)]

    thresholds = [axis for name in THRESHOLDS if name in measuring for axis in numbers(name, alone=False)]
    return (*thresholds, *(numbers("nms", alone=True) if "nms" in settings else ()))


@dataclass(frozen=True)
class Scores:
    """Of what was found in some images; shares from 0 to 1."""

    ap: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)

    def by(self, by: str, precision: float) -> float | None:
        """The number to be made large; None where the wanted precision is not reached."""
        if by == "recall" and self.precision < precision:
            return None
        return float(getattr(self, by))


@dataclass(frozen=True)
class Point:
    """Settings, how good they are, and what they cost."""

    settings: dict[str, Any]
    scores: Scores
    score: float | None  # what is tuned by; None where the wanted precision is not reached
    seen: dict[str, float]  # inputs that each network looks at, per image
    work: float  # of all networks, in any unit


@dataclass(frozen=True)
class Search:
    """The points of the grid, of the axes tried alone after it, and the one to take."""

    grid: list[Point]
    alone: dict[str, list[Point]]  # by the axis's label; the first one is the best point before
    chosen: Point


def choose(points: Sequence[Point], within: float) -> Point:
    """The point with the least work of those that are best but for `within`, the first one of equals.

    ValueError where none has a score.
    """
    scored = [(point.score, point) for point in points if point.score is not None]
    if not scored:
        most = max(points, key=lambda point: point.scores.precision)
        raise ValueError(
            f"none of {len(points)} settings reaches the wanted precision: the highest is "
            f"{most.scores.precision:.4f}. Want less (--precision), or look further (--span)."
        )
    best = max(score for score, _ in scored)
    good = [(point.work, -score, point) for score, point in scored if score >= best - within]
    return min(good, key=lambda item: item[:2])[2]


def search(
    settings: Mapping[str, Any],
    values: Mapping[Axis, Sequence[float]],
    point: Callable[[dict[str, Any]], Point],
    within: float,
) -> Search:
    """Try every combination of the axes' values, then those of the axes that are tried alone, one after the other.

    Where nothing is gained, the settings stay as they are.
    """
    together = [axis for axis in values if not axis.alone]
    grid = []
    for combination in product(*(values[axis] for axis in together)):
        tried = dict(settings)
        for axis, value in zip(together, combination, strict=True):
            tried = axis.put(tried, value)
        grid.append(point(tried))
    chosen = choose(sorted(grid, key=lambda tried: tried.settings != settings), within)
    alone = {}
    for axis in (axis for axis in values if axis.alone):
        here = axis.of(chosen.settings)
        others = [point(axis.put(chosen.settings, value)) for value in values[axis] if value != here]
        alone[axis.label] = [chosen, *others]
        chosen = choose(alone[axis.label], within)
    return Search(grid, alone, chosen)
