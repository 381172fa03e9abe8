"""A task and a family that nobody knew before, as files: the verbs serve them without a word about them.

The task is to read whether a picture is `dark` or `light`; the family looks at the mean of the pixels, no network.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import cli, evaluate, models, verbs
from octavo.verbs.held_out import accuracy, held_out, judge

TASK = """
from dataclasses import dataclass
from pathlib import Path

UNIT, YARDSTICK, ERROR, WHOLE = "words", "exact", "", ("all",)
LAYOUT, SPLITS = "words: words.txt and NAME.png", ("train", "val")

@dataclass(frozen=True)
class Entry:
    path: Path
    name: str
    word: str

@dataclass(frozen=True)
class Word:
    word: str
    image: object = None

    def lines(self):
        return [f"it is {self.word}"]

    def to_dict(self):
        return {"word": self.word}

def recognises(root):
    return (Path(root) / "words.txt").is_file()

def read(root, split):
    lines = (Path(root) / "words.txt").read_text().splitlines()
    return [Entry(Path(root) / name, name, word) for name, word in map(str.split, lines)]

def count(entries):
    return sum(entry.word != "?" for entry in entries)

def check(root, split, sheet, progress):
    return "checked"

def nothing():
    return Word("")

def measure(entries, found):
    right = [found[entry.name].word == entry.word for entry in entries]
    return {"exact": {"all": sum(right) / len(right)}}

def headline(measured):
    return measured["exact"]

def errors(measured):
    return {}

def tables(measured):
    return [(("words", "exact"), [("all", measured["exact"]["all"])])]

def write(folder, entries, found):
    Path(folder).mkdir()
    Path(folder, "read.txt").write_text(" ".join(found[entry.name].word for entry in entries))
"""
PREDICT = """
from dataclasses import asdict, dataclass, replace
from octavo.evaluate.shades import Word

TASK, MEASURING = "shades", {}

@dataclass(frozen=True)
class Settings:
    middle: float = 128

    @classmethod
    def of(cls, stored, **overrides):
        return replace(cls(**stored), **{name: value for name, value in overrides.items() if value is not None})

    def to_dict(self):
        return asdict(self)

def predict(image, run, settings):
    return Word("dark" if image.mean() < settings.middle else "light")
"""
RECIPE = """
from types import SimpleNamespace

STAGE = SimpleNamespace(sampling=SimpleNamespace(held_out=0.5))
RECIPES, NETWORKS = {"shade-1": SimpleNamespace(stages={"one": STAGE})}, {}
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[verbs.Model]:
    """The files in folders that octavo.evaluate and octavo.models look into too, and an opened model."""
    for file, text in {
        "tasks/shades.py": TASK,
        "families/shade/predict.py": PREDICT,
        "families/shade/recipe.py": RECIPE,
        "families/shade/net.py": "",
        "families/shade/__init__.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(evaluate, "__path__", [*evaluate.__path__, str(tmp_path / "tasks")])
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "families")])
    monkeypatch.setattr(models, "FOLDER", tmp_path / "families")
    importlib.invalidate_caches()
    info = {"family": "shade", "variant": "shade-1", "precision": "float", "settings": {}}
    yield verbs.Model(tmp_path / "shade-model", info, {}, "none")
    for name in [name for name in sys.modules if ".shade" in name]:
        del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four pictures; the third says `dark` and is light."""
    root = tmp_path / "words"
    root.mkdir()
    lines = []
    for number, (shade, word) in enumerate([(10, "dark"), (200, "light"), (250, "dark"), (90, "dark")]):
        cv2.imwrite(str(root / f"{number}.png"), np.full((8, 8, 3), shade, np.uint8))
        lines.append(f"{number}.png {word}")
    (root / "words.txt").write_text("\n".join(lines))
    return root


def test_evaluate(model: verbs.Model, root: Path, tmp_path: Path) -> None:
    result = verbs.evaluate(model, root, save_predictions=tmp_path / "out")
    assert result["exact"] == {"all": 0.75}
    assert (result["images"], result["words"]) == (4, 4)
    assert "faces" not in result
    assert (tmp_path / "out" / "read.txt").read_text() == "dark light light dark"
    assert verbs.evaluate(model, root, middle=300)["exact"] == {"all": 0.75}  # all dark
    assert verbs.evaluate(model, root, middle=0)["exact"] == {"all": 0.25}  # all light


def test_an_image_that_cannot_be_read_counts_as_nothing(model: verbs.Model, root: Path) -> None:
    (root / "0.png").write_text("no picture")
    result = verbs.evaluate(model, root)
    assert result["exact"] == {"all": 0.5}
    assert list(result["errors"]) == ["0.png"]


@pytest.mark.parametrize("option", ["chart", "ground_truth"])
def test_what_the_task_does_not_have_is_said(
    model: verbs.Model, root: Path, tmp_path: Path, option: str
) -> None:
    with pytest.raises(ValueError, match=f"reads words, and of those there is no {option}"):
        verbs.evaluate(model, root, **{option: tmp_path / "x.png"})  # type: ignore[arg-type]


def command(monkeypatch: pytest.MonkeyPatch, model: verbs.Model, *words: str | Path) -> int:
    monkeypatch.setattr(sys.modules["octavo.verbs.evaluate"], "load", lambda *_: model)
    monkeypatch.setattr(sys.modules["octavo.verbs.predict"], "load", lambda *_: model)
    monkeypatch.setattr(sys.modules["octavo.verbs.tune"], "load", lambda *_: model)
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_tables_are_the_tasks(
    model: verbs.Model, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, model, "evaluate", "it", "--data", root) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("shade-model (float, none): 4 images, 4 words, ")
    assert [line.split() for line in lines if line.split()[:1] == ["all"]] == [["all", "0.7500"]]


def test_predict_prints_what_the_result_says(
    model: verbs.Model, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, model, "predict", "it", root / "0.png", "--processes", "1") == 0
    assert capsys.readouterr().out == f"{root / '0.png'}  8x8  it is dark\n"
    assert command(monkeypatch, model, "predict", "it", root / "1.png", "--processes", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"image": str(root / "1.png"), "width": 8, "height": 8, "word": "light"}


def test_accuracy_on_held_out_images(model: verbs.Model, root: Path) -> None:
    kept, share = held_out(model.info, root)
    assert share == 0.5
    assert 0 < len(kept) < 4
    right = {"0.png": 1, "1.png": 1, "2.png": 0, "3.png": 1}
    expected = sum(right[entry.name] for entry in kept) / len(kept)
    assert accuracy(judge(model.info, root, 100), {})() == expected
    with pytest.raises(ValueError, match=r"0 of the 4 .* no valid words: exact needs more images"):
        held_out(model.info, root, 0)


def test_what_reads_cannot_be_tuned(
    model: verbs.Model, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["octavo.verbs.tune"].folder, "find", lambda name: model.folder)
    assert command(monkeypatch, model, "tune", "it", "--data", root, "--dry-run") == 1
    assert "reads words: it has no thresholds" in capsys.readouterr().err


def test_a_layout_is_recognised(model: verbs.Model, root: Path, tmp_path: Path) -> None:
    made: Any = verbs.data(root)
    assert made == "checked"
    with pytest.raises(ValueError, match=r"none of the layouts .*\n.*words\.txt and NAME\.png"):
        verbs.data(tmp_path / "tasks")
    with pytest.raises(ValueError, match="is no folder"):
        verbs.data(tmp_path / "nowhere")
