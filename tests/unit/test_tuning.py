"""The search for settings: values, scores counted by hand, and points that are chosen for a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.data.widerface import Entry
from octavo.evaluate.events import scores
from octavo.evaluate.tuning import Axis, Point, Scores, Search, axes_of, choose, search
from octavo.outputs import Detections

FIRST, LAST = Axis("first", "thresholds", 0), Axis("last", "thresholds", 1, reports=True)
NMS = Axis("nms", "nms", alone=True)
PRESENT: dict[str, Any] = {"thresholds": (0.5, 0.9), "nms": 0.4, "min_face": 20}


# Axes


@pytest.mark.parametrize(
    ("axis", "span", "steps", "values"),
    [
        pytest.param(FIRST, 0.05, 5, (0.45, 0.475, 0.5, 0.525, 0.55), id="five around the present one"),
        pytest.param(LAST, 0.2, 3, (0.7, 0.9, 0.99), id="not up to 1"),
        pytest.param(NMS, 0.6, 3, (0.01, 0.4, 0.99), id="a number of its own, not down to 0"),
        pytest.param(FIRST, 0.1, 2, (0.4, 0.5, 0.6), id="the present one is always among them"),
        pytest.param(FIRST, 0.0, 5, (0.5,), id="no span, nothing to try"),
    ],
)
def test_values_around(axis: Axis, span: float, steps: int, values: tuple[float, ...]) -> None:
    assert axis.around(PRESENT, span, steps) == pytest.approx(values)


def test_put_changes_one_number_and_leaves_the_settings_alone() -> None:
    before = dict(PRESENT)
    assert LAST.put(PRESENT, 0.7) == {"thresholds": (0.5, 0.7), "nms": 0.4, "min_face": 20}
    assert NMS.put(PRESENT, 0.3)["nms"] == 0.3
    assert before == PRESENT


@pytest.mark.parametrize(
    ("settings", "measuring", "expected"),
    [
        pytest.param(
            PRESENT, {"thresholds": (0.5, 0.02)},
            [("thresholds", 0, False, False), ("thresholds", 1, True, False), ("nms", None, False, True)],
            id="a cascade: the last threshold reports",
        ),
        pytest.param(
            {"confidence": 0.6, "nms": 0.4, "most": 750}, {"confidence": 0.02},
            [("confidence", None, True, False), ("nms", None, False, True)], id="one network",
        ),
        pytest.param({"confidence": 0.6}, {"confidence": 0.02}, [("confidence", None, True, False)], id="no NMS"),
    ],
)  # fmt: skip
def test_axes_of_a_family_that_names_none(settings: dict, measuring: dict, expected: list) -> None:
    made = axes_of(settings, measuring)
    assert [(axis.name, axis.index, axis.reports, axis.alone) for axis in made] == expected


# Scores

A, B, ELSEWHERE = [10, 10, 30, 30], [50, 50, 90, 90], [200, 200, 220, 220]


def entry(boxes: list, invalid: list[bool]) -> Entry:
    return Entry(
        path=Path("a/1.jpg"),
        name="a/1.jpg",
        event="a",
        xyxy=np.array(boxes, np.float32),
        invalid=np.array(invalid),
        keypoints=np.full((len(boxes), 5, 2), np.nan, np.float32),
        attributes=np.zeros((len(boxes), 6), np.int8),
    )


def found(*boxes: list) -> dict[str, Detections]:
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return {"a/1.jpg": Detections(xyxy, np.linspace(0.9, 0.5, len(boxes)), np.zeros(len(boxes), np.int64))}


@pytest.mark.parametrize(
    ("boxes", "invalid", "precision", "recall", "f1"),
    [
        pytest.param([A, B], [False, False], 1, 1, 1, id="all"),
        pytest.param([A], [False, False], 1, 1 / 2, 2 / 3, id="one missed"),
        pytest.param([A, B, ELSEWHERE], [False, False], 2 / 3, 1, 4 / 5, id="a false alarm"),
        pytest.param([A, A, B], [False, False], 2 / 3, 1, 4 / 5, id="found twice"),
        pytest.param([A, B], [False, True], 1, 1, 1, id="an invalid face is neither right nor wrong"),
        pytest.param([], [False, False], 1, 0, 0, id="nothing said, nothing wrong"),
    ],
)
def test_scores(boxes: list, invalid: list, precision: float, recall: float, f1: float) -> None:
    measured = scores([entry([A, B], invalid)], found(*boxes))
    assert (measured.precision, measured.recall) == pytest.approx((precision, recall))
    assert measured.f1 == pytest.approx(f1)


@pytest.mark.parametrize(
    ("by", "precision", "expected"),
    [("ap", 0.95, 0.7), ("f1", 0.95, 0.72), ("recall", 0.9, 0.6), ("recall", 0.91, None)],
)
def test_what_is_tuned_by(by: str, precision: float, expected: float | None) -> None:
    assert Scores(ap=0.7, precision=0.9, recall=0.6).by(by, precision) == pytest.approx(expected)


# The search


def made(score: float | None, work: float, precision: float = 1.0, **settings: Any) -> Point:
    return Point(PRESENT | settings, Scores(score or 0, precision, 0.5), score, {"net": work}, work)


@pytest.mark.parametrize(
    ("points", "within", "best"),
    [
        pytest.param([made(0.9, 5), made(0.91, 9)], 0.0, 1, id="the best"),
        pytest.param([made(0.9, 5), made(0.91, 9)], 0.02, 0, id="less work for almost the same"),
        pytest.param([made(0.9, 5), made(0.91, 5)], 0.02, 1, id="the same work: the better one"),
        pytest.param([made(None, 1), made(0.5, 9)], 0.0, 1, id="not one that misses the precision"),
        pytest.param([made(0.9, 5), made(0.9, 5)], 0.0, 0, id="the first of equals"),
    ],
)
def test_choose(points: list[Point], within: float, best: int) -> None:
    assert choose(points, within) is points[best]


def test_a_precision_that_no_point_reaches_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"none of 2 settings.*the highest is 0\.8000"):
        choose([made(None, 1, 0.7), made(None, 1, 0.8)], 0.0)


def searched(score: Callable[[float, float, float], float]) -> tuple[Search, list]:
    """A search with this score of first, last and nms; and the settings that it tried, in order."""
    tried = []

    def point(settings: dict[str, Any]) -> Point:
        place = (*settings["thresholds"], settings["nms"])
        tried.append(place)
        return Point(settings, Scores(0, 1, 1), score(*place), {"net": 1.0}, 1.0)

    values = {FIRST: (0.4, 0.5), LAST: (0.8, 0.9), NMS: (0.3, 0.4, 0.5)}
    return search(PRESENT, values, point, 0.0), tried


def test_thresholds_together_then_nms_from_the_best() -> None:
    result, tried = searched(lambda a, b, n: 1 - abs(a - 0.4) - abs(b - 0.8) - abs(n - 0.3))
    assert tried[:4] == [(0.4, 0.8, 0.4), (0.4, 0.9, 0.4), (0.5, 0.8, 0.4), (0.5, 0.9, 0.4)]
    assert tried[4:] == [(0.4, 0.8, 0.3), (0.4, 0.8, 0.5)]  # the present one is known
    assert result.chosen.settings == {"thresholds": (0.4, 0.8), "nms": 0.3, "min_face": 20}
    assert [point.settings["nms"] for point in result.alone["nms"]] == [0.4, 0.3, 0.5]
    assert len(result.grid) == 4


def test_nms_that_brings_nothing_stays() -> None:
    result, _ = searched(lambda a, b, n: a)
    assert result.chosen.settings["nms"] == 0.4
