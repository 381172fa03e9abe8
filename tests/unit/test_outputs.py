"""Detections: checks, indexing like NumPy's, texts there and back, and a picture of what was found."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from octavo import images
from octavo.outputs import Detections, read_wider, write_wider


def some(n: int = 5, k: int | None = 5, seed: int = 0, image: np.ndarray | None = None) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (n, 2))
    xyxy = np.hstack([corner, corner + rng.uniform(8, 90, (n, 2))])
    keypoints = None if k is None else rng.uniform(0, 400, (n, k, 2))
    return Detections(xyxy, rng.uniform(0, 1, n), rng.integers(0, 3, n), keypoints, image)


# Checks


def test_arrays_are_copied_converted_and_read_only() -> None:
    xyxy = np.array([[1, 2, 3, 4]], np.float64)
    found = Detections(xyxy, [0.5], np.array([2.0]))
    xyxy[:] = 9
    assert found.xyxy.tolist() == [[1, 2, 3, 4]]
    assert [found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype] == [
        np.float32,
        np.float32,
        np.int64,
    ]
    for array in (found.xyxy, found.confidence, found.class_id):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.xyxy = xyxy


GOOD: dict[str, Any] = {"xyxy": [[0, 0, 4, 4], [1, 1, 2, 2]], "confidence": [0.5, 0.1], "class_id": [0, 1]}
BAD = {
    "one box without its row": ({"xyxy": [0, 0, 4, 4]}, r"xyxy has shape \(4,\), expected \(n, 4\)"),
    "five columns": ({"xyxy": np.zeros((2, 5))}, r"xyxy has shape \(2, 5\), expected \(n, 4\)"),
    "ragged": ({"xyxy": [[0, 0, 1, 1], [0]]}, r"xyxy: expected numbers of shape \(n, 4\)"),
    "text": ({"confidence": ["sure", "not"]}, r"confidence: expected numbers of shape \(2,\)"),
    "too few confidences": ({"confidence": [0.5]}, r"confidence has shape \(1,\), expected \(2,\)"),
    "confidences in a column": ({"confidence": [[0.5], [0.1]]}, r"confidence has shape \(2, 1\)"),
    "none": ({"confidence": None}, r"confidence"),
    "NaN in a box": ({"xyxy": [[0, 0, 4, 4], [np.nan, 0, 1, 1]]}, "xyxy holds NaN"),
    "NaN in a confidence": ({"confidence": [0.5, np.nan]}, "confidence holds NaN"),
    "NaN in a keypoint": ({"keypoints": np.full((2, 5, 2), np.nan)}, "keypoints holds NaN"),
    "beyond float32": ({"xyxy": [[0, 0, 1e39, 1], [0, 0, 1, 1]]}, "too large for float32"),
    "corners swapped": ({"xyxy": [[0, 0, 4, 4], [3, 1, 2, 2]]}, r"row 1 is \[3.0, 1.0, 2.0, 2.0\].*x1 <= x2"),
    "half a class": ({"class_id": [0, 0.5]}, "class_id must be whole numbers"),
    "keypoints of one": ({"keypoints": np.zeros((1, 5, 2))}, r"\(1, 5, 2\), expected \(2, k, 2\)"),
    "keypoints with visibility": ({"keypoints": np.zeros((2, 5, 3))}, r"\(2, 5, 3\), expected \(2, k, 2\)"),
    "a float image": ({"image": np.zeros((4, 4, 3))}, "uint8 RGB"),
    "a grey image": ({"image": np.zeros((4, 4), np.uint8)}, "uint8 RGB"),
    "a path as the image": ({"image": "photo.jpg"}, "uint8 RGB"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name: str) -> None:
    changes, says = BAD[name]
    assert len(Detections(**GOOD)) == 2
    with pytest.raises(ValueError, match=says):
        Detections(**(GOOD | changes))


@pytest.mark.parametrize("k", [None, 0, 5])
def test_empty(k: int | None, tmp_path: Path) -> None:
    nothing = Detections.empty(k)
    assert len(nothing) == 0
    assert not nothing
    assert list(nothing) == []
    assert nothing.xyxy.shape == (0, 4)
    assert (None if nothing.keypoints is None else nothing.keypoints.shape) == (
        None if k is None else (0, k, 2)
    )
    assert nothing == nothing[:] == nothing[[]] == nothing[np.zeros(0, bool)]
    assert nothing.to_dict() == {
        "xyxy": [],
        "confidence": [],
        "class_id": [],
        "keypoints": None if k is None else [],
    }
    assert nothing.to_coco(7) == []
    assert nothing.to_wider("a") == "a\n0\n"
    picture = np.full((30, 40, 3), 77, np.uint8)
    np.testing.assert_array_equal(nothing.draw(picture), picture)
    assert Detections([], [], [], []) == Detections.empty(0)


# Indexing

ROWS = [
    slice(None), slice(1, 3), slice(None, None, -1), slice(3, 3), [2], [4, 0, 0], [-1], [],
    np.array([1, 3]), np.array([True, False, True, True, False]), [True, False, False, False, False],
    np.zeros(5, bool), np.array([3, 1], np.uint8),
]  # fmt: skip


@pytest.mark.parametrize("index", ROWS, ids=repr)
def test_indexing_is_numpys(index: Any) -> None:
    found = some(image=np.zeros((9, 9, 3), np.uint8))
    part = found[index]
    rows = (
        np.arange(5)[np.asarray(index, int) if index == [] else index]
        if isinstance(index, list)
        else np.arange(5)[index]
    )
    for name in ("xyxy", "confidence", "class_id", "keypoints"):
        np.testing.assert_array_equal(getattr(part, name), getattr(found, name)[rows])
    assert part.image is found.image


@pytest.mark.parametrize("row", [0, 4, -1, -5, np.int64(2), np.uint8(3)], ids=repr)
def test_one_row_is_still_detections(row: Any) -> None:
    found = some()
    assert len(found[row]) == 1
    np.testing.assert_array_equal(found[row].keypoints[0], found.keypoints[row])


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (5, IndexError),
        (-6, IndexError),
        ((0, 1), IndexError),
        ([True], IndexError),
        (1.0, TypeError),
        ("xyxy", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_bad_indices(index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        some()[index]


def test_iteration_and_equality() -> None:
    found = some()
    assert [one.confidence.item() for one in found] == found.confidence.tolist()
    assert found == some(image=np.zeros((9, 9, 3), np.uint8))  # the picture is not compared
    assert found != some(seed=1)
    assert found != some(k=None)
    assert found != found[:4]
    assert found != "faces"


# Texts

PIXELS = st.floats(-5000, 50000, width=32)


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 6))
    corners = draw(npst.arrays(np.float32, (n, 2, 2), elements=PIXELS))
    confidence = draw(npst.arrays(np.float32, n, elements=st.floats(0, 1, width=32)))
    keypoints = draw(st.none() | npst.arrays(np.float32, (n, 5, 2), elements=PIXELS))
    return Detections(np.sort(corners, axis=1).reshape(n, 4), confidence, np.arange(n), keypoints)


@settings(deadline=None)
@given(detections())
def test_json_there_and_back(found: Detections) -> None:
    line = found.to_json()
    assert "\n" not in line
    back = Detections.from_dict(json.loads(line) | {"image": "a.jpg", "width": 9, "height": 9})
    np.testing.assert_allclose(back.xyxy, found.xyxy, atol=0.0006, rtol=1e-6)  # 3 decimals, then float32
    np.testing.assert_array_equal(back.confidence, found.confidence)  # to the last bit
    np.testing.assert_array_equal(back.class_id, found.class_id)
    assert (back.keypoints is None) == (found.keypoints is None)
    if found.keypoints is not None and len(found):
        np.testing.assert_allclose(back.keypoints, found.keypoints, atol=0.0006, rtol=1e-6)


def test_json_is_short() -> None:
    assert Detections.empty(5).to_json() == '{"xyxy": [], "confidence": [], "class_id": [], "keypoints": []}'
    found = Detections([[10.1, 0.33333, 30, 20.25]], [0.1], [0], [[[1.5, 2.123456]]])
    assert found.to_dict() == {
        "xyxy": [[10.1, 0.333, 30.0, 20.25]],
        "confidence": [0.1],
        "class_id": [0],
        "keypoints": [[[1.5, 2.123]]],
    }


@settings(deadline=None)
@given(detections())
def test_wider_there_and_back(tmp_path_factory: pytest.TempPathFactory, found: Detections) -> None:
    path = tmp_path_factory.mktemp("wider") / "0--Crowd" / "ảnh 1.txt"
    write_wider(path, "0--Crowd/ảnh 1.jpg", found)
    name, back = read_wider(path)
    assert name == "0--Crowd/ảnh 1.jpg"
    np.testing.assert_allclose(back.xyxy, found.xyxy, atol=0.0012, rtol=1e-6)
    np.testing.assert_array_equal(back.confidence, found.confidence)
    assert back.keypoints is None


def test_wider_text() -> None:
    found = Detections([[1, 2, 11.5, 22], [0, 0, 3, 4]], [0.9, 0.25], [0, 0])
    assert (
        found.to_wider("img_1") == "img_1\n2\n1.000 2.000 10.500 20.000 0.9\n0.000 0.000 3.000 4.000 0.25\n"
    )
    for name in ("", " ", "a\nb"):
        with pytest.raises(ValueError, match="one line"):
            found.to_wider(name)


WIDER_GOOD = {
    "as others write it": ("0_Parade_1\n2\n1 2 3 4 0.5\n5 6 7 8 0.25\n", [[1, 2, 4, 6], [5, 6, 12, 14]]),
    "spaces, Windows line ends, no last one": (" a b.jpg \r\n 1 \r\n 1.5  2\t3 4 5e-1", [[1.5, 2, 4.5, 6]]),
    "blank lines at the end": ("a\n1\n1 2 3 4 .5\n\n \n", [[1, 2, 4, 6]]),
    "nothing found": ("a\n0\n", []),
}
WIDER_BAD = {
    "empty": ("", "expected a line with the image's name"),
    "no count": ("a\n", "number of boxes"),
    "boxes at once": ("a\n1 2 3 4 0.5\n", "number of boxes"),
    "fewer than promised": ("a\n2\n1 2 3 4 0.5\n", "promises 2 boxes, 1 lines follow"),
    "more than promised": ("a\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "promises 1 boxes, 2 lines follow"),
    "no score": ("a\n1\n1 2 3 4\n", "line 3 is '1 2 3 4', expected: x y width height score"),
    "one number": ("a\n1\n7\n", "line 3 is '7'"),
    "text": ("a\n2\n1 2 3 4 .5\n1 2 x 4 .5\n", "line 4 is '1 2 x 4 .5'"),
    "NaN": ("a\n1\n1 2 nan 4 .5\n", "line 3"),
    "negative width": ("a\n1\n1 2 -3 4 .5\n", "line 3"),
}


@pytest.mark.parametrize("name", WIDER_GOOD)
def test_wider_files(name: str, tmp_path: Path) -> None:
    text, xyxy = WIDER_GOOD[name]
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_wider(tmp_path / "a.txt")[1].xyxy.tolist() == xyxy


@pytest.mark.parametrize("name", WIDER_BAD)
def test_bad_wider_files_say_where(name: str, tmp_path: Path) -> None:
    text, says = WIDER_BAD[name]
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_wider(tmp_path / "a.txt")
    assert str(caught.value).startswith(str(tmp_path / "a.txt"))


def test_coco() -> None:
    found = Detections([[1, 2, 4, 6]], [0.9], [1], [[[1, 2], [3, 4]]])
    entry = {
        "image_id": 7,
        "category_id": 2,
        "bbox": [1, 2, 3, 4],
        "score": 0.9,
        "keypoints": [1, 2, 1, 3, 4, 1],
    }
    assert found.to_coco(7) == [entry]
    assert found.to_coco(7, categories=[1, 44]) == [entry | {"category_id": 44}]
    json.dumps(found.to_coco(7))


def test_coco_is_understood_by_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth = {1: some(8, k=None), 2: some(3, k=None, seed=1)}
    annotations = [entry for image, found in truth.items() for entry in found.to_coco(image)]
    for number, entry in enumerate(annotations, 1):
        entry |= {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
    annotated = coco.COCO()
    categories = [{"id": number} for number in (1, 2, 3)]
    annotated.dataset = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": annotations,
        "categories": categories,
    }
    annotated.createIndex()
    for share, expected in ((1, 1.0), (0, -1)):
        found = annotated.loadRes(
            [e for image, d in truth.items() for e in d.to_coco(image)][: None if share else 1]
        )
        result = cocoeval.COCOeval(annotated, found, "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
        assert (result.stats[0] == expected) if share else (result.stats[0] < 0.5)
    capsys.readouterr()


def test_supervision_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = some(3)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    found = some(3).to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found[1].xyxy[0], some(3).xyxy[1])
    assert some(0).to_supervision().is_empty()


# The picture


def changed(found: Detections, picture: np.ndarray) -> np.ndarray:
    """(h, w) where drawing changed the picture."""
    return (found.draw(picture) != picture).any(axis=2)


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize("size", [24, 100, 1000, 4000])
def test_lines_lie_on_the_box_and_grow_with_the_picture(size: int) -> None:
    box = np.array([0.25, 0.25, 0.75, 0.75]) * size
    drawn = changed(Detections([box], [0.5], [0]), grey(size, size))
    row = np.flatnonzero(drawn[int(0.6 * size)])
    left, right = row[row < size // 2], row[row > size // 2]
    assert abs(left.mean() + 0.5 - box[0]) <= 0.5  # the middle of the line, from the corner of the picture
    assert abs(right.mean() + 0.5 - box[2]) <= 0.5
    assert max(1, size / 500) <= len(left) <= max(3, size / 125)


@pytest.mark.parametrize("size", [24, 100, 1000, 4000])
def test_confidence_is_legible(size: int) -> None:
    """The letters are at least 7 pixels high, and 1 % of the picture, where there is room."""
    low, high = 0.25 * size, 0.75 * size
    drawn = changed(Detections([[low, low, high, high]], [0.5], [0]), grey(size, size))
    outside = np.flatnonzero(drawn.any(axis=1))
    tall = max(low - outside.min(), outside.max() - high)
    assert tall >= max(7, size / 100) if size > 24 else tall < 7  # 24 pixels have no room for "0.50"


def test_labels_do_not_hide_other_faces() -> None:
    picture = grey(600, 600)
    boxes = np.array([[x, y, x + 30, y + 30] for x in range(5, 560, 45) for y in range(5, 560, 33)], float)
    found = Detections(boxes, np.linspace(0.1, 1, len(boxes)), np.zeros(len(boxes), int))
    drawn = changed(found, picture)
    inner = [drawn[int(y1) + 4 : int(y2) - 4, int(x1) + 4 : int(x2) - 4] for x1, y1, x2, y2 in boxes]
    assert not np.any(inner)
    alone = changed(found[-1], picture)
    assert alone.sum() > 30 * 4 * 3 + 200  # and where there is room, it is there


def test_keypoints_are_drawn_where_they_are() -> None:
    points = np.array([[[40, 50], [80, 50], [60, 70], [45, 90], [75, 90]]], float)
    bare, full = (Detections([[20, 20, 100, 110]], [0.5], [0], p) for p in (None, points))
    added = changed(full, grey(300, 300)) & ~changed(bare, grey(300, 300))
    count, _, _, centers = cv2.connectedComponentsWithStats(added.astype(np.uint8))
    assert count == 1 + 5
    np.testing.assert_allclose(np.sort(centers[1:] + 0.5, axis=0), np.sort(points[0], axis=0), atol=0.5)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (11, 7), (5000, 1), (1, 300), (3000, 200)])
def test_any_size_of_picture_and_any_box(width: int, height: int) -> None:
    boxes = [
        [0, 0, width, height],
        [-1e9, -1e9, 1e9, 1e9],
        [5, 5, 5, 5],
        [-50, -50, -20, -20],
        [1e30, 0, 2e30, 9],
    ]
    found = Detections(boxes, [0.5] * 5, [0] * 5, np.full((5, 5, 2), 1e20))
    assert found.draw(grey(width, height)).shape == (height, width, 3)


def test_drawing_leaves_the_picture_alone() -> None:
    picture = grey(90, 90)
    found = Detections([[9, 9, 70, 70]], [0.5], [0], image=picture)
    assert (found.draw() != picture).any()
    assert (picture == 128).all()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".png", ".webp", ".bmp", ".tif"])
def test_save(suffix: str, tmp_path: Path) -> None:
    picture = grey(90, 70)
    picture[:, :45] = (200, 40, 90)
    found = Detections([[9, 9, 70, 60]], [0.5], [0], image=picture)
    path = tmp_path / "new" / f"đẹp{suffix}"
    found.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert np.abs(images.read(path).astype(int) - found.draw()).mean() < (
        6 if "j" in suffix.lower() else 0.01
    )


@pytest.mark.parametrize("image", ["path", "bytes", "array"])
def test_save_on_any_image(image: str, tmp_path: Path) -> None:
    found = Detections([[9, 9, 70, 60]], [0.5], [0])
    Detections.empty().save(tmp_path / "in.png", grey(90, 70))
    given_as = {
        "path": tmp_path / "in.png",
        "bytes": (tmp_path / "in.png").read_bytes(),
        "array": grey(90, 70),
    }
    found.save(str(tmp_path / "out.png"), given_as[image])
    np.testing.assert_array_equal(images.read(tmp_path / "out.png"), found.draw(grey(90, 70)))


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("out.gif", (9, 9), r"cannot write .gif: use one of .jpg"),
        ("out", (9, 9), r"without a suffix"),
        (".", (9, 9), r"without a suffix"),
        ("out.webp", (20000, 2), r"20000x2 pixels do not fit into a .webp"),
        ("folder.png", (9, 9), "is a folder"),
        ("out.png", None, "no image to draw on"),
    ],
)
def test_save_says_what_is_wrong(
    name: str, size: tuple[int, int] | None, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    found = Detections([[1, 1, 5, 5]], [0.5], [0], image=size and grey(*size))
    with pytest.raises(ValueError, match=says):
        found.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]
    assert capfd.readouterr().err == ""
