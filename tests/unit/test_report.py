"""The report's page and CSV file from made-up measurements: read again by the standard library, name by name."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from octavo.evaluate import agreement, charts
from octavo.evaluate.report import Candidate, Part, Picture, Report, page
from octavo.evaluate.report.numbers import Number, numbers, write_csv
from octavo.evaluate.report.pictures import LONGEST, picture
from octavo.outputs import Detections

HOSTILE = "</title><script>alert(1)</script>&\"'$x^2$ {{7*7}}"
VOID = {"meta", "link", "img", "br", "path", "use", "rect", "circle"}


def record(**changes: Any) -> dict[str, Any]:
    curve = {"recall": [0.5, 0.9], "precision": [1.0, 0.8]}
    return {
        "model": "m",
        "split": "val",
        "images": 3,
        "faces": 7,
        "settings": {"min_face": 12.0, "thresholds": [0.5, 0.5, 0.02]},
        "ap": {"0--Crowd": 0.82, "all": 0.9},
        "ap_by_size": {"0-16": 0.5, "256+": 1},
        "landmarks": {"all": {"nme": 0.02, "found": 9, "faces": 10}},
        "landmark_errors": [i / 1000 for i in range(101)],
        "curves": {"0--Crowd": curve, "all": curve},
        "seconds": 1.5,
        "errors": {},
    } | changes


def timing(scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "total": {"p50": 10 * scale, "p95": 12 * scale},
        "stages": {"one": {"p50": 6 * scale, "p95": 7}, "other": {"p50": 4 * scale, "p95": 5}},
        "file_bytes": 1_234_567,
        "integers": {"integer": 3, "layers": 4, "of_multiply_adds": 0.95},
        "memory": {"runtime": 60.0, "peak": 60 + 80 * scale},
    } | changes


def candidate(name: str = "float", **changes: Any) -> Candidate:
    info = {"family": "f", "variant": "v", "precision": "float", "settings": {"min_face": 20}, "data": "d"}
    given: dict[str, Any] = {"record": record(), "timing": timing(), "info": info} | changes
    return Candidate(name, name, "onnxruntime", digest="abc", label=name, **given)


TABLE = {
    "rows": [{"layer": "conv1", "alone": [30.0, None]}, {"layer": "conv2", "alone": [None, None]}],
    "quantized": [25.0, 28.0],
}


def report(tmp_path: Path, name: str = "int8") -> Report:
    event = f"3--{name}"
    other = record(ap={event: 0.7, "0--Crowd": 0.80, "all": 0.91}, curves={event: record()["curves"]["all"]})
    scheme = {
        "weight": {"bits": 8, "signed": True, "symmetric": True, "granularity": "channel"},
        "skip": [name],
    }
    info = {"family": "f", "variant": "v", "precision": "int8", "target": "cpu", "scheme": scheme,
            "settings": {"min_face": 20}, "calibration": {"hash": "1234", "images": 8, "data": name}}  # fmt: skip
    models = [candidate(), candidate(name, record=other, timing=timing(0.5), info=info)]
    image = np.full((40, 60, 3), 90, np.uint8)
    return Report(
        candidates=models,
        parts=[Part(name, f"octavo evaluate '{name}'", "2026", "c0ffee", 3.0, True)],
        pictures=[Picture(name, [image, image], ["1 found", name])],
        sensitivity={name: {"pnet": TABLE}},
        notes=[name],
        about={"made": "2026", "octavo": "0", "command": f"octavo report {name}", "data": name},
        html=tmp_path / "report.html",
        csv=tmp_path / "report.csv",
    )


class Reader(HTMLParser):
    """Checks that every element is closed where it must be, and collects what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cells: dict[tuple[str, str, int], list[str]] = {}  # section, measure, column: values
        self.at = ["", "", -1]
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if "data-section" in given:
            self.at[0] = given["data-section"] or ""
        if tag == "table" and given.get("class") == "layers":
            self.at[0] = "Sensitivity"
        if "data-measure" in given:
            self.at[1:] = [given["data-measure"], -1]
        if tag == "td" and "number" in (given.get("class") or ""):
            self.at[2] += 1
        if tag == "data" and "td" in self.open:
            self.cells.setdefault(tuple(self.at), []).append(given["value"] or "")  # type: ignore[arg-type]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", ["int8", HOSTILE, "a\nb", "Ωμέγα", "\udcff.jpg"])
def test_the_page_is_well_formed_whatever_the_names_are(tmp_path: Path, name: str) -> None:
    made = report(tmp_path, name)
    page.write(made)
    text = made.html.read_text(encoding="utf-8")
    read = Reader(text)
    assert not [tag for tag, _ in read.tags if tag in ("script", "iframe", "object", "base")]
    assert "49" not in "".join(read.text)  # a template in a name is not one
    if name == HOSTILE:
        assert "".join(read.text).count(HOSTILE) > 10  # shown as it is
    handlers = [key for _, attrs in read.tags for key in attrs if key.startswith("on")]
    assert not handlers


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    text = page.render(report(tmp_path))
    read = Reader(text)
    for tag, attrs in read.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data"):
            place = attrs.get(key)
            assert place is None or place.startswith(("data:", "#")), (tag, key, place)
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0  # of the SVG charts: a second one's clip path would be the first's
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    images = [attrs for tag, attrs in read.tags if tag == "img"]
    assert len(images) == 2
    assert all(image["alt"] for image in images)


def test_numbers_in_the_page_are_those_of_the_csv_file(tmp_path: Path) -> None:
    made = report(tmp_path)
    write_csv(made.numbers, made.csv)
    with made.csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = [c.label for c in made.candidates]
    expected = {}
    for row in rows:
        column = 0 if row["section"] == "Sensitivity" else labels.index(row["label"])
        expected[row["section"], row["measure"], column] = [row["value"], *filter(None, [row["change"]])]
    assert len(rows) > 25
    assert Reader(page.render(made)).cells == expected


@pytest.mark.parametrize(
    ("changed", "measure", "value", "change", "mark"),
    [
        pytest.param({"ap": {"all": 0.85}}, "all", 0.85, -0.05, "worse", id="AP lost"),
        pytest.param({"ap": {"all": 0.95}}, "all", 0.95, 0.05, "better", id="AP won"),
        pytest.param({"ap": {"all": 0.8975}}, "all", 0.8975, -0.0025, "same", id="AP within the bound"),
        pytest.param({"ap": {"new": 0.5}}, "new", 0.5, None, "", id="the first has no such event"),
        pytest.param(
            {"landmarks": {"all": {"nme": 0.03, "found": 9, "faces": 10}}}, "NME, all", 0.03, 1.5, "worse", id="NME"
        ),
        pytest.param({"easy": 0.8}, "easy", 0.8, None, "", id="easy"),
        pytest.param({"cer": 0.1}, "cer", 0.1, 0.05, "worse", id="an error rate, of another family"),
        pytest.param({"novel": {"x": 3}}, "x", 3, 1, "", id="of an unknown kind: no judgement"),
    ],
)  # fmt: skip
def test_changes(
    changed: dict[str, Any], measure: str, value: float, change: float | None, mark: str
) -> None:
    first = record(cer=0.05, novel={"x": 2})
    found = numbers([candidate(record=first), candidate("b", record=record(**changed))])
    (one,) = [n for n in found if n.label == "b" and n.measure == measure]
    assert (one.value, one.mark) == (value, mark)
    assert one.change == (None if change is None else pytest.approx(change))


def test_costs_are_held_against_the_first() -> None:
    found = {
        n.measure: n for n in numbers([candidate(), candidate("b", timing=timing(0.5))]) if n.label == "b"
    }
    assert (found["median latency"].value, found["median latency"].change) == (5, 0.5)
    memory = found["peak memory beyond the runtime"]
    assert (memory.value, memory.change, memory.mark, memory.change_text) == (40, 0.5, "better", "0.50×")
    assert (found["files of the networks"].text, found["files of the networks"].mark) == ("1235", "same")
    assert found["layers in integers"].value == 75
    assert found["multiply-adds in integers"].value == 95


@pytest.mark.parametrize(
    ("value", "first", "text", "change"),
    [
        pytest.param(0.8, 0.9, "0.8000", "−0.1000", id="lost"),
        pytest.param(0.90004, 0.9, "0.9000", "0.0000", id="no sign before what rounds to zero"),
        pytest.param(0.0, 0.0, "0.0000", "0.0000", id="zero"),
        pytest.param(1.0, 0.5, "1.0000", "+0.5000", id="won"),
    ],
)
def test_how_numbers_are_shown(value: float, first: float, text: str, change: str) -> None:
    def of(ap: float) -> dict[str, Any]:
        return {"record": {"ap": {"all": ap}}, "timing": {}}

    (_, one) = numbers([candidate(**of(first)), candidate("b", **of(value))])
    assert (one.text, one.change_text) == (text, change)


def test_a_model_alone_and_nothing_measured_but_one_number(tmp_path: Path) -> None:
    bare = candidate(record={"split": "val", "images": 1, "faces": 0, "exact": 0.5}, timing={})
    made = Report(
        [bare], [], [], {}, [], {"octavo": "0", "command": ""}, tmp_path / "r.html", tmp_path / "r.csv"
    )
    read = Reader(page.render(made))
    assert read.cells == {("Texts without an error", "exact", 0): ["0.5"]}
    assert not [tag for tag, _ in read.tags if tag == "figure"]


def test_exact_layers_are_said_to_be(tmp_path: Path) -> None:
    (exact,) = [n for n in report(tmp_path).numbers if n.measure == "pnet/conv2"]
    assert exact == Number("Sensitivity", "pnet/conv2", "dB", "int8", "int8", "torch", float("inf"),
                           "difference", None, "", "exact", "")  # fmt: skip


def test_pictures_are_reduced_before_they_are_drawn() -> None:
    image = np.zeros((2 * LONGEST, 1000, 3), np.uint8)
    faces = Detections([[100, 100, 300, 300], [500, 500, 700, 700]], [0.9, 0.8], [0, 0], image=image)
    made = picture("x.jpg", [faces, faces[:1], Detections.empty(image=image)], agreement.measure)
    assert [drawn.shape for drawn in made.drawn] == [(LONGEST, 500, 3)] * 3
    assert made.drawn[0][50:150, 45:55].any()  # the first box, at half its place
    assert not made.drawn[2].any()
    assert made.said == [
        "2 found",
        "1 found, 1 of the first model's 2; mean IoU with them 1.000",
        "0 found, none of them the first model's 2",
    ]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        pytest.param("report.pdf", ValueError, "ends in .html", id="another format"),
        pytest.param("folder.html", ValueError, "is a folder", id="a folder"),
        pytest.param("file/report.html", OSError, "file", id="below a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_at_once(
    tmp_path: Path, name: str, error: type[Exception], says: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(error, match=says):
        page.check(tmp_path / name)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"octavo\[report\]"):
        page.check(tmp_path / "report.html")


# Charts -------------------------------------------------------------------------------------------------

CHARTS = ("curves", "points", "shares", "trade", "growth")
LINES = {"a": ([0.5, 0.9], [1.0, 0.8]), "$b^": ([0.2], [0.9]), "never": ([], [])}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_charts_are_the_same_bytes_for_the_same_data(tmp_path: Path, suffix: str) -> None:
    made = []
    for place in ("one", "two"):
        files = [tmp_path / place / f"{chart}{suffix}" for chart in CHARTS]
        charts.precision_recall(LINES, files[0], "title $x$")
        charts.points({"a": {"0-16": 0.5, "16+": 1.0}, "b": {"16+": 0.9}, "none": {}}, files[1])
        charts.shares({"a": ([0.0, 0.1, 0.4], 0.9), "none": ([], 0.0)}, files[2])
        charts.trade({(1.0, 0.5): "now", (2.0, 0.4): "", (3.0, 0.9): ""}, files[3], ("ms", "AP"))
        charts.growth({"faces": {0: 1.0, 10: 3.0}}, {"faces": ("faces", "ms")}, files[4])
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]
    assert all(1000 < len(data) < 60_000 for data in made[0])


def test_svg_in_a_page(tmp_path: Path) -> None:
    charts.precision_recall(LINES, tmp_path / "c.svg", legend=False)
    text = str(page.inline((tmp_path / "c.svg").read_text()))
    Reader(text)
    assert text.startswith("<svg")
    assert "#000000" not in text  # the text's colour instead
    assert "precision" in text  # text stays text
    ids, used = set(re.findall(r' id="([^"]+)"', text)), set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert ids == used
