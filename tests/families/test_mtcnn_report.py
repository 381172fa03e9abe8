"""`octavo report` on the embedded models: what is measured when, what is kept, and what is said of bad input.

The data set is the sample photographs; the float model's own answers are the annotations, so its AP is 1.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from octavo import cli, folder, images, load, verbs
from octavo.evaluate.report import Report
from octavo.verbs import kept
from octavo.verbs import report as report_verb

FLOAT, INT8 = "mtcnn-relu-float", "mtcnn-relu"
EVENT = "0--<b>&\"'"
HOME = sys.modules["octavo.verbs.report"]  # octavo.verbs.report is the function in it


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of two events in WIDER FACE layout, without landmarks; a name is hostile."""
    root = tmp_path_factory.mktemp("faces")
    model, lines = load(FLOAT, backend="onnxruntime"), []
    for name, sample in (
        (f"{EVENT}/a.png", "hopper"),
        (f"{EVENT}/b.png", "astronaut"),
        ("1--B/c.png", "hopper"),
    ):
        image = cv2.resize(
            images.read(verbs.SAMPLES / f"{sample}.jpg"), (128, 128), interpolation=cv2.INTER_AREA
        )
        path = root / "WIDER_val" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[:, :, ::-1])
        boxes = [f"{x:.0f} {y:.0f} {X - x:.0f} {Y - y:.0f}" for x, y, X, Y in model(path).xyxy]
        assert boxes
        lines += [name, str(len(boxes)), *boxes]
    annotation = root / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    annotation.parent.mkdir()
    annotation.write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def data(photographs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "faces"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really measured, in order; without the processes that memory is measured in."""
    done: list[str] = []
    evaluate, bench = verbs.evaluate, verbs.bench

    def watched_evaluate(model: verbs.Model, *args: Any, **options: Any) -> dict[str, Any]:
        done.append(f"{model.name} {model.backend}")
        return evaluate(model, *args, **options)

    def watched_bench(*args: Any, **options: Any) -> list[Any]:
        done.append("bench")
        return bench(*args, memory=False, **options)

    monkeypatch.setattr(HOME, "evaluate", watched_evaluate)
    monkeypatch.setattr(HOME, "bench", watched_bench)
    return done


Make = Callable[..., Report]


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Make:
    def call(*models: str | Path, **options: Any) -> Report:
        one = data / "WIDER_val" / "images" / "1--B" / "c.png"
        quick = {"size": (64, 64), "repeats": 1, "pictures": [one]} | options
        return report_verb(
            models or (FLOAT, INT8), quick.pop("data", data), tmp_path / "out" / "r.html", **quick
        )

    return call


def test_nothing_is_measured_twice(make: Make, measured: list[str]) -> None:
    first = make()
    assert measured == [f"{FLOAT} onnxruntime", f"{INT8} onnxruntime", "bench"]
    assert [part.kept for part in first.parts[:3]] == [False] * 3
    before = first.csv.read_text(encoding="utf-8")

    measured.clear()
    again = make()
    assert measured == []
    assert [part.kept for part in again.parts[:3]] == [True] * 3
    assert again.csv.read_text(encoding="utf-8") == before

    pytest.importorskip("openvino")
    make(backends=("onnxruntime", "openvino"))
    assert measured == [f"{FLOAT} openvino", f"{INT8} openvino", "bench"]


@pytest.mark.parametrize("what", ["model", "data", "settings", "broken"])
def test_what_changed_is_measured_again(
    make: Make, measured: list[str], data: Path, tmp_path: Path, what: str
) -> None:
    own = Path(shutil.copytree(folder.find(INT8), tmp_path / "own"))
    made = make(own)
    measured.clear()
    settings = {}
    if what == "model":
        info = folder.read_info(own)
        folder.write_info(own, info | {"settings": info["settings"] | {"min_face": 24}})
    elif what == "data":
        os.utime(data / "WIDER_val" / "images" / "1--B" / "c.png", (0, 0))
    elif what == "settings":
        settings = {"min_face": 30}
    else:
        (part,) = made.html.with_suffix(".parts").glob("evaluate-*.json")
        part.write_text(part.read_text()[:100])
    make(own, **settings)
    assert measured == ["own onnxruntime"] + ["bench"] * (what == "model")


def test_a_stopped_report_goes_on(make: Make, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = HOME.evaluate

    def stopped(model: verbs.Model, *args: Any, **options: Any) -> dict[str, Any]:
        if model.name == INT8:
            raise KeyboardInterrupt
        return evaluate(model, *args, **options)

    monkeypatch.setattr(HOME, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.setattr(HOME, "evaluate", evaluate)
    measured.clear()
    assert make().html.is_file()
    assert measured == [f"{INT8} onnxruntime", "bench"]


def test_what_the_page_says(make: Make, measured: list[str], data: Path) -> None:
    strange = data / "<img src=x onerror=alert(1)>.png"
    shutil.copy(data / "WIDER_val" / "images" / "1--B" / "c.png", strange)
    (data / "WIDER_val" / "images" / "1--B" / "c.png").write_bytes(b"no image")
    (data / "text.png").write_text("no image")
    made = make(pictures=[strange, data / "text.png"], images=3)
    text = made.html.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text
    assert "<b>&" not in text
    assert text.count('src="data:image/jpeg') == 2
    notes = " ".join(made.notes)
    for said in ("3 images only", "1 images could not be read", "1--B/c.png", "text.png is not shown"):
        assert said in notes
    assert "Landmarks" not in {number.section for number in made.numbers}
    with made.csv.open(newline="", encoding="utf-8") as file:
        ap = {
            (row["label"], row["measure"]): row["value"]
            for row in csv.DictReader(file)
            if row["section"] == "Average precision"
        }
    assert ap[FLOAT, EVENT] == "1"
    assert ap[FLOAT, "1--B"] == "0"  # not read, so not found


def test_commands_measure_the_same_again(
    make: Make, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(min_face=30.0, images=2)
    words = shlex.split(made.parts[1].command)
    with pytest.raises(SystemExit):
        cli.main([*words[1:], "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["min_face"] == 30
    assert record["images"] == 2
    (all_,) = [
        n for n in made.numbers if n.label == INT8 and (n.section, n.measure) == ("Average precision", "all")
    ]
    assert record["ap"]["all"] == all_.value


def test_names_are_short_where_they_can_be(make: Make, measured: list[str], tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(folder.find(INT8), tmp_path / place / "same")) for place in "ab")
    assert [c.label for c in make(FLOAT, one).candidates] == [FLOAT, "same"]
    assert [c.label for c in make(one, two).candidates] == [str(one), str(two)]
    assert measured.count("same onnxruntime") == 1  # the same files, so the same results


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param([FLOAT, "mtcn-relu"], 2, "Did you mean", id="unknown model"),
        pytest.param([FLOAT, FLOAT], 1, "asked for twice", id="a model twice"),
        pytest.param([FLOAT, "--backend", "onnx"], 2, "onnxruntime", id="unknown backend"),
        pytest.param([FLOAT, "--out", "OUT.pdf"], 1, "ends in .html", id="no page"),
        pytest.param([FLOAT, "--out", "/proc/none/r.html"], 1, "/proc/none", id="unwritable"),
        pytest.param([FLOAT, "--split", "train"], 1, "the split 'train'", id="no such split"),
        pytest.param([FLOAT, "--min-face", "-1"], 2, "above 0", id="setting"),
        pytest.param([FLOAT, "--images", "2", "--ground-truth", "DATA"], 1, "only some of them", id="some images"),
        pytest.param([FLOAT, "--ground-truth", "DATA"], 1, "wider_face_val.mat", id="no ground truth"),
        pytest.param([FLOAT, "--data", "EMPTY"], 1, "without a single valid face", id="no faces"),
        pytest.param([FLOAT, "--size", "big"], 2, "WIDTHxHEIGHT", id="size"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    empty = Path(shutil.copytree(data, tmp_path / "empty"))
    (empty / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_text("1--B/c.png\n0\n")
    places = {"DATA": str(data), "EMPTY": str(empty), "OUT.pdf": str(tmp_path / "r.pdf")}
    given = [places.get(word, word) for word in arguments]
    for option, default in (("--data", str(data)), ("--out", str(tmp_path / "r.html"))):
        given += [option, default] if option not in given else []
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *given])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (code, "")
    assert says in " ".join(printed.err.split())
    assert not list(tmp_path.glob("r.html"))


def test_the_fingerprint_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "a" / "circle").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "broken").symlink_to(tmp_path / "none")
    before = kept.fingerprint(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert kept.fingerprint(tmp_path / "link") == before
    (tmp_path / "a" / "x").write_text("22")
    assert kept.fingerprint(tmp_path / "a") != before
    assert kept.fingerprint(None) is None


def test_commands_are_quoted() -> None:
    options: dict[str, Any] = {
        "min_face": 12.0,
        "thresholds": (0.5, 0.5, 0.02),
        "images": None,
        "backend": ["a", "b"],
    }
    assert kept.command("evaluate", "a b", data=Path("$x"), **options) == (
        "octavo evaluate 'a b' --data '$x' --min-face 12 --thresholds 0.5,0.5,0.02 --backend a,b"
    )
