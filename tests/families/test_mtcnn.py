"""MTCNN against the published weights run by other means: functional torch, loops, a plain NMS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from octavo import folder, images, verbs
from octavo.boxes import nms
from octavo.models import save_module
from octavo.models.mtcnn import data, net
from octavo.models.mtcnn.predict import CELL, REACH, STRIDE, Cells, Network, Settings, predict, thin
from octavo.models.mtcnn.recipe import RECIPES

WIDTHS = {"pnet": 12, "rnet": 24, "onet": 48}


def published(name: str, w: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The published graph on its own tensors, straight from the topology; x (n, 3, h, w) pixels 0..255."""

    def act(i: int, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(x, w[f"prelu{i}.weight"])

    def conv(i: int, x: torch.Tensor) -> torch.Tensor:
        return act(i, F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"]))

    def dense(key: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{key}.weight"], w[f"{key}.bias"])

    x = (x.float() - 127.5) / 128
    if name == "pnet":
        x = conv(3, conv(2, F.max_pool2d(conv(1, x), 2, 2, ceil_mode=True)))
        return tuple(F.conv2d(x, w[f"{k}.weight"], w[f"{k}.bias"]) for k in ("conv4_1", "conv4_2"))
    x = F.max_pool2d(conv(1, x), 3, 2, ceil_mode=True)
    x = F.max_pool2d(conv(2, x), 3, 2, ceil_mode=True)
    if name == "rnet":
        x = act(4, dense("dense4", conv(3, x).permute(0, 3, 2, 1).flatten(1)))
        return dense("dense5_1", x), dense("dense5_2", x)
    x = conv(4, F.max_pool2d(conv(3, x), 2, 2, ceil_mode=True))
    x = act(5, dense("dense5", x.permute(0, 3, 2, 1).flatten(1)))
    return dense("dense6_1", x), dense("dense6_2", x), dense("dense6_3", x)


def function(module: torch.nn.Module) -> Network:
    """A module as the cascade calls it: uint8 pixels in, arrays out."""

    def call(x: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return tuple(o.numpy() for o in module((torch.from_numpy(x).float() - 128) / 128))

    return call


@pytest.fixture(scope="module")
def weights(shared: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: torch.load(shared / f"weights/mtcnn/{name}.pt", weights_only=True) for name in WIDTHS}


@pytest.fixture(scope="module")
def run(shared: Path) -> dict[str, Network]:
    modules = net.build("mtcnn")
    for name, state in net.import_weights(shared / "weights/mtcnn").items():
        modules[name].load_state_dict(state)
        modules[name].eval()
    return {name: function(module) for name, module in modules.items()}


@pytest.mark.parametrize("name", WIDTHS)
def test_imported_networks_are_the_published_ones(name: str, weights: dict, run: dict) -> None:
    size = WIDTHS[name]
    pixels = np.random.default_rng(1).integers(0, 256, (8, 3, size, size), np.uint8)
    for ours, theirs in zip(
        run[name](pixels), published(name, weights[name], torch.from_numpy(pixels)), strict=True
    ):
        assert np.abs(ours - theirs.numpy()).max() < 2e-4


def reference_cascade(image: np.ndarray, weights: dict, settings: Settings) -> list[tuple]:
    """The same cascade, one box at a time in double precision, softmax where ours compares logits."""

    def overlap(a: list[float], b: list[float], smaller: bool) -> float:
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        first, second = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
        return shared / (min(first, second) if smaller else first + second - shared)

    def suppress(found: list[tuple], limit: float, smaller: bool = False) -> list[tuple]:
        kept: list[tuple] = []
        for item in sorted(found, key=lambda item: -item[1]):
            if all(overlap(item[0], other[0], smaller) <= limit for other in kept):
                kept.append(item)
        return kept

    def moved(box: list[float], by: list[float]) -> list[float]:
        width, height = box[2] - box[0], box[3] - box[1]
        return [
            box[0] + by[0] * width,
            box[1] + by[1] * height,
            box[2] + by[2] * width,
            box[3] + by[3] * height,
        ]

    def squared(box: list[float]) -> list[float]:
        half = max(box[2] - box[0], box[3] - box[1]) / 2
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        return [float(np.rint(v)) for v in (x - half, y - half, x + half, y + half)]

    def crop(box: list[float], size: int) -> torch.Tensor:
        x1, y1, x2, y2 = (int(v) for v in box)
        margin = 2 * max(x2 - x1, 12) + abs(min(x1, y1, 0))
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=128)
        cut = padded[y1 + margin : y2 + margin, x1 + margin : x2 + margin]
        if max(cut.shape[:2]) > 2 * size:
            cut = cv2.resize(cut, (2 * size, 2 * size))
        return torch.from_numpy(cv2.resize(cut, (size, size))).permute(2, 0, 1)[None]

    height, width = image.shape[:2]
    proposals, scale, level = [], 12 / settings.min_face, image
    while min(height, width) * scale >= 12:
        w, h = 2 * int(np.ceil(width * scale / 2)), 2 * int(np.ceil(height * scale / 2))
        if (w, h) != (level.shape[1], level.shape[0]):
            how = cv2.INTER_AREA if w < 0.6 * level.shape[1] else cv2.INTER_LINEAR
            level = cv2.resize(level, (w, h), interpolation=how)
        face, box = published("pnet", weights["pnet"], torch.from_numpy(level).permute(2, 0, 1)[None])
        probability = face.double().softmax(1)[0, 1]
        here = []
        for i, j in (probability > settings.thresholds[0]).nonzero().tolist():
            cell = [2 * j, 2 * i, 2 * j + 12, 2 * i + 12]
            here.append((cell, float(probability[i, j]), box[0, :, i, j].tolist()))
        for (x1, y1, x2, y2), p, by in suppress(here, settings.nms[0]):
            window = [x1 * width / w, y1 * height / h, x2 * width / w, y2 * height / h]
            proposals.append((moved(window, by), p))
        scale *= settings.factor
    windows = [box for box, _ in suppress(proposals, settings.nms[1])]

    refined = []
    for window in map(squared, windows):
        face, box = published("rnet", weights["rnet"], crop(window, 24))
        probability = float(face.double().softmax(1)[0, 1])
        if probability > settings.thresholds[1]:
            refined.append((moved(window, box[0].tolist()), probability))
    windows = [box for box, _ in suppress(refined, settings.nms[2])]

    final = []
    for window in map(squared, windows):
        face, box, points = published("onet", weights["onet"], crop(window, 48))
        probability = float(face.double().softmax(1)[0, 1])
        if probability > settings.thresholds[2]:
            wide, high = window[2] - window[0], window[3] - window[1]
            spots = [
                (window[0] + wide * float(points[0, k]), window[1] + high * float(points[0, 5 + k]))
                for k in range(5)
            ]
            final.append((moved(window, box[0].tolist()), probability, spots))
    return suppress(final, settings.nms[3], smaller=True)


PHOTOGRAPHS = [
    "0--Crowd/0_Crowd_0002.jpg",
    "0--Crowd/0_Crowd_0003.jpg",
]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_cascade_agrees_with_an_independent_one(name: str, shared: Path, weights: dict, run: dict) -> None:
    image = images.read(shared / "data/faces/WIDER_val/images" / name)
    settings = Settings(min_face=16, thresholds=(0.6, 0.6, 0.5))
    found = predict(image, run, settings)
    expected = reference_cascade(image, weights, settings)
    assert len(found) == len(expected) > 0
    for row, (box, probability, spots) in enumerate(expected):
        assert np.abs(found.xyxy[row] - box).max() < 1e-3
        assert abs(found.confidence[row] - probability) < 1e-3
        assert found.keypoints is not None
        assert np.abs(found.keypoints[row] - spots).max() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (11, 11), (12, 12), (13, 500), (300, 12)])
def test_any_image_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    run = {name: function(module.eval()) for name, module in net.build("mtcnn-relu").items()}
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = predict(image, run, Settings(min_face=12, thresholds=(0, 0, 0)))
    assert found.keypoints is not None
    assert found.xyxy.shape == (len(found), 4)
    assert found.keypoints.shape == (len(found), 5, 2)


def test_no_faces_is_an_empty_result() -> None:
    def never(x: np.ndarray) -> tuple[np.ndarray, ...]:
        cells = (-(-(x.shape[2] - 2) // 2) - 4, -(-(x.shape[3] - 2) // 2) - 4)
        face = np.stack([np.full(cells, 9, np.float32), np.full(cells, -9, np.float32)])
        return face[None], np.zeros((1, 4, *cells), np.float32)

    def unused(x: np.ndarray) -> tuple[np.ndarray, ...]:
        raise AssertionError("no window was left to look at")

    image = np.zeros((100, 100, 3), np.uint8)
    found = predict(image, {"pnet": never, "rnet": unused, "onet": unused}, Settings())
    assert len(found) == 0
    assert found.keypoints is not None
    assert found.keypoints.shape == (0, 5, 2)


@pytest.mark.parametrize(("name", "size"), WIDTHS.items())
def test_finish_makes_the_centre_read_a_half(name: str, size: int) -> None:
    module = net.build("mtcnn-relu")[name].eval()
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = module(x)[0].flatten(1).softmax(1)[:, 1]
    net.finish(module, replace(RECIPES["mtcnn-relu"].stages[name], centre=0.2))
    after = module(x)[0].flatten(1).softmax(1)[:, 1]
    odds = before / (1 - before) * (0.8 / 0.2)  # Bayes: odds of .2 become odds of .5
    assert torch.allclose(after, odds / (1 + odds), atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "thresholds", "confidence"),
    [
        pytest.param({}, (0.6, 0.7, 0.7), 0, id="stored"),
        pytest.param({"confidence": 0.02}, (0.6, 0.7, 0.02), 0.02, id="confidence alone replaces the last"),
        pytest.param({"confidence": 0.9}, (0.6, 0.7, 0.9), 0.9, id="also upwards"),
        pytest.param(
            {"thresholds": (0.5, 0.5, 0.3), "confidence": 0.4}, (0.5, 0.5, 0.3), 0.4, id="both filter"
        ),
    ],
)
def test_settings(overrides: dict, thresholds: tuple, confidence: float) -> None:
    made = Settings.of(Settings().to_dict(), **overrides)
    assert (made.thresholds, made.confidence) == (thresholds, confidence)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"thresholds": (0.5, 0.5)}, "3 numbers"),
        ({"thresholds": (0.5, 0.5, 7)}, "0 to 1"),
        ({"min_face": 0}, "above 0"),
        ({"factor": 1.2}, "factor"),
        ({"factor": (0.5, 1.2)}, "factor"),
        ({"factor": ()}, "factor"),
        ({"stride": 2}, "no setting stride"),
        ({"confidence": -1}, "probability"),
    ],
)
def test_wrong_settings_are_explained(overrides: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings.of({}, **overrides)


def test_a_network_that_sees_nothing_is_not_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A barely trained P-Net lets nothing through: the error says so instead of naming an empty set."""
    modules = net.build("mtcnn-relu")
    for name, module in modules.items():
        save_module(module, tmp_path / "float" / f"{name}.pt")
    folder.write_info(tmp_path / "float", float_info("mtcnn-relu"))
    monkeypatch.setattr(
        data,
        "calibration_batches",
        lambda name, *_: iter([]) if name == "rnet" else iter([np.zeros((1, 3, 24, 24), np.uint8)]),
    )
    with pytest.raises(ValueError, match="rnet has nothing to be calibrated on"):
        verbs.quantize(tmp_path / "float", tmp_path, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def float_info(variant: str) -> dict:
    return {
        "format": folder.FORMAT,
        "family": "mtcnn",
        "variant": variant,
        "precision": "float",
        "networks": list(WIDTHS),
        "preprocessing": verbs.PREPROCESSING,
        "settings": Settings().to_dict(),
    }


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 300),
    threshold=st.sampled_from([0, 0.2, 0.3, 0.5, 0.7, 1]),
)
def test_thinning_a_grid_is_nms_within_its_levels(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, (3, 2))
    starts = np.cumsum([0, *(sizes[:-1, 1] + REACH)])
    level = rng.integers(0, 3, count)
    spots = np.unique(np.column_stack([level, rng.integers(0, sizes[level])]), axis=0)
    level, places = (
        spots[:, 0],
        spots[:, 1:] + np.column_stack([np.zeros(len(spots), int), starts[spots[:, 0]]]),
    )
    corner = spots[:, :0:-1] * STRIDE
    windows = np.concatenate([corner, corner + CELL], axis=1).astype(np.float32)
    scores = rng.integers(0, 20, len(spots)).astype(np.float32)  # ties are common with integer scores
    kept = thin(Cells(places, windows, scores, windows), threshold)
    for one in range(3):
        rows = np.flatnonzero(level == one)
        expected = rows[nms(windows[rows], scores[rows], threshold)]
        assert [row for row in kept if level[row] == one] == expected.tolist()
    assert (np.diff(scores[kept]) <= 0).all()
