"""Tables in the texts are those of results/, in this repository and in made ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from octavo.evaluate.record import append
from octavo.folder import write_info

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "tables.py"
EVALUATOR = ("predictions", "easy", "medium", "hard", "largest error", "seconds", "seconds from files")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    return module


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )


def measured(root: Path, model: str, hard: float, machine: str = "a machine") -> None:
    """A row of results/wider_evaluator.csv."""
    values = dict(zip(EVALUATOR, (5, 1.0, 0.75, hard, "0", 0.5, 0.6), strict=True))
    append(root / "results/wider_evaluator.csv", values, model=model, data="gt", machine=machine, command="x")


def test_this_repository_shows_its_results() -> None:
    done = run("--check")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_written_then_in_order_then_stale(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    card = tmp_path / "src/octavo/weights/tiny/README.md"
    card.parent.mkdir(parents=True)
    measured(tmp_path, "old", 0.25)
    measured(tmp_path, "boxes", 0.125)
    measured(tmp_path, "old", 0.375, "another")
    readme.write_text("above\n<!-- table:evaluator -->\nstale\n<!-- end -->\nbelow\n")
    card.write_text("<!-- table:evaluator model=boxes -->\n<!-- end -->\n")

    assert run("--check", "--root", str(tmp_path)).returncode == 1
    assert "stale" in readme.read_text()
    assert run("--root", str(tmp_path)).returncode == 0
    lines = readme.read_text().splitlines()
    assert lines[0] == "above"
    assert lines[-1] == "below"
    assert lines[2].split(" | ")[0] == "| model"
    assert [line.split(" | ")[4] for line in lines[4:6]] == ["0.3750", "0.1250"]  # the last row of each model
    assert lines[7].startswith("*results/wider_evaluator.csv: another; a machine; ")
    assert "| boxes |" in card.read_text()
    assert "| old |" not in card.read_text()
    assert run("--check", "--root", str(tmp_path)).returncode == 0

    measured(tmp_path, "boxes", 0.5)
    done = run("--check", "--root", str(tmp_path))
    assert done.returncode == 1
    assert str(readme) in done.stdout
    assert "run python benchmarks/tables.py" in done.stderr


def test_nothing_measured_yet(tables: ModuleType, tmp_path: Path) -> None:
    text = "<!-- table:evaluator -->\n<!-- end -->\n"
    assert "Not measured yet: results/wider_evaluator.csv" in tables.fill(text, tmp_path)
    measured(tmp_path, "boxes", 0.5)
    assert "| boxes |" in tables.fill(text, tmp_path)
    assert "Not measured" in tables.fill(text.replace("evaluator", "evaluator model=other"), tmp_path)


def test_model_card(tables: ModuleType, tmp_path: Path) -> None:
    text = "<!-- table:model name=tiny -->\n<!-- end -->\n"
    assert "No tiny/model.json yet" in tables.fill(text, tmp_path)
    model = tmp_path / "src/octavo/weights/tiny"
    model.mkdir(parents=True)
    (model / "pnet.onnx").write_bytes(bytes(12_000))
    info = {
        "format": 1,
        "family": "mtcnn",
        "variant": "mtcnn-relu",
        "precision": "int8",
        "target": "cpu",
        "networks": ["pnet"],
        "preprocessing": {},
        "settings": {"min_face": 20, "thresholds": [0.5, 0.625]},
        "calibration": {"method": "max", "images": 64},
        "data": "faces",
    }
    write_info(model, info)
    assert tables.fill(text, tmp_path).splitlines()[1:-1] == [
        "| | |",
        "| --- | --- |",
        "| variant | mtcnn-relu |",
        "| precision | int8, target cpu |",
        "| files | pnet.onnx 12 kB |",
        "| settings | min_face 20, thresholds 0.5 0.625 |",
        "| data | faces |",
        "| calibration | max, 64 images |",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("<!-- table:nothing -->\n<!-- end -->", "no table 'nothing'", id="unknown table"),
        pytest.param("<!-- table:speed -->\nno end", "has no <!-- end -->", id="not closed"),
        pytest.param(
            "<!-- table:speed -->\n<!-- table:speed -->\n<!-- end -->", "has no <!-- end -->", id="nested"
        ),
        pytest.param("<!-- table:speed fast -->\n<!-- end -->", "is no mark of a table", id="broken filter"),
        pytest.param(
            "<!-- table:evaluator colour=red -->\n<!-- end -->", "has no column colour", id="unknown column"
        ),
    ],
)
def test_broken_marks(tables: ModuleType, tmp_path: Path, text: str, message: str) -> None:
    measured(tmp_path, "boxes", 0.5)
    with pytest.raises(ValueError, match=message):
        tables.fill(text, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["accuracy", "sizes", "settings", "calibrators", "weights", "levels", "speed", "memory", "evaluator"],
)
def test_tables_of_the_results(tables: ModuleType, name: str) -> None:
    file = ROOT / "results" / tables.TABLES[name].file
    if not file.is_file():
        pytest.skip(f"{file} is not there: not measured yet")
    rows = tables.table(name, {}, ROOT).splitlines()
    assert rows[0].count("|") == rows[2].count("|") == len(tables.TABLES[name].columns) + 1
