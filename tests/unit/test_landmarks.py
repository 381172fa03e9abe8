"""Landmark error: cases worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.data.widerface import Entry, read
from octavo.evaluate.landmarks import LandmarkError, errors, measure, nme
from octavo.outputs import Detections

BOX = [10.0, 10.0, 50.0, 40.0]  # 40 x 30: sqrt(w h) = 34.64
FACE = np.array([[20, 20], [40, 20], [30, 28], [22, 34], [38, 34]], np.float32)  # eyes 20 apart
SIZE = np.sqrt(40 * 30)
UNKNOWN = np.full((5, 2), np.nan, np.float32)


def entry(name: str, *faces: tuple[list[float], np.ndarray, bool]) -> Entry:
    return Entry(
        path=Path(name),
        name=name,
        event=name.split("/")[0],
        xyxy=np.array([box for box, _, _ in faces], np.float32).reshape(-1, 4),
        invalid=np.array([not valid for _, _, valid in faces], bool),
        keypoints=np.array([points for _, points, _ in faces], np.float32).reshape(-1, 5, 2),
        attributes=np.zeros((len(faces), 6), np.int8),
    )


def found(*rows: tuple[list[float], float, np.ndarray]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.zeros(len(rows), np.int64),
        np.array([points for _, _, points in rows], np.float32).reshape(-1, 5, 2),
    )


def moved(dx: float, dy: float = 0.0) -> np.ndarray:
    return FACE + np.array([dx, dy], np.float32)


ONE = [entry("a/1.jpg", (BOX, FACE, True))]


@pytest.mark.parametrize(
    ("detections", "pixels"),
    [
        pytest.param([(BOX, 0.9, FACE)], 0, id="perfect"),
        pytest.param([(BOX, 0.9, moved(3, 4))], 5, id="all points 5 pixels off"),
        pytest.param([(BOX, 0.9, np.vstack([FACE[:4], FACE[4:] + 3]))], np.sqrt(18) / 5, id="one point off"),
        pytest.param([(BOX, 0.2, moved(9)), (BOX, 0.9, moved(2))], 2, id="the better score counts, not the order"),
        pytest.param([([200, 200, 240, 230], 0.9, moved(9)), (BOX, 0.2, moved(2))], 2, id="another face has its own"),
    ],
)  # fmt: skip
def test_error(detections: list[tuple[list[float], float, np.ndarray]], pixels: float) -> None:
    result = {"a/1.jpg": found(*detections)}
    assert nme(ONE, result) == pytest.approx({"a": pixels / SIZE, "all": pixels / SIZE}, abs=1e-7)
    assert nme(ONE, result, "interocular")["all"] == pytest.approx(pixels / 20, abs=1e-7)


def test_mean_is_over_faces_and_counts_say_how_many() -> None:
    far = [110.0, 10.0, 150.0, 40.0]
    entries = [
        entry("a/1.jpg", (BOX, FACE, True), (far, moved(100), True)),
        entry("a/2.jpg", (BOX, FACE, True)),
        entry("b/1.jpg", (BOX, FACE, True)),
        entry("c/1.jpg", (BOX, UNKNOWN, True)),
    ]
    detections = {
        "a/1.jpg": found((BOX, 0.5, moved(1)), (far, 0.9, moved(102))),
        "a/2.jpg": found((BOX, 0.5, moved(6))),
        "b/1.jpg": found(),
        "c/1.jpg": found((BOX, 0.5, moved(50))),
    }
    assert measure(entries, detections) == {
        "a": LandmarkError(pytest.approx(3 / SIZE, abs=1e-7), 3, 3),  # type: ignore[arg-type]
        "b": LandmarkError(None, 0, 1),
        "all": LandmarkError(pytest.approx(3 / SIZE, abs=1e-7), 3, 4),  # type: ignore[arg-type]
    }
    assert list(nme(entries, detections)) == ["a", "all"]
    expected = np.array([1, 2, 6, np.nan]) / SIZE
    assert errors(entries, detections)["all"] == pytest.approx(expected, abs=1e-7, nan_ok=True)


@pytest.mark.parametrize(
    ("points", "valid"),
    [
        pytest.param(FACE, False, id="invalid face"),
        pytest.param(UNKNOWN, True, id="no landmarks"),
        pytest.param(np.vstack([UNKNOWN[:1], FACE[1:]]), True, id="four of five points"),
    ],
)
def test_faces_that_do_not_count(points: np.ndarray, valid: bool) -> None:
    entries = [entry("a/1.jpg", (BOX, points, valid), ([100.0, 0, 140, 30], UNKNOWN, True))]
    assert measure(entries, {"a/1.jpg": found((BOX, 0.5, FACE))}) == {}


def test_eyes_on_one_pixel_have_no_interocular_distance() -> None:
    profile = FACE.copy()
    profile[1] = profile[0]
    entries = [entry("a/1.jpg", (BOX, profile, True))]
    assert measure(entries, {"a/1.jpg": found((BOX, 0.5, FACE))}, "interocular") == {}
    assert measure(entries, {"a/1.jpg": found((BOX, 0.5, FACE))})["a"].found == 1


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="normaliser 'eyes' is not known: give one of size, interocular"):
        nme(ONE, {"a/1.jpg": found()}, "eyes")
    bare = Detections(np.array([BOX], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"a/1\.jpg: expected keypoints of shape \(n, 5, 2\), found none"):
        nme(ONE, {"a/1.jpg": bare})


def test_annotations_as_detections_of_the_shared_data_set(shared: Path) -> None:
    entries = [e for e in read(shared / "data/faces", "val") if e.event == "2--Portrait"]
    detections = {}
    for e in entries:
        score = np.linspace(0.9, 0.5, len(e.xyxy))
        detections[e.name] = Detections(e.xyxy, score, np.zeros(len(score), int), np.nan_to_num(e.keypoints))
    assert measure(entries, detections)["all"] == LandmarkError(0.0, 374, 374)
