"""The WIDER FACE protocol: its oracle values, a plain second implementation, and bad input of every kind."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.evaluate import widerface
from octavo.evaluate.widerface import GroundTruth, PredictionError, curve, evaluate, match, measure

# --- the benchmark's own numbers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(shared: Path) -> GroundTruth:
    pytest.importorskip("scipy")
    return widerface.read_ground_truth(shared / "wider_gt")


def oracle(truth: GroundTruth, least: float) -> dict[str, np.ndarray]:
    """The annotated boxes as predictions, larger faces with higher scores (FACTS, section 2)."""
    out = {}
    for name, xyxy in zip(truth.names, truth.faces, strict=True):
        sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1)
        size = np.sqrt(sides.prod(axis=1))
        rows = np.c_[xyxy[:, :2], sides, np.minimum(1, size / 100) * 0.98 + 0.01][size >= least]
        out[name] = rows[np.argsort(-rows[:, 4], kind="stable")]
    return out


def test_ground_truth_has_the_published_counts(truth: GroundTruth) -> None:
    assert len(truth.names) == 3226
    assert sum(map(len, truth.faces)) == 39708
    assert {k: int(v.sum()) for k, v in truth.subsets.items()} == {
        "easy": 7211,
        "medium": 13319,
        "hard": 31958,
    }


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        pytest.param(0, (1.0, 1.0, 0.9999325767), id="every face"),
        pytest.param(20, (1.0, 0.9984233051, 0.5516302647), id="faces from 20 pixels"),
    ],
)
def test_oracle(truth: GroundTruth, least: float, expected: tuple[float, ...]) -> None:
    result = measure(oracle(truth, least), truth)
    assert list(result.ap) == ["easy", "medium", "hard"]
    assert list(result.ap.values()) == pytest.approx(expected, abs=1e-9)
    assert result.warnings == ()


def test_oracle_from_text_files(truth: GroundTruth, shared: Path, tmp_path: Path) -> None:
    for name, rows in oracle(truth, 20).items():
        write(tmp_path, name, rows)
    ap = evaluate(tmp_path, shared / "wider_gt")
    assert ap == measure(oracle(truth, 20), truth).ap  # every digit survived the way through the files


# --- against a plain second implementation ----------------------------------------------------------------


@dataclass
class Case:
    faces: list[list[tuple[int, int, int, int]]]  # per image, x y w h
    predictions: list[list[tuple[int, int, int, int, float]]]
    subset: list[list[bool]]


def plain_ap(case: Case) -> float:
    """FACTS section 2 word by word, one thing at a time."""
    scores = [row[4] for rows in case.predictions for row in rows]
    low, high = (min(scores), max(scores)) if scores else (0, 0)
    wanted = sum(flag for flags in case.subset for flag in flags)
    points = []
    for t in range(1000):
        threshold = 1 - (t + 1) / 1000
        proposals = recalled = 0
        for faces, rows, flags in zip(case.faces, case.predictions, case.subset, strict=True):
            if not faces or not rows:
                continue
            taken: set[int] = set()
            for x, y, w, h, score in sorted(rows, key=lambda row: -row[4]):
                if (score - low) / ((high - low) or 1) < threshold:
                    break
                best, best_iou = -1, -1.0
                for i, (fx, fy, fw, fh) in enumerate(faces):
                    iw = min(x + w, fx + fw) - max(x, fx) + 1
                    ih = min(y + h, fy + fh) - max(y, fy) + 1
                    inner = max(iw, 0) * max(ih, 0)
                    iou = inner / ((w + 1) * (h + 1) + (fw + 1) * (fh + 1) - inner)
                    if iou > best_iou:
                        best, best_iou = i, iou
                if best_iou < 0.5:
                    proposals += 1
                elif flags[best]:
                    proposals += 1
                    if best not in taken:
                        recalled += 1
                        taken.add(best)
        points.append((recalled / wanted if wanted else 0, recalled / proposals if proposals else 0))
    area = 0.0
    for i, (recall, _) in enumerate(points):
        before = points[i - 1][0] if i else 0
        area += (recall - before) * max(precision for _, precision in points[i:])
    return area


coordinates = st.integers(0, 6)
sides = st.integers(0, 6)
scores = st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.9995, 1.0])  # few, so that many are equal
faces = st.lists(st.tuples(coordinates, coordinates, sides, sides), max_size=4)
detections = st.lists(st.tuples(coordinates, coordinates, sides, sides, scores), max_size=7)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    of_images = draw(st.lists(st.tuples(faces, detections), min_size=1, max_size=4))
    subset = [[draw(st.booleans()) for _ in boxes] for boxes, _ in of_images]
    return Case([boxes for boxes, _ in of_images], [rows for _, rows in of_images], subset)


def as_truth(case: Case) -> GroundTruth:
    boxes = [np.array(rows, float).reshape(-1, 4) for rows in case.faces]
    for xyxy in boxes:
        xyxy[:, 2:] += xyxy[:, :2]
    names = [f"event/{i}" for i in range(len(boxes))]
    return GroundTruth(
        names, boxes, {"some": np.array([flag for flags in case.subset for flag in flags], bool)}
    )


def as_predictions(case: Case) -> dict[str, np.ndarray]:
    return {f"event/{i}": np.array(rows, float).reshape(-1, 5) for i, rows in enumerate(case.predictions)}


@settings(max_examples=100, deadline=None)
@given(cases())
def test_same_as_the_plain_implementation(case: Case) -> None:
    result = measure(as_predictions(case), as_truth(case))
    assert result.ap["some"] == pytest.approx(plain_ap(case), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(cases(), st.randoms(use_true_random=False), st.floats(0.01, 50), st.floats(-20, 20))
def test_order_and_scale_of_the_scores_do_not_matter(case: Case, random, factor, offset) -> None:  # type: ignore[no-untyped-def]
    case.predictions = [[(*row[:4], round(row[4] * 8) / 8) for row in rows] for rows in case.predictions]
    before = measure(as_predictions(case), as_truth(case)).ap["some"]
    for rows in case.predictions:
        random.shuffle(rows)
    # powers of two, so that the normalised scores stay exactly on or off a threshold
    factor, offset = 2.0 ** round(np.log2(factor)), round(offset)
    case.predictions = [[(*row[:4], row[4] * factor + offset) for row in rows] for rows in case.predictions]
    assert measure(as_predictions(case), as_truth(case)).ap["some"] == pytest.approx(before, abs=1e-12)


def test_large_images_are_matched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    xy = random.integers(0, 60, (40, 2))
    boxes = np.c_[xy, xy + random.integers(4, 20, (40, 2))].astype(float)
    rows = np.c_[boxes + random.integers(-2, 3, (40, 4)), np.linspace(1, 0, 40)]
    whole = match([rows], [boxes])
    monkeypatch.setattr(widerface, "_CELLS", 3 * len(boxes))
    pieces = match([rows], [boxes])
    assert (whole.face >= 0).sum() > 10
    np.testing.assert_array_equal(whole.face, pieces.face)
    np.testing.assert_array_equal(whole.first, pieces.first)


@pytest.mark.parametrize(
    ("prediction", "face", "expected"),
    [
        pytest.param((0, 0, 9, 9), (0, 0, 9, 9), 0, id="the face itself"),
        pytest.param((0, 0, 9, 4), (0, 0, 9, 9), 0, id="exactly .5, with inclusive pixels"),
        pytest.param((0, 0, 9, 3.9), (0, 0, 9, 9), -1, id="just below .5"),
        pytest.param((0, 0, 10, 5), (0, 0, 10, 10), 0, id=".5 by plain areas, 66/121 by inclusive ones"),
        pytest.param((5, 5, 0, 0), (5, 5, 0, 0), 0, id="one pixel each, no plain area"),
        pytest.param((50, 50, 5, 5), (0, 0, 9, 9), -1, id="apart"),
    ],
)  # fmt: skip
def test_overlap(prediction: tuple[float, ...], face: tuple[float, ...], expected: int) -> None:
    x, y, w, h = prediction
    fx, fy, fw, fh = face
    found = match([np.array([[x, y, x + w, y + h, 1.0]])], [np.array([[fx, fy, fx + fw, fy + fh]], float)])
    assert found.face.tolist() == [expected]


def test_a_curve_counts_what_it_is_told_to_count() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    rows = np.array([[0, 0, 10, 10, 1.0], [50, 50, 60, 60, 0.5], [70, 70, 80, 80, 0.0]])
    matches = match([rows], [box])
    everything = curve(matches, np.ones(1, bool))
    assert everything.precision[[0, 499, 998, 999]].tolist() == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3])
    assert everything.recall.tolist() == [1.0] * 1000
    some = curve(matches, np.ones(1, bool), np.array([True, False, True]))
    assert some.precision[[0, 999]].tolist() == pytest.approx([1, 1 / 2])
    assert curve(matches, np.zeros(1, bool)).ap == 0  # nothing to find


# --- files ------------------------------------------------------------------------------------------------


def write(root: Path, name: str, rows: object, count: int | None = None, end: str = "\n") -> Path:
    lines = [" ".join(map(str, row)) for row in np.asarray(rows).tolist()]
    head = [name.rsplit("/", 1)[-1] + ".jpg", str(len(lines) if count is None else count)]
    path = root / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(head + lines) + end).encode())
    return path


@pytest.fixture
def mats(tmp_path: Path) -> Path:
    """A benchmark of 2 events and 3 images (the last without faces), in the nested form of the .mat files."""
    savemat = pytest.importorskip("scipy.io").savemat

    def cells(*values: object) -> np.ndarray:
        out = np.empty((len(values), 1), object)
        out[:, 0] = values
        return out

    folder = tmp_path / "truth"
    folder.mkdir()
    common = {
        "event_list": cells("0--A", "1--B"),
        "file_list": cells(cells("apj.pgj", "two"), cells("none")),  # letters that rstrip(".jpg") would eat
        "face_bbx_list": cells(
            cells(
                np.array([[10, 10, 20, 20], [50, 50, 9, 9]], np.uint8),
                np.array([[250, 250, 250, 250]], np.uint8),
            ),
            cells(np.empty((0, 4), np.uint8)),
        ),
    }
    savemat(folder / "wider_face_val.mat", common)
    nothing = np.empty((0, 1), np.uint8)
    for name, first, second in (
        ("easy", np.array([[1]], np.uint8), nothing),
        ("medium", np.array([[1], [2]], np.uint8), nothing),
        ("hard", np.array([[2], [1]], np.uint8), np.array([[1]], np.uint8)),
    ):
        savemat(
            folder / f"wider_{name}_val.mat",
            {**common, "gt_list": cells(cells(first, second), cells(nothing))},
        )
    return folder


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """All faces of `mats` found, nothing else."""
    root = tmp_path / "predictions"
    write(root, "0--A/apj.pgj", [[10, 10, 20, 20, 0.9], [50, 50, 9, 9, 0.4]])
    write(root, "0--A/two", [[250, 250, 250, 250, 0.8]])
    write(root, "1--B/none", [])
    return root


PERFECT = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def test_small_benchmark(mats: Path, predictions: Path) -> None:
    truth = widerface.read_ground_truth(mats)
    assert truth.names == ["0--A/apj.pgj", "0--A/two", "1--B/none"]
    assert truth.faces[1].tolist() == [[250, 250, 500, 500]]  # bytes in the file, no overflow
    assert {k: v.tolist() for k, v in truth.subsets.items()} == {
        "easy": [True, False, False], "medium": [True, True, False], "hard": [True, True, True],
    }  # fmt: skip
    assert evaluate(predictions, mats) == PERFECT


def test_windows_line_ends_and_blank_lines_at_the_end(mats: Path, predictions: Path) -> None:
    path = write(predictions, "0--A/two", [[250, 250, 250, 250, 0.8]], end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\n  \n")
    assert evaluate(predictions, mats) == PERFECT


def test_fractions_are_not_cut_off(mats: Path, predictions: Path) -> None:
    # Inclusive IoU .5006 with the face of 10 x 10 pixels; 45.99 cut to 45 would be .4545 (a false positive).
    write(predictions, "0--A/apj.pgj", [[10, 10, 20, 20, 0.9], [50, 50, 9, 4.006, 0.4]])
    assert evaluate(predictions, mats) == PERFECT
    write(predictions, "0--A/apj.pgj", [[10, 10, 20, 20, 0.9], [50, 50, 9, 3.994, 0.4]])
    assert evaluate(predictions, mats)["hard"] == pytest.approx(2 / 3)


def test_negative_images_do_not_cost_precision(mats: Path, predictions: Path) -> None:
    write(predictions, "1--B/none", [[0, 0, 5, 5, 1.0]])
    assert evaluate(predictions, mats) == PERFECT


def test_the_image_file_suffix_may_stand_before_txt(mats: Path, predictions: Path) -> None:
    (predictions / "0--A/two.txt").rename(predictions / "0--A/two.jpg.txt")
    assert measure(predictions, mats).warnings == ()


@pytest.mark.parametrize(
    ("change", "warning", "hard"),
    [
        pytest.param(
            {"0--A/two": None}, r"1 of 3 images have no predictions.*0--A/two\.txt", 2 / 3, id="missing"
        ),
        pytest.param(
            {"0--A/new": "1 1 9 9 .5"}, r"1 .* images the data set does not have.*A/new\.txt", 1, id="unknown"
        ),
        pytest.param(
            {"notes": ""}, r"1 .* images the data set does not have.*notes\.txt", 1, id="stray file"
        ),
        pytest.param(
            {"0--A/apj.pgj": "50 50 9 9 .4\n10 10 20 20 .9"}, r"1 images were not sorted", 1, id="unsorted"
        ),
        pytest.param({"0--A/apj.pgj": "", "0--A/two": ""}, "not a single detection", 0, id="all empty"),
        pytest.param(
            {"0--A/apj.pgj": "10 10 20 20 .5", "0--A/two": "0 0 1 1 .5"},
            "all scores are 0.5",
            1 / 6,
            id="equal",
        ),
    ],
)
def test_odd_predictions(
    mats: Path, predictions: Path, change: dict[str, str | None], warning: str, hard: float
) -> None:
    for name, text in change.items():
        if text is None:
            (predictions / f"{name}.txt").unlink()
        else:
            write(predictions, name, [row.split() for row in text.splitlines()])
    result = measure(predictions, mats)
    assert len(result.warnings) == 1
    assert result.ap["hard"] == pytest.approx(hard)
    with pytest.warns(UserWarning, match=warning):
        assert evaluate(predictions, mats) == result.ap


def test_sorting_keeps_the_order_of_equal_scores(mats: Path, predictions: Path) -> None:
    rows = [[i, 0, 5, 5, score] for i, score in enumerate([0.1] + [0.5] * 40)]
    write(predictions, "0--A/two", rows)
    ordered, _ = widerface.read_predictions(predictions, ["0--A/apj.pgj", "0--A/two"])
    assert ordered[1][:, 0].tolist() == [*range(1, 41), 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("two.jpg\n2\n1 2 3 4 .5\n", r":2: says 2 detections, but 1 rows", id="count too high"),
        pytest.param("two.jpg\n0\n1 2 3 4 .5\n", r":2: says 0 detections, but 1 rows", id="count too low"),
        pytest.param(
            "two.jpg\nmany\n", r":2: expected the number of detections, found 'many'", id="no number"
        ),
        pytest.param(
            "two.jpg\n-1\n", r":2: expected the number of detections, found '-1'", id="negative count"
        ),
        pytest.param("two.jpg\n", r":2: expected the number of detections, found ''", id="only a name"),
        pytest.param("", r": empty", id="empty file"),
        pytest.param("two.jpg\n1\n\udcff", r": not a text file", id="binary"),
        pytest.param("1.jpg\n0\n", r":1: names another image: '1\.jpg'", id="another image"),
        pytest.param("two\n2\n1 2 3 4 .5\n1 2 x 4 .5\n", r":4: expected five .* '1 2 x 4 .5'", id="a word"),
        pytest.param("two\n1\n1 2 3 4\n", r":3: expected five numbers x y w h score", id="no score"),
        pytest.param("two\n2\n1 2 3 4\n1 2 3 4 5 6\n", r":3: expected five numbers", id="4 and 6 numbers"),
        pytest.param("two\n2\n1 2 3 4 .5\n1 2 3 4 nan\n", r": detection 2 has no usable numbers", id="NaN"),
        pytest.param("two\n1\n1 inf 3 4 .5\n", r": detection 1 has no usable numbers", id="infinite"),
        pytest.param(
            "two\n1\n9 9 -3 4 .5\n", r": detection 1 has a negative width or height", id="negative size"
        ),
    ],
)
def test_broken_predictions(mats: Path, predictions: Path, content: str, message: str) -> None:
    (predictions / "0--A/two.txt").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PredictionError, match=r"0--A/two\.txt" + message):
        evaluate(predictions, mats)


def test_all_that_is_broken_is_said_at_once(mats: Path, predictions: Path) -> None:
    write(predictions, "0--A/apj.pgj", [[1, 2, 3, 4, "nan"]])
    write(predictions, "0--A/two", [[1, 2, 3, 4, 0.5]], count=7)
    with pytest.raises(PredictionError, match=r"(?s)2 broken predictions.*two\.txt.*apj\.pgj\.txt"):
        evaluate(predictions, mats)


def test_folders_that_are_not_there_or_not_right(mats: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="is not a folder"):
        evaluate(tmp_path / "nothing", mats)
    with pytest.raises(
        PredictionError, match=r"no prediction for any of the 3 images: expected .*apj\.pgj\.txt, found .*two"
    ):
        evaluate(tmp_path, mats)  # one level too high
    with pytest.raises(PredictionError, match=r"found no \.txt file"):
        evaluate(mats, mats)
    with pytest.raises(ValueError, match=r"has no wider_face_val\.mat, wider_easy_val\.mat"):
        evaluate(predictions, predictions)
    (mats / "wider_hard_val.mat").write_bytes(b"not a matlab file" * 20)
    with pytest.raises(ValueError, match=r"wider_hard_val\.mat is not the benchmark's file"):
        evaluate(predictions, mats)
    (mats / "wider_hard_val.mat").unlink()
    with pytest.raises(ValueError, match=r"has no wider_hard_val\.mat:"):
        evaluate(predictions, mats)


def test_lists_of_another_archive_are_refused(mats: Path, predictions: Path, shared: Path) -> None:
    (mats / "wider_easy_val.mat").write_bytes((shared / "wider_gt/wider_easy_val.mat").read_bytes())
    with pytest.raises(ValueError, match=r"wider_easy_val\.mat does not fit"):
        evaluate(predictions, mats)


def test_without_scipy(mats: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'octavo\[train\]'"):
        evaluate(predictions, mats)


def test_predictions_in_memory(mats: Path) -> None:
    from octavo.outputs import Detections

    found = {
        "0--A/apj.pgj.jpg": Detections(
            np.array([[50, 50, 59, 59], [10, 10, 30, 30]], np.float32),
            np.array([0.4, 0.9], np.float32),
            np.zeros(2, int),
        ),
        "0--A/two.jpg": [[250, 250, 250, 250, 0.8]],
        "1--B/none.jpg": [],
    }
    result = measure(found, mats)
    assert result.ap == PERFECT
    assert [text.split(";")[0] for text in result.warnings] == [
        "the detections of 1 images were not sorted by score"
    ]
    with pytest.raises(PredictionError, match=r"0--A/two\.jpg: expected Detections or rows"):
        measure({**found, "0--A/two.jpg": [[1, 2, 3, 4]]}, mats)
    with pytest.raises(PredictionError, match=r"0--A/two\.png: given twice"):
        measure({**found, "0--A/two.png": []}, mats)
    with pytest.raises(PredictionError, match="0--A/two: detection 1 has no usable numbers"):
        measure({**found, "0--A/two.jpg": [[1, 2, 3, 4, np.nan]]}, mats)
