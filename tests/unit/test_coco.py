"""Data sets in COCO's layout: read, checked, and figures on them as COCO's own tools give them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import cli
from octavo.data import DatasetError
from octavo.data.coco import read, splits
from octavo.data.coco_check import check
from octavo.evaluate import objects
from octavo.outputs import Detections

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "brush"}]


def annotation(image: int, category: int, *box: float, **more: Any) -> dict[str, Any]:
    area = box[2] * box[3] / 2
    return {"image_id": image, "category_id": category, "bbox": list(box), "area": area, "iscrowd": 0, **more}


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 60, "height": 40},
            {"id": 2, "file_name": "a.png", "width": 50, "height": 50},
            {"id": 5, "file_name": "c.png", "width": 30, "height": 30},
        ],
        "annotations": [
            annotation(2, 3, 10, 5, 20, 30, id=1),
            annotation(7, 90, 0.5, 0, 9.25, 8, id=2),
            annotation(7, 1, 20, 10, 30, 20, id=3, iscrowd=1),
            annotation(7, 1, 5, 5, 30, 30, id=4),
        ],
        "categories": [dict(category) for category in CATEGORIES],
    }


def write(root: Path, made: dict[str, Any] | str, split: str = "val", year: str = "2017") -> Path:
    (root / "annotations").mkdir(exist_ok=True, parents=True)
    text = made if isinstance(made, str) else json.dumps(made)
    (root / "annotations" / f"instances_{split}{year}.json").write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, content())
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    for image in content()["images"]:
        pixels = np.full((image["height"], image["width"], 3), image["id"], np.uint8)
        cv2.imwrite(str(tmp_path / "images" / "val2017" / image["file_name"]), pixels)
    return tmp_path


def test_images_in_the_order_of_the_file_with_their_objects(root: Path) -> None:
    first, second, third = read(root, "val")
    assert [e.name for e in (first, second, third)] == ["b.png", "a.png", "c.png"]
    assert first.path == root / "images" / "val2017" / "b.png"
    assert first.classes == ("person", "car", "brush")  # by rising ids
    assert first.categories == (1, 3, 90)
    assert first.class_id.tolist() == [2, 0, 0]
    assert first.xyxy.tolist() == [[0.5, 0, 9.75, 8], [20, 10, 50, 30], [5, 5, 35, 35]]
    assert first.crowd.tolist() == first.invalid.tolist() == [False, True, False]
    assert second.area.tolist() == [300]
    assert (third.xyxy.shape, third.size) == ((0, 4), (30, 30))
    assert splits(root) == ["val"]
    assert objects.recognises(root)
    assert objects.count([first, second, third]) == 3


def test_folders_as_the_archives_unpack_and_other_years(root: Path) -> None:
    (root / "images" / "val2017").rename(root / "val")
    (root / "annotations" / "instances_val2017.json").rename(root / "annotations" / "instances_val.json")
    assert read(root, "val")[0].path == root / "val" / "b.png"


Spoil = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda c: c.pop("categories"), 'no list "categories"', id="no categories"),
        pytest.param(lambda c: c["categories"].clear(), "lists no category", id="none listed"),
        pytest.param(
            lambda c: c["categories"].append({"id": 3, "name": "bus"}),
            r"category 3: the id 3 was 'car'",
            id="id twice",
        ),
        pytest.param(lambda c: c["images"].clear(), "lists no image", id="no image"),
        pytest.param(lambda c: c["images"][0].pop("file_name"), "image 0: file_name is None", id="no name"),
        pytest.param(
            lambda c: c["images"][0].update(file_name="../../x.png"),
            "leads out of the folder",
            id="a way out",
        ),
        pytest.param(
            lambda c: c["images"][1].update(id=7), "image 1: a.png has the id 7 of another", id="same id"
        ),
        pytest.param(
            lambda c: c["images"][1].update(file_name="b.png"), "b.png is listed twice", id="same name"
        ),
        pytest.param(lambda c: c["images"][1].update(width=0), "a.png has the width 0", id="no width"),
        pytest.param(lambda c: c["images"].append(3), "no object of names and values", id="no object"),
        pytest.param(
            lambda c: c["annotations"][2].update(image_id=99),
            "annotation 2: there is no image 99",
            id="no such image",
        ),
        pytest.param(
            lambda c: c["annotations"][2].update(category_id=4),
            "annotation 2: there is no category 4",
            id="category",
        ),
        pytest.param(
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 0: bbox is", id="three numbers"
        ),
        pytest.param(
            lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "which is no box", id="turned"
        ),
        pytest.param(lambda c: c["annotations"][0].update(bbox="1 2 3 4"), "expected a list", id="text"),
        pytest.param(lambda c: c["annotations"][0].update(area=-1), "area is -1", id="area"),
    ],
)
def test_broken_annotations_say_where(root: Path, spoil: Spoil, says: str) -> None:
    made = content()
    spoil(made)
    write(root, made)
    with pytest.raises(DatasetError, match=says):
        read(root, "val")


def test_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"no annotations of the split 'train', and it has the split val\. Expected"
    ):
        read(root, "train")
    with pytest.raises(DatasetError, match="'test' is not known"):
        read(root, "test")
    write(root, "{", split="train")
    with pytest.raises(DatasetError, match="is not JSON"):
        read(root, "train")
    (root / "images" / "val2017" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 3 images .* for instance a\.png"):
        read(root, "val")
    assert len(read(root, "val", missing="keep")) == 3


def test_the_command_shows_what_is_in_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", str(root)])
    report = check(root)
    shown = capsys.readouterr().out
    assert stopped.value.code == (0 if report.ok else 1)
    for split in report.splits:
        for name, count in split.objects.items():
            assert re.search(rf"{name} +{count}\b", shown), name
    assert all(finding in " ".join(shown.split()) for finding in report.findings())


def test_the_check_finds_what_is_wrong(root: Path) -> None:
    made = content()
    made["annotations"] += [annotation(2, 1, 48, 2, 30, 5, id=9), annotation(2, 1, 1, 1, 0, 5, id=10)]
    write(root, made)
    folder = root / "images" / "val2017"
    cv2.imwrite(str(folder / "b.png"), np.zeros((41, 60, 3), np.uint8))
    (folder / "c.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "d.png"), np.full((50, 50, 3), 2, np.uint8))  # of a.png's pixels
    told: list[tuple[int, int]] = []
    report = check(root, progress=lambda *step: told.append(step))
    said = "\n".join(report.findings())
    assert not report.ok
    assert "1 images cannot be read: c.png" in said
    assert "b.png (60x40 annotated, 60x41 there)" in said
    assert "1 boxes lie outside their image by half or more: a.png object 2" in said
    assert "1 boxes have no area: a.png object 3" in said
    assert "1 image files are not in the annotations: d.png" in said
    assert told[-1] == (3, 3)
    (split,) = report.splits
    assert split.objects == {"person": 3, "car": 1, "brush": 1}
    assert (split.images, split.crowds, split.empty) == (3, 1, 1)
    assert report.to_dict()["ok"] is False
    write(root, content(), split="train")
    (root / "images" / "train2017").symlink_to(folder)
    assert "3 images are in both splits" not in said
    assert "images are in both splits" in "\n".join(check(root).findings())


# Figures


def detections(*rows: tuple[float, ...]) -> Detections:
    """x1, y1, x2, y2, confidence, class."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))


def perfect(root: Path) -> dict[str, Detections]:
    return {
        entry.name: Detections(
            entry.xyxy[~entry.crowd], np.full(int((~entry.crowd).sum()), 0.9), entry.class_id[~entry.crowd]
        )
        for entry in read(root, "val")
    }


def test_perfect_answers_and_none(root: Path) -> None:
    entries = read(root, "val")
    measured = objects.measure(entries, perfect(root))
    assert measured["ap"] == pytest.approx({"all": 1, "AP50": 1, "AP75": 1})
    assert measured["ap_by_class"] == pytest.approx({"person": 1, "car": 1, "brush": 1})
    assert measured["ap_by_size"] == pytest.approx(
        {"small": 1}
    )  # by the area of the outline, all below 32x32
    assert objects.headline(measured)["all"] == pytest.approx(1)
    nothing = objects.measure(entries, {})
    assert set(nothing["ap"].values()) == {0.0}
    assert json.loads(json.dumps(measured)) == measured


def test_a_crowd_is_neither_wrong_nor_asked_for(root: Path) -> None:
    entries = read(root, "val")
    more = perfect(root)
    rows = [(*box, 0.95, 0) for box in ([21, 11, 30, 20], [30, 12, 45, 28])]  # inside the crowd
    first = more["b.png"]
    joined = detections(
        *rows, *[(*box, c, k) for box, c, k in zip(first.xyxy, first.confidence, first.class_id, strict=True)]
    )
    assert objects.measure(entries, more | {"b.png": joined})["ap"]["all"] == pytest.approx(1)
    wrong = detections(
        (0, 30, 9, 40, 0.95, 0), *[(*b, 0.9, k) for b, k in zip(first.xyxy, first.class_id, strict=True)]
    )
    assert objects.measure(entries, more | {"b.png": wrong})["ap_by_class"]["person"] < 0.6


def test_figures_are_those_of_coco_s_own_way(root: Path, tmp_path: Path) -> None:
    """Through files: annotations as they are, results.json by loadRes; confusions of boxes, classes and scores."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    entries, found = read(root, "val"), {}
    for entry in entries:
        boxes = np.concatenate([entry.xyxy + rng.normal(0, 2, entry.xyxy.shape), rng.uniform(0, 20, (4, 4))])
        boxes[:, 2:] = np.maximum(boxes[:, :2] + 1, boxes[:, 2:])
        labels = np.concatenate([entry.class_id, rng.integers(0, 3, 4)])
        found[entry.name] = Detections(boxes, rng.uniform(0, 1, len(boxes)), labels)
    objects.write(tmp_path / "out", entries, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "instances_val2017.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "results.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ap = objects.measure(entries, found)["ap"]
    assert [ap["all"], ap["AP50"], ap["AP75"]] == pytest.approx(judge.stats[:3].tolist(), abs=1e-6)
    assert 0 < ap["all"] < 1


def test_what_cannot_be_measured_is_said(root: Path) -> None:
    entries = read(root, "val")
    with pytest.raises(ValueError, match="class 7, and the data set has only 3"):
        objects.measure(entries, {"a.png": detections((0, 0, 5, 5, 0.5, 7))})
    with pytest.raises(ValueError, match="1 images without a single object"):
        objects.measure(entries[2:], {})


def test_tables_and_a_chart(root: Path, tmp_path: Path) -> None:
    measured = objects.measure(read(root, "val"), perfect(root))
    whole, sizes = objects.tables(measured)
    assert whole[1][0] == ("AP, IoU .50 to .95", pytest.approx(1))
    assert sizes[1] == [("small", pytest.approx(1))]
    objects.chart(measured, tmp_path / "curves.png", "a model")
    assert (tmp_path / "curves.png").stat().st_size > 1000
