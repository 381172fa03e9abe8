"""Boxes against plain loops and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import boxes


def random_boxes(rng: np.random.Generator, count: int, spread: float = 100) -> np.ndarray:
    corner = rng.uniform(0, spread, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1).astype(np.float32)


def plain_overlap(a: np.ndarray, b: np.ndarray, measure: str) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    first, second = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    shared = width * height
    return shared / (min(first, second) if measure == "min" else first + second - shared)


def plain_nms(xyxy: np.ndarray, scores: np.ndarray, threshold: float, measure: str) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(plain_overlap(xyxy[i], xyxy[j], measure) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize(
    ("a", "b", "iou", "iom"),
    [
        pytest.param([0, 0, 10, 10], [0, 0, 10, 10], 1, 1, id="same"),
        pytest.param([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3, 0.5, id="half shared"),
        pytest.param([0, 0, 10, 10], [2, 2, 4, 4], 0.04, 1, id="inside"),
        pytest.param([0, 0, 10, 10], [10, 0, 20, 10], 0, 0, id="touching"),
        pytest.param([0, 0, 10, 10], [30, 30, 20, 20], 0, 0, id="inside out"),
        pytest.param([3, 3, 3, 3], [3, 3, 3, 3], 0, 0, id="no area"),
    ],
)
def test_overlap(a: list[float], b: list[float], iou: float, iom: float) -> None:
    first, second = np.array([a], np.float32), np.array([b], np.float32)
    assert boxes.iou(first, second)[0, 0] == pytest.approx(iou)
    assert boxes.iom(first, second)[0, 0] == pytest.approx(iom)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 700),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    measure=st.sampled_from(["union", "min"]),
)
def test_nms_is_the_plain_greedy_one(seed: int, count: int, threshold: float, measure: str) -> None:
    rng = np.random.default_rng(seed)
    xyxy = random_boxes(rng, min(count, 700), spread=rng.choice([20, 100, 400]))
    scores = rng.integers(0, 50, len(xyxy)).astype(np.float32)  # ties are common with integer scores
    # Doubles in the plain form and float32 in ours may disagree about an overlap equal to the threshold.
    pairs = {"union": boxes.iou, "min": boxes.iom}[measure](xyxy, xyxy)
    if (np.abs(pairs - threshold) < 1e-5)[pairs > 0].any():
        return
    assert boxes.nms(xyxy, scores, threshold, measure).tolist() == plain_nms(
        xyxy.astype(np.float64), scores, threshold, measure
    )


def test_square_keeps_centre_and_longer_side() -> None:
    squared = boxes.square(np.array([[0, 0, 10, 20], [4, 4, 8, 6]], np.float32))
    assert squared.tolist() == [[-5, 0, 15, 20], [4, 3, 8, 7]]


def test_crop_is_the_pixels_and_outside_is_fill() -> None:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    whole, outside, corner = boxes.crop_resize(
        image, np.array([[2, 1, 6, 5], [50, 50, 54, 54], [-2, -2, 2, 2]]), 4, fill=77
    )
    assert (whole == image[1:5, 2:6]).all()
    assert (outside == 77).all()
    assert (corner[2:, 2:] == image[:2, :2]).all()
    assert (corner[:2] == 77).all()


def test_crop_of_an_area_averages() -> None:
    """Four to one: 2x2 means of 2x2 means, each rounded once, so at most one level off the mean of the 16."""
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    made = boxes.crop_resize(image, np.array([[0, 0, 40, 40]]), 10)[0]
    exact = image.reshape(10, 4, 10, 4, 3).mean((1, 3))
    assert np.abs(made - exact).max() <= 1
