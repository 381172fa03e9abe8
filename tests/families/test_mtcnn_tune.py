"""The replayed cascade against the running one, box for box, on the embedded models and the sample photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from octavo import images, verbs
from octavo.models.mtcnn.predict import Network, Settings, predict
from octavo.models.mtcnn.tune import AXES, Trace, replay, trace

PRESENT = Settings(min_face=20, thresholds=(0.8, 0.7, 0.9))
# Each value stands in one of these; any combination of them may be replayed.
WANTED = [
    PRESENT,
    replace(PRESENT, thresholds=(0.7, 0.6, 0.02), nms=(0.4, 0.6, 0.7, 0.7)),
    replace(PRESENT, nms=(0.6, 0.8, 0.7, 0.7)),
]
TRIED = {
    "as they stand": PRESENT,
    "the lowest of all": replace(PRESENT, thresholds=(0.7, 0.6, 0.02)),
    "between what was wanted": replace(PRESENT, thresholds=(0.77, 0.64, 0.5)),
    "above it": replace(PRESENT, thresholds=(0.95, 0.9, 0.99)),
    "P-Net's NMS close and loose": replace(PRESENT, thresholds=(0.7, 0.6, 0.5), nms=(0.4, 0.8, 0.7, 0.7)),
    "loose and close": replace(PRESENT, thresholds=(0.7, 0.6, 0.5), nms=(0.6, 0.6, 0.7, 0.7)),
    "later NMS at any value": replace(PRESENT, thresholds=(0.7, 0.6, 0.02), nms=(0.5, 0.7, 0.2, 0.9)),
    "a confidence above the threshold": replace(PRESENT, thresholds=(0.7, 0.6, 0.02), confidence=0.6),
}
Looked = tuple[verbs.Model, dict[Path, np.ndarray], dict[Path, Trace]]


@pytest.fixture(scope="module", params=["mtcnn-relu", "mtcnn-relu-float"])
def looked(request: pytest.FixtureRequest) -> Looked:
    model = verbs.load(request.param, "onnxruntime")
    pictures = {path: images.read(path) for path in verbs.samples()}
    return model, pictures, {path: trace(image, model.run, WANTED) for path, image in pictures.items()}


@pytest.mark.parametrize("settings", TRIED.values(), ids=TRIED.keys())
def test_replay_is_predict(looked: Looked, settings: Settings) -> None:
    model, pictures, traces = looked
    for path, image in pictures.items():
        windows = dict.fromkeys(model.run, 0)
        expected = predict(image, counting(model.run, windows), settings)
        found, seen = replay(traces[path], settings)
        assert found == expected  # every box, confidence and landmark, to the last bit
        assert seen == {"rnet": windows["rnet"], "onet": windows["onet"]}


def counting(run: Mapping[str, Network], windows: dict[str, int]) -> dict[str, Network]:
    """The same networks, which add up what they are given."""

    def counted(name: str, network: Network) -> Network:
        def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            windows[name] += len(pixels)
            return network(pixels)

        return call

    return {name: counted(name, network) for name, network in run.items()}


def test_the_settings_tried_make_a_difference(looked: Looked) -> None:
    """To the faces found or the windows looked at, else the test above would say little."""
    _, _, traces = looked
    replayed = [[replay(t, s) for t in traces.values()] for s in TRIED.values()]
    assert all(sum(len(found) for found, _ in images) for images in replayed)
    counts = [tuple((len(found), *seen.values()) for found, seen in images) for images in replayed]
    assert len(set(counts)) >= 6


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(replace(PRESENT, thresholds=(0.69, 0.7, 0.9)), id="P-Net below the trace"),
        pytest.param(replace(PRESENT, thresholds=(0.8, 0.59, 0.9)), id="R-Net below the trace"),
        pytest.param(replace(PRESENT, nms=(0.45, 0.7, 0.7, 0.7)), id="another NMS of P-Net"),
        pytest.param(replace(PRESENT, min_face=12), id="another pyramid"),
    ],
)
def test_what_was_not_traced_is_refused(looked: Looked, settings: Settings) -> None:
    _, _, traces = looked
    with pytest.raises(ValueError, match="not among those wanted"):
        replay(next(iter(traces.values())), settings)


def test_one_pyramid_at_a_time(looked: Looked) -> None:
    model, pictures, _ = looked
    with pytest.raises(ValueError, match="one pyramid"):
        trace(next(iter(pictures.values())), model.run, [PRESENT, replace(PRESENT, min_face=12)])


@pytest.mark.parametrize("size", [(1, 1), (11, 300), (64, 64)])
def test_images_without_a_face(looked: Looked, size: tuple[int, int]) -> None:
    model, _, _ = looked
    grey = np.full((*size, 3), 128, np.uint8)
    found, seen = replay(trace(grey, model.run, WANTED), PRESENT)
    assert found == predict(grey, model.run, PRESENT)
    assert (len(found), seen["onet"]) == (0, 0)
    assert found.keypoints is not None
    assert found.keypoints.shape == (0, 5, 2)


def test_the_axes_are_all_thresholds_and_all_nms() -> None:
    stored = PRESENT.to_dict()
    places = {(axis.name, axis.index) for axis in AXES}
    assert places == {*product(["thresholds"], range(3)), *product(["nms"], range(4))}
    assert all(axis.put(stored, axis.of(stored)) == stored for axis in AXES)
    assert [axis.label for axis in AXES if axis.reports] == ["O-Net"]
