"""The WIDER FACE reader and the data set check, on small made data sets with one quirk each."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from octavo import images
from octavo.data import sheet
from octavo.data.check import check
from octavo.data.widerface import DatasetError, Entry, read, size_bins, splits

ANNOTATIONS = """\
0--A/one.jpg
2
10 20 30 40 1 0 0 0 2 0 
5 6 20 20 0 0 0 1 0 0 
0--A/empty.jpg
0
0 0 0 0 0 0 0 0 0 0 
1--B/two.png
3
50 10 16 16 0 0 0 0 0 0 
3 3 0 9 0 0 0 0 0 0 
70 70 8 8 2 1 1 0 1 1 
"""
KNOWN = "15 30 0 30 31 0 22.5 40 1 16 50 0 30 51 0"
UNKNOWN = " ".join(["-1"] * 15)
SIZES = {"0--A/one.jpg": (100, 80), "0--A/empty.jpg": (64, 48), "1--B/two.png": (90, 120)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of noise in two events: five faces, one flagged invalid, one without area."""
    random = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = tmp_path / "WIDER_val/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 255, (height, width, 3), np.uint8))
    annotate(tmp_path, ANNOTATIONS)
    return tmp_path


def annotate(root: Path, text: str, split: str = "val") -> Path:
    path = root / f"wider_face_split/wider_face_{split}_bbx_gt.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


def mark(root: Path, text: str) -> Path:
    path = root / "landmarks/val_label.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# --- reading ----------------------------------------------------------------------------------------------


def test_entries(root: Path) -> None:
    one, empty, two = read(root, "val")
    assert (one.name, one.event) == ("0--A/one.jpg", "0--A")
    assert one.path == root / "WIDER_val/images/0--A/one.jpg"
    assert one.xyxy.tolist() == [[10, 20, 40, 60], [5, 6, 25, 26]]
    assert one.invalid.tolist() == [False, True]
    assert one.attributes.tolist() == [[1, 0, 0, 0, 2, 0], [0, 0, 0, 1, 0, 0]]
    assert one.sizes.tolist() == pytest.approx([np.sqrt(1200), 20])
    assert (empty.name, len(empty.xyxy), empty.keypoints.shape) == ("0--A/empty.jpg", 0, (0, 5, 2))
    assert two.invalid.tolist() == [False, True, False]  # no area: ignored
    for entry in (one, empty, two):
        dtypes = [array.dtype for array in (entry.xyxy, entry.invalid, entry.keypoints, entry.attributes)]
        assert dtypes == [np.float32, bool, np.float32, np.int8]
        assert np.isnan(entry.keypoints).all()


def test_entries_travel_between_processes(root: Path) -> None:
    first = read(root, "val")[0]
    again: Entry = pickle.loads(pickle.dumps(first))
    assert (again.path, again.xyxy.tolist()) == (first.path, first.xyxy.tolist())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ANNOTATIONS.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(ANNOTATIONS + "\n\n  \n", id="blank lines at the end"),
        pytest.param(ANNOTATIONS.replace("1--B", "\n1--B"), id="blank line between images"),
        pytest.param("\ufeff" + ANNOTATIONS.rstrip(), id="byte order mark, no last line end"),
        pytest.param(
            ANNOTATIONS.replace("0 0 0 0 0 0 0 0 0 0 \n", ""), id="no row of zeros under a count of 0"
        ),
        pytest.param(ANNOTATIONS.replace(" 0 0 0 0 0 0 \n", "\n"), id="some boxes without attributes"),
    ],
)
def test_spellings(root: Path, text: str) -> None:
    expected = read(root, "val")
    assert text != ANNOTATIONS
    annotate(root, text)
    found = read(root, "val")
    assert [entry.name for entry in found] == [entry.name for entry in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.xyxy, b.xyxy)
        np.testing.assert_array_equal(a.invalid, b.invalid)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("\n2\n", "\n3\n", r":5: expected 10 numbers .*found '0--A/empty\.jpg'", id="count too high"),
        pytest.param("\n2\n", "\n1\n", r":4: expected the name of an image .*found '5 6 20", id="count too low"),
        pytest.param("\n2\n", "\ntwo\n", r":2: expected the number of faces of 0--A/one\.jpg, found 'two'", id="count"),
        pytest.param("\n3\n", "\n4\n", r":12: the file ends after 3 of the 4 faces of 1--B/two\.png", id="cut off"),
        pytest.param("10 20 30 40", "10 20 x 40", r":3: expected 10 numbers \(x y w h blur", id="a word in a row"),
        pytest.param("10 20 30 40", "10 20 30", r":3: expected 10 numbers", id="nine numbers"),
        pytest.param("10 20 30 40", "10 20 nan 40", r":3: expected 10 numbers", id="NaN"),
        pytest.param("40 1 0", "40 999 0", r":3: attributes are small", id="absurd attribute"),
        pytest.param("0--A/one.jpg", "one.jpg", r":1: expected .* as EVENT/NAME\.jpg, found 'one\.jpg'", id="no event"),
        pytest.param("0--A/one.jpg", "../../one.jpg", r":1: expected the name of an image", id="outside the root"),
        pytest.param("1--B/two.png", "0--A/one.jpg", r":8: 0--A/one\.jpg is listed twice, first in line 1", id="twice"),
        pytest.param(ANNOTATIONS, "\n", r"wider_face_val_bbx_gt\.txt lists no image", id="nothing"),
    ],
)  # fmt: skip
def test_broken_annotations(root: Path, old: str, new: str, message: str) -> None:
    assert old in ANNOTATIONS
    annotate(root, ANNOTATIONS.replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        read(root, "val")


def test_not_a_data_set(root: Path, tmp_path: Path) -> None:
    assert splits(root) == ["val"]
    with pytest.raises(DatasetError, match=r"no annotations of the split 'train'.*it has the split val"):
        read(root, "train")
    with pytest.raises(DatasetError, match=r"it has no split at all.*Expected the layout of WIDER FACE"):
        read(tmp_path / "nowhere", "val")
    with pytest.raises(DatasetError, match="split 'test' is not known: give one of train, val"):
        read(root, "test")
    with pytest.raises(ValueError, match="missing='maybe' is not known"):
        read(root, "val", missing="maybe")
    annotate(root, "").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DatasetError, match="is not a text file in UTF-8"):
        read(root, "val")


def test_missing_images(root: Path) -> None:
    shutil.rmtree(root / "WIDER_val/images/1--B")
    message = r"1 of 3 images named in .*bbx_gt\.txt are not in .*images: 1--B/two\.png"
    with pytest.raises(DatasetError, match=message + r'.*missing="skip"'):
        read(root, "val")
    with pytest.warns(UserWarning, match=message + "; left out"):
        left = read(root, "val", missing="skip")
    assert [entry.name for entry in left] == ["0--A/one.jpg", "0--A/empty.jpg"]
    assert len(read(root, "val", missing="keep")) == 3


def test_bins_of_size_have_no_gaps() -> None:
    assert size_bins((0, 10, 32)) == {"0-10": (0, 10), "10-32": (10, 32), "32+": (32, np.inf)}


# --- landmarks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([f"10 20 30 40 {KNOWN} 0.9", f"5 6 20 20 {UNKNOWN} 0.0"], id="in order"),
        pytest.param([f"5 6 20 20 {UNKNOWN} 0.0", f"10 20 30 40 {KNOWN} 0.9"], id="another order"),
        pytest.param([f"10 20 30 40 {KNOWN}"], id="one row, no score"),
        pytest.param([f"11 19 30 41 {KNOWN} 1"], id="a corrected box"),
        pytest.param([f"10 20 30 40 {KNOWN} 1", "5 6 20 20"], id="a bare box"),
    ],
)
def test_landmarks_find_their_face(root: Path, rows: list[str]) -> None:
    mark(root, "# 0--A/one.jpg\n" + "\n".join(rows) + "\n# 0--A/empty.jpg\n")
    one, empty, two = read(root, "val")
    assert one.keypoints[0].tolist() == [[15, 30], [30, 31], [22.5, 40], [16, 50], [30, 51]]
    assert np.isnan(one.keypoints[1]).all()
    assert len(empty.keypoints) == 0
    assert np.isnan(two.keypoints).all()


def test_single_points_may_be_unknown_and_points_may_leave_the_image(root: Path) -> None:
    mark(root, "# 0--A/one.jpg\n10 20 30 40 -1 30 0 -1 -1 -1 22 40 0 16 50 0 30 51 0 0.5\n")
    points = read(root, "val")[0].keypoints[0]
    assert points[0].tolist() == [-1, 30]
    assert np.isnan(points[1]).all()
    assert np.isfinite(points[2:]).all()


def test_equal_boxes_take_their_landmarks_in_order(root: Path) -> None:
    annotate(root, "0--A/one.jpg\n2\n10 20 30 40 0 0 0 0 0 0\n10 20 30 40 0 0 0 0 0 0\n")
    other = KNOWN.replace("22.5", "23.5")
    mark(root, f"# 0--A/one.jpg\n9 20 30 40 {other} 1\n10 20 30 40 {KNOWN} 1\n")
    assert read(root, "val")[0].keypoints[:, 2, 0].tolist() == [22.5, 23.5]


def test_a_box_must_be_equal_in_all_numbers(root: Path) -> None:
    annotate(root, "0--A/one.jpg\n2\n10 20 60 60 0 0 0 0 0 0\n10 20 30 40 0 0 0 0 0 0\n")
    mark(root, f"# 0--A/one.jpg\n10 20 30 40 {KNOWN} 1\n")
    points = read(root, "val")[0].keypoints
    assert np.isnan(points[0]).all()
    assert points[1, 2, 0] == 22.5


def test_landmarks_of_no_face_are_reported(root: Path) -> None:
    mark(
        root,
        f"# 0--A/one.jpg\n60 60 9 9 {KNOWN} 1\n70 60 9 9 {UNKNOWN} 0\n# 2--C/new.jpg\n1 1 2 2 {KNOWN} 1\n",
    )
    with pytest.warns(
        UserWarning, match=r"2 rows .* line 2 \(0--A/one\.jpg\), line 4 \(2--C/new\.jpg is not"
    ):
        entries = read(root, "val")
    assert all(np.isnan(entry.keypoints).all() for entry in entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "# 0--A/one.jpg\n1 2 3 4 5\n", r"val_label\.txt:2: expected a line '# EVENT", id="five numbers"
        ),
        pytest.param("1 2 3 4\n", r"val_label\.txt:1: expected a line '# EVENT", id="no name first"),
        pytest.param("# 0--A/one.jpg\n1 2 x 4\n", r"val_label\.txt:2: .*found '1 2 x 4'", id="a word"),
        pytest.param("# one.jpg\n", r"val_label\.txt:1: expected the name of an image", id="no event"),
    ],
)
def test_broken_landmarks(root: Path, text: str, message: str) -> None:
    mark(root, text)
    with pytest.raises(DatasetError, match=message):
        read(root, "val")


def test_shared_data_set(shared: Path) -> None:
    """The counts of shared/README.md."""
    for split, counts in {"train": (9057, 13984, 4820), "val": (777, 1250, 374)}.items():
        entries = read(shared / "data/faces", split)
        valid = sum(int((~entry.invalid).sum()) for entry in entries)
        known = sum(int(np.isfinite(entry.keypoints).all(axis=(1, 2)).sum()) for entry in entries)
        assert (len(entries), valid, known) == counts


# --- the check --------------------------------------------------------------------------------------------


def test_check_of_a_good_data_set(root: Path) -> None:
    mark(root, f"# 0--A/one.jpg\n10 20 30 40 {KNOWN} 1\n")
    seen: list[tuple[int, int]] = []
    report = check(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert report.ok
    assert report.findings() == []
    (split,) = report.splits
    assert (split.name, split.without_faces) == ("val", 1)
    counts = {name: (e.images, e.faces, e.invalid, e.landmarks) for name, e in split.events.items()}
    assert counts == {"0--A": (2, 1, 1, 1), "1--B": (1, 2, 1, 0)}
    assert split.total.faces == sum(split.sizes.values()) == 3
    assert {name: n for name, n in split.sizes.items() if n} == {"0-16": 1, "16-32": 1, "32-64": 1}
    assert report.to_dict()["total"]["val"] == {"images": 3, "faces": 3, "invalid": 2, "landmarks": 1}


def test_check_finds(root: Path) -> None:
    """One of each, all in one data set."""
    folder = root / "WIDER_val/images"
    shutil.copy(folder / "0--A/empty.jpg", folder / "0--A/twin.jpg")
    shutil.copy(folder / "0--A/empty.jpg", folder / "0--A/nobody.jpg")
    for name in ("hollow", "torn", "text"):
        (folder / f"0--A/{name}.jpg").write_bytes(
            {"hollow": b"", "text": b"hello"}.get(name, (folder / "0--A/one.jpg").read_bytes()[:900])
        )
    box = "10 10 20 20 0 0 0 0 0 0\n"
    annotate(
        root,
        ANNOTATIONS + f"0--A/twin.jpg\n4\n{box}{box}60 40 20 20 0 0 0 0 0 0\n60 40 20 20 0 0 0 1 0 0\n"
        + "".join(f"0--A/{name}.jpg\n1\n{box}" for name in ("hollow", "torn", "text", "gone")),
    )  # fmt: skip
    mark(
        root,
        f"# 0--A/one.jpg\n10 20 30 40 {KNOWN.replace('22.5', '99')} 1\n# 0--A/x.jpg\n1 1 2 2 {KNOWN} 1\n",
    )
    shutil.copytree(folder / "1--B", root / "WIDER_train/images/9--Z")
    annotate(root, "9--Z/two.png\n1\n50 10 16 16 0 0 0 0 0 0\n", "train")
    report = check(root)
    assert not report.ok
    val = report.splits[1]
    assert val.missing == ("0--A/gone.jpg",)
    assert [text.split(" (")[0] for text in val.broken] == [
        "0--A/hollow.jpg",
        "0--A/torn.jpg",
        "0--A/text.jpg",
    ]
    assert all("image" in text or "file" in text for text in val.broken)  # a reason each
    assert val.unlisted == ("0--A/nobody.jpg",)
    assert val.outside == ("0--A/twin.jpg face 3",)  # 64x48: the invalid one does not count
    assert val.repeated == ("0--A/twin.jpg face 2",)
    assert val.strayed == ("0--A/one.jpg face 1",)
    assert report.leaks == (("train/9--Z/two.png", "val/1--B/two.png"),)
    assert set(report.twins) - set(report.leaks) == {("val/0--A/empty.jpg", "val/0--A/twin.jpg")}
    assert len(report.findings()) == 9
    assert len(check(root, "train").splits) == 1


def test_check_of_unreadable_annotations(root: Path) -> None:
    annotate(root, ANNOTATIONS, "train")
    shutil.copytree(root / "WIDER_val", root / "WIDER_train")
    annotate(root, ANNOTATIONS.replace("\n3\n", "\n4\n"))
    report = check(root)
    assert not report.ok
    assert [split.name for split in report.splits] == ["train"]
    assert "wider_face_val_bbx_gt.txt:12: the file ends" in report.findings()[0]
    with pytest.raises(DatasetError, match="it has no split at all"):
        check(root / "nowhere")
    (root / "wider_face_split/wider_face_train_bbx_gt.txt").unlink()
    with pytest.raises(DatasetError, match="it has the split val"):
        check(root, "train")


@pytest.mark.parametrize("suffix", sheet.SUFFIXES)
def test_contact_sheet(root: Path, tmp_path: Path, suffix: str) -> None:
    (root / "WIDER_val/images/0--A/empty.jpg").write_bytes(b"broken")
    path = tmp_path / f"deep/sheet{suffix}"
    check(root, contact_sheet=path)
    picture = images.read(path)
    assert picture.shape[1] == sheet.WIDTH
    # green (valid) and red (invalid) frames are there, roughly (JPEG)
    for colour in (sheet.VALID, sheet.INVALID):
        assert (np.abs(picture.astype(int) - colour).max(axis=2) < 40).sum() > 50
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_contact_sheet_of_another_kind_is_refused_first(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as \.jpg, \.jpeg, \.png, found .*sheet\.pdf"):
        check(
            root, contact_sheet=tmp_path / "sheet.pdf", progress=lambda done, total: pytest.fail("too late")
        )
