"""Agreement of two models: cases counted by hand, and properties that hold for any boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from octavo.boxes import iou
from octavo.evaluate.agreement import measure, pair
from octavo.outputs import Detections

A, B, C = [0, 0, 20, 20], [100, 0, 140, 40], [200, 200, 210, 210]
A_SHIFTED = [5, 0, 25, 20]  # IoU 15 / 25 = .6 with A
A_HALF = [0, 0, 20, 10]  # IoU .5 with A, exactly
A_LESS = [0, 0, 20, 9.9]  # just below


def found(*rows: tuple[list[float], float], points: list[float] | None = None) -> Detections:
    """Detections of (box, confidence); `points`: the x of two keypoints of every box, y is 0."""
    n = len(rows)
    keypoints = None
    if points is not None:
        keypoints = np.zeros((n, len(points), 2), np.float32)
        keypoints[:, :, 0] = points
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s in rows], np.float32), np.zeros(n, np.int64), keypoints)


@pytest.mark.parametrize(
    ("reference", "other", "pairs"),
    [
        pytest.param([A, B], [B, A], [(0, 1), (1, 0)], id="any order"),
        pytest.param([A], [A, A_SHIFTED], [(0, 0)], id="found twice: one partner"),
        pytest.param([A, A_SHIFTED], [A], [(0, 0)], id="two faces merged: one partner"),
        pytest.param([A_SHIFTED, A], [A], [(1, 0)], id="the largest overlap first"),
        pytest.param([A], [A_HALF], [(0, 0)], id="from .5 on"),
        pytest.param([A], [A_LESS], [], id="below .5"),
        pytest.param([], [A], [], id="nothing against something"),
        pytest.param([], [], [], id="nothing against nothing"),
    ],
)
def test_pairs(reference: list, other: list, pairs: list) -> None:
    made = pair(np.array(reference, np.float32).reshape(-1, 4), np.array(other, np.float32).reshape(-1, 4))
    assert sorted(map(tuple, made.tolist())) == sorted(pairs)


def test_two_images_counted_by_hand() -> None:
    measured = measure(
        [
            (found((A, 0.9), (B, 0.8)), found((A_SHIFTED, 0.7), (B, 0.85), (C, 0.6))),
            (found((C, 0.5)), found()),
        ]
    )
    assert (measured.images, measured.reference, measured.other, measured.pairs) == (2, 3, 3, 2)
    assert measured.found == pytest.approx(2 / 3)
    assert measured.confirmed == pytest.approx(2 / 3)
    assert measured.share == pytest.approx(2 / 3)
    assert measured.iou == pytest.approx((0.6 + 1) / 2)
    assert measured.score_mean == pytest.approx((0.2 + 0.05) / 2, abs=1e-6)
    assert measured.score_max == pytest.approx(0.2, abs=1e-6)
    assert measured.keypoints is None


def test_keypoints_are_measured_in_sides_of_the_references_box() -> None:
    # 20 pixels a side; the points are 0 and 4 pixels apart: mean 2
    measured = measure([(found((A, 1), points=[0, 10]), found((A, 1), points=[0, 14]))])
    assert measured.keypoints == pytest.approx(2 / 20)


def test_other_keypoints_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="2 and with 3 keypoints"):
        measure([(found((A, 1), points=[0, 1]), found((A, 1), points=[0, 1, 2]))])


@pytest.mark.parametrize(
    ("images", "share"),
    [
        pytest.param([(found(), found())], 1, id="both silent: they agree"),
        pytest.param([(found((A, 1)), found())], 0, id="everything lost"),
        pytest.param([(found(), found((A, 1)))], 0, id="everything invented"),
        pytest.param([(found((A, 1)), found((A, 1), (B, 1)))], 0.5, id="half invented: the lower of the two"),
        pytest.param([], None, id="no images, no answer"),
    ],
)
def test_share(images: list, share: float | None) -> None:
    assert measure(images).share == share


corners = arrays(
    np.float32, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 30).map(float)
)


@settings(deadline=None)
@given(corners, corners)
def test_any_boxes(one: np.ndarray, two: np.ndarray) -> None:
    one, two = (np.concatenate([b[:, :2], b[:, :2] + b[:, 2:] + 1], axis=1) for b in (one, two))
    pairs = pair(one, two)
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    overlap = iou(one, two)
    assert (overlap[pairs[:, 0], pairs[:, 1]] >= 0.5).all()
    free = np.ix_(~np.isin(np.arange(len(one)), pairs[:, 0]), ~np.isin(np.arange(len(two)), pairs[:, 1]))
    assert (overlap[free] < 0.5).all()  # no two boxes without a partner belong together
    same = measure([(found(*((b, 0.5) for b in one.tolist())),) * 2])
    assert same.pairs == len(one)
    assert same.score_max in (None, 0)
