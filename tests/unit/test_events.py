"""AP by event and by size: small cases worked out by hand, and the benchmark's protocol with other subsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.data.widerface import Entry, read
from octavo.evaluate import widerface
from octavo.evaluate.events import by_event, by_size, curves
from octavo.outputs import Detections


def entry(name: str, boxes: list[list[float]], invalid: list[bool] | None = None) -> Entry:
    n = len(boxes)
    return Entry(
        path=Path(name),
        name=name,
        event=name.split("/")[0],
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        invalid=np.array(invalid if invalid is not None else [False] * n, bool),
        keypoints=np.full((n, 5, 2), np.nan, np.float32),
        attributes=np.zeros((n, 6), np.int8),
    )


def found(*rows: tuple[list[float], float]) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([score for _, score in rows], np.float32), np.zeros(len(rows), np.int64)
    )


A, B, C = [10, 10, 30, 30], [50, 50, 90, 90], [100, 0, 240, 140]
ELSEWHERE = [200, 200, 220, 220]
ONE = [entry("a/1.jpg", [A, B])]


@pytest.mark.parametrize(
    ("entries", "detections", "expected"),
    [
        pytest.param(ONE, [(A, 0.9), (B, 0.1)], {"a": 1, "all": 1}, id="perfect"),
        pytest.param(ONE, [(B, 0.1), (A, 0.9)], {"a": 1, "all": 1}, id="any order"),
        pytest.param(ONE, [(A, 0.9)], {"a": 0.5, "all": 0.5}, id="one missed"),
        pytest.param(ONE, [], {"a": 0, "all": 0}, id="none found"),
        # recall .5 at precision 1, then 1 at 2/3
        pytest.param(ONE, [(A, 0.9), (ELSEWHERE, 0.5), (B, 0.1)], {"a": 5 / 6, "all": 5 / 6}, id="false alarm"),
        pytest.param(ONE, [(A, 0.9), (A, 0.5), (B, 0.1)], {"a": 5 / 6, "all": 5 / 6}, id="found twice"),
        pytest.param(
            [entry("a/1.jpg", [A, B], [False, True])], [(B, 0.9), (B, 0.8), (A, 0.1)], {"a": 1, "all": 1},
            id="an invalid face is neither right nor wrong",
        ),
        pytest.param(
            [entry("a/1.jpg", [A], None), entry("b/1.jpg", [B], [True])], [(A, 0.9)], {"a": 1, "all": 1},
            id="an event without valid faces is left out",
        ),
    ],
)  # fmt: skip
def test_one_image(
    entries: list[Entry], detections: list[tuple[list[float], float]], expected: dict[str, float]
) -> None:
    found_in = {e.name: found() for e in entries} | {"a/1.jpg": found(*detections)}
    assert by_event(entries, found_in) == pytest.approx(expected)


def test_a_false_alarm_counts_in_its_event_and_in_all() -> None:
    entries = [entry("a/1.jpg", [A]), entry("b/1.jpg", [A])]
    result = by_event(entries, {"a/1.jpg": found((A, 0.5)), "b/1.jpg": found((ELSEWHERE, 0.9), (A, 0.1))})
    # all: a false alarm first, then the faces at precision 1/2 and 2/3; the envelope is 2/3
    assert result == pytest.approx({"a": 1, "b": 0.5, "all": 2 / 3})
    assert list(result) == ["a", "b", "all"]


def test_scores_are_normalised_over_all_events() -> None:
    """In event b the two scores fall into one of the 1000 steps, so the right one is not seen to come first."""
    entries = [entry("a/1.jpg", [A]), entry("b/1.jpg", [A])]
    close = found((A, 0.50001), (ELSEWHERE, 0.5))
    result = by_event(entries, {"a/1.jpg": found((A, 0.0), (B, 1.0)), "b/1.jpg": close})
    assert result["b"] == pytest.approx(0.5)
    alone = by_event(entries[1:], {"b/1.jpg": close})
    assert alone["b"] == 1


def test_images_without_faces_say_nothing_of_precision() -> None:
    entries = [entry("a/1.jpg", [A]), entry("a/2.jpg", [])]
    assert by_event(entries, {"a/1.jpg": found((A, 0.5)), "a/2.jpg": found((B, 0.9))})["all"] == 1


def test_same_as_the_benchmark_where_a_subset_is_all_valid_faces() -> None:
    """Random boxes; the benchmark's function on the same faces, with the valid ones as its list."""
    random = np.random.default_rng(5)
    entries, detections = [], {}
    for i in range(60):
        xy = random.integers(0, 80, (random.integers(0, 5), 2))
        boxes = np.c_[xy, xy + random.integers(5, 40, xy.shape)]
        one = entry(f"{'ab'[i % 2]}/{i}.jpg", boxes.tolist(), (random.random(len(boxes)) < 0.3).tolist())
        guesses = np.r_[boxes + random.integers(-3, 4, boxes.shape), boxes[:1] + 2]
        entries.append(one)
        detections[one.name] = found(*[(box, float(random.random())) for box in guesses.tolist()])
    truth = widerface.GroundTruth(
        [e.name for e in entries],
        [e.xyxy.astype(np.float64) for e in entries],
        {"valid": ~np.concatenate([e.invalid for e in entries])},
    )
    expected = widerface.measure(detections, truth).ap["valid"]
    assert 0.2 < expected < 0.95
    assert by_event(entries, detections)["all"] == pytest.approx(expected, abs=1e-12)


def test_by_size() -> None:
    """Sides of 20, 40 and 140: a small false alarm costs the small bin only."""
    entries = [entry("a/1.jpg", [A, B, C])]
    detections = {"a/1.jpg": found((ELSEWHERE, 0.9), (A, 0.8), (B, 0.7))}
    assert by_size(entries, detections) == pytest.approx({"16-32": 0.5, "32-64": 1, "128-256": 0})
    assert by_size(entries, detections, edges=(0, 100)) == pytest.approx({"0-100": 2 / 3, "100+": 0})
    # a bin takes its lower edge in and leaves its upper edge out
    assert by_size(entries, detections, edges=(20, 40, 140)) == pytest.approx(
        {"20-40": 0.5, "40-140": 1, "140+": 0}
    )


@pytest.mark.parametrize(
    ("detections", "recall", "precision"),
    [
        pytest.param([(A, 0.9), (B, 0.1)], [1], [1], id="perfect"),
        pytest.param([(A, 0.9), (ELSEWHERE, 0.5), (B, 0.1)], [0.5, 1], [1, 2 / 3], id="false alarm between"),
        pytest.param([(ELSEWHERE, 0.9), (A, 0.5), (B, 0.1)], [1], [2 / 3], id="a dip is under the envelope"),
        pytest.param([(A, 0.9), (ELSEWHERE, 0.1)], [0.5], [1], id="a false alarm at the end adds no recall"),
        pytest.param([], [], [], id="none found"),
    ],
)
def test_steps_of_a_curve(
    detections: list[tuple[list[float], float]], recall: list[float], precision: list[float]
) -> None:
    steps = curves(ONE, {"a/1.jpg": found(*detections)})["all"].steps()
    assert [list(s) for s in steps] == [pytest.approx(recall), pytest.approx(precision)]


def test_the_area_under_the_steps_is_the_average_precision() -> None:
    random = np.random.default_rng(1)
    entries, detections = [], {}
    for i in range(40):
        xy = random.integers(0, 200, (5, 2))
        boxes = np.c_[xy, xy + random.integers(10, 60, xy.shape)]
        entries.append(entry(f"a/{i}.jpg", boxes.tolist()))
        guesses = np.r_[boxes + random.integers(-4, 5, boxes.shape), boxes[:2] + 300]
        score = random.random(7) ** np.repeat(
            [0.5, 1.5], [5, 2]
        )  # false alarms come later, but not all of them
        detections[f"a/{i}.jpg"] = found(*zip(guesses.tolist(), score.tolist(), strict=True))
    curve = curves(entries, detections)["all"]
    recall, precision = curve.steps()
    assert (np.diff(recall) > 0).all()
    assert (np.diff(precision) < 0).all()
    assert len(recall) > 10
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(curve.ap, abs=1e-12)


def test_images_without_detections_are_named() -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 images have no detections given .* a/2\.jpg"):
        result = by_event([entry("a/1.jpg", [A]), entry("a/2.jpg", [A])], {"a/1.jpg": found((A, 0.5))})
    assert result["all"] == 0.5


@pytest.mark.parametrize("entries", [[], [entry("a/1.jpg", [])], [entry("a/1.jpg", [A], [True])]])
def test_nothing_to_measure(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="without a single valid face"):
        by_event(entries, {e.name: found() for e in entries})


def test_annotations_as_detections_of_the_shared_data_set(shared: Path) -> None:
    entries = read(shared / "data/faces", "val")
    detections = {
        e.name: Detections(
            e.xyxy, np.linspace(0.9, 0.5, len(e.xyxy), dtype=np.float32), np.zeros(len(e.xyxy), int)
        )
        for e in entries
    }
    assert by_event(entries, detections) == {"0--Crowd": 1, "1--Web": 1, "2--Portrait": 1, "all": 1}
    assert set(by_size(entries, detections).values()) == {1.0}
