"""Texts as a result and as a task: against the textbook's recurrence, files written by hand, and bad input."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.data import textlines
from octavo.data.textlines import DatasetError, read
from octavo.evaluate import text
from octavo.outputs import Text


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_distance_is_the_recurrence(a: str, b: str) -> None:
    @cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = least(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, changed)

    assert text.distance(a, b) == least(len(a), len(b))


def test_figures_of_lines(tmp_path: Path) -> None:
    lines = [textlines.Line(tmp_path / n, n, t) for n, t in (("1", "ba con"), ("2", "mèo"), ("3", "đi xa"))]
    found = {
        "1": Text("ba con", 0.9),
        "2": Text(unicodedata.normalize("NFD", "mèo"), 0.8),
        "3": Text("đi ra", 0.7),
    }
    measured = text.measure(lines, found)
    assert measured["exact"] == {"all": pytest.approx(2 / 3)}  # letters and marks apart are the same text
    assert measured["cer"] == pytest.approx(1 / 14)
    assert measured["wer"] == pytest.approx(1 / 5)
    assert measured["wrong"] == [{"name": "3", "right": "đi xa", "read": "đi ra"}]
    assert text.headline(measured) == measured["exact"]
    assert text.errors(measured) == {"all": measured["cer"]}
    assert text.count(lines) == 14
    missing = text.measure(lines, {})
    assert missing["cer"] == 1
    with pytest.raises(ValueError, match="no lines"):
        text.measure([], {})


def test_agreement_of_two_readers() -> None:
    pairs = [(Text("ab", 0.5), Text("ab", 0.75)), (Text("cd", 1.0), Text("c", 1.0))]
    found = text.agreement(pairs)
    assert (found.share, found.apart, found.score_max) == (0.5, 1, 0.25)
    assert found.words() == "1 of 2 lines as the first model; 1 characters apart"
    assert text.agreement([]).share is None


def test_predictions_are_written_as_such_data_sets_are(tmp_path: Path) -> None:
    lines = [textlines.Line(tmp_path / "a.png", "a.png", "x")]
    text.write(tmp_path, lines, {"a.png": Text("ố", 1.0)})
    assert (tmp_path / "texts.txt").read_text(encoding="utf-8") == "a.png\tố\n"


def test_text_goes_to_files_and_back(tmp_path: Path) -> None:
    found = Text("Huế", 0.875, np.full((4, 6, 3), 9, np.uint8))
    found.save(tmp_path / "out" / "a.png")
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == "Huế\n"
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (4, 6, 3)
    assert Text.from_dict({**found.to_dict(), "image": "a.png"}) == found
    assert found.to_json() == '{"text": "Huế", "confidence": 0.875}'
    assert found.lines() == ["Huế  0.88"]
    assert found.shrunk(3).image is not None
    assert found.shrunk(3).image.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="no image to draw"):
        Text("a", 1.0).save(tmp_path / "b.png")


@pytest.mark.parametrize(("words", "confidence"), [("two\nlines", 0.5), ("a", 1.5), ("a", float("nan"))])
def test_texts_that_are_none(words: str, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"text must be one line|confidence must be"):
        Text(words, confidence)


# Data sets


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.full((20, 60, 3), len(name), np.uint8))


def test_lines_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    pictures(tmp_path, "x/1.png", "2.png")
    rows = "x/1.png\t Cái  này \r\n\n2.png\t" + unicodedata.normalize("NFD", "ồ") + "\n"
    (tmp_path / "test_line_annotation.txt").write_text("\ufeff" + rows, encoding="utf-8")
    assert textlines.splits(tmp_path) == ["val"]
    assert text.recognises(tmp_path)
    lines = read(tmp_path, "val")
    assert [(line.name, line.text) for line in lines] == [("x/1.png", "Cái này"), ("2.png", "ồ")]
    with pytest.raises(DatasetError, match=r"no annotations of the split 'train': expected train\.txt"):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"1.png a\n", "line 1: expected path<TAB>text"),
        (b"1.png\ta\n1.png\tb\n", "line 2: 1.png is listed a second time"),
        (b"1.png\t \n", "line 1: 1.png has no text"),
        (b"9.png\ta\n", "not there: 9.png"),
        (b"\n\n", "has no lines"),
        (b"1.png\t\xff\xfe\n", "is not UTF-8"),
    ],
)
def test_annotations_that_are_wrong(rows: bytes, said: str, tmp_path: Path) -> None:
    pictures(tmp_path, "1.png")
    (tmp_path / "train.txt").write_bytes(rows)
    with pytest.raises(DatasetError, match=said):
        read(tmp_path, "train")


def test_other_layouts_are_not_text_lines(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0.1 0.2\n")
    assert not text.recognises(tmp_path)
    assert not text.recognises(tmp_path / "nowhere")


def test_a_check_names_what_is_missing_broken_or_twice(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png", "tall.png")
    cv2.imwrite(str(tmp_path / "tall.png"), np.zeros((90, 20, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "train.txt").write_text("1.png\ta\ngone.png\tb\nbroken.png\tc\ntall.png\td e\n")
    (tmp_path / "val.txt").write_text("2.png\ta\n")
    report = text.check(tmp_path, contact_sheet=tmp_path / "sheet.png")
    assert not report.ok
    said = " ".join(report.findings())
    for words in (
        "missing: gone.png",
        "cannot be read: broken.png",
        "several words: tall.png (20x90)",
        "in both splits",
    ):
        assert words in said
    assert (tmp_path / "sheet.png").is_file()
    assert report.tables()[0][2] == [(4, 6, 6)]
    assert report.to_dict()["ok"] is False
