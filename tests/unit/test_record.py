"""Rows of measurements: what is written is what is read, or nothing is written."""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from octavo.evaluate.record import ORIGIN, RecordError, append, read, table

METRICS = {"easy": 0.123456789, "faces": 12, "note": 'a "quoted", b|c', "none": None, "n": np.float32(0.5)}


def add(path: Path, easy: float) -> None:
    append(
        path, {"easy": easy}, model=f"m{easy:g}", data="faces", split="val", machine="here", command="test"
    )


def test_row(tmp_path: Path) -> None:
    path = tmp_path / "deep/wider.csv"
    row = append(path, METRICS, model="tiny", data="faces", split="val", command="octavo evaluate tiny")
    assert list(row) == [*ORIGIN, *METRICS]
    assert read(path) == [row]
    assert (row["easy"], row["faces"], row["none"], row["n"]) == ("0.123457", "12", "", "0.5")
    assert (row["command"], row["model"]) == ("octavo evaluate tiny", "tiny")
    assert row["machine"]
    assert row["date"].startswith("20")
    with path.open(newline="") as file:  # plain CSV for everyone else
        assert list(csv.reader(file)) == [list(row), list(row.values())]


def test_rows_are_added_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    add(path, 0.25)
    before = path.read_bytes()
    add(path, 0.5)
    assert path.read_bytes().startswith(before)
    assert [row["easy"] for row in read(path)] == ["0.25", "0.5"]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    add(path, 0.25)
    before = path.read_bytes()
    with pytest.raises(
        RecordError, match=r"split, easy, but this measurement has .*split, hard: .* another file"
    ):
        append(path, {"hard": 1.0}, model="m", data="faces")
    with pytest.raises(RecordError, match=r"names of their own, found \['model'\]"):
        append(path, {"model": 1.0}, model="m", data="faces")
    with pytest.raises(RecordError, match="names of their own, found none"):
        append(path, {}, model="m", data="faces")
    path.write_bytes(before[:-1])
    with pytest.raises(RecordError, match="the last line has no end"):
        add(path, 0.5)
    assert path.read_bytes() == before[:-1]


def test_many_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(add, [path] * 12, range(12)))
    assert sorted(int(row["easy"]) for row in read(path)) == list(range(12))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.csv"
    add(path, 0.25)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("octavo.evaluate.record.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add(path, 0.5)
    assert path.read_bytes() == before


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    for model, easy, note in (("b", 0.5, "x"), ("a|c", 0.75, ""), ("b", 0.98765, "y")):
        append(path, {"easy": easy, "faces": 3, "note": note}, model=model, data="faces", split="val")
    assert table(path, columns=["model", "easy", "faces", "note"]) == (
        "| model | easy | faces | note |\n"
        "| --- | ---: | ---: | --- |\n"
        "| b | 0.988 | 3 | y |\n"
        "| a\\|c | 0.750 | 3 |  |\n"
    )
    assert table(path).startswith("| model | data | split | easy | faces | note |\n")
    assert len(table(path, key=["date", "model", "easy"]).splitlines()) == 2 + 3
    assert table(path, ["model", "easy"], where={"note": "y"}).splitlines()[2:] == ["| b | 0.988 |"]
    assert table(path, ["model", "easy"], where={"note": "x"}).splitlines()[2:] == ["| b | 0.500 |"]
    assert len(table(path, where={"note": "nowhere"}).splitlines()) == 2
    with pytest.raises(RecordError, match="has no column backend"):
        table(path, where={"backend": "torch"})
    with pytest.raises(RecordError, match="has no column hard; it has date, commit"):
        table(path, columns=["hard"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no measurement has been recorded there", id="no file"),
        pytest.param("", "its header must start with date,commit", id="empty"),
        pytest.param("a,b\n1,2\n", "its header must start with date,commit", id="another file"),
        pytest.param(",".join(ORIGIN) + "\n1,2\n", "row 2: 2 cells, but the header has 7", id="short row"),
    ],
)
def test_files_that_are_not_measurements(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "r.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordError, match=message):
        table(path)


def test_medians_over_repetitions(tmp_path: Path) -> None:
    """Three seeds of one method and one of another; a seed measured again counts once, with its last value."""
    path = tmp_path / "r.csv"
    for method, seed, ap in (("a", 0, 0.9), ("a", 1, 0.1), ("b", 0, 0.75), ("a", 2, 0.5), ("a", 1, 0.2)):
        append(
            path, {"method": method, "seed": seed, "ap": ap}, model="m", data="d", split="s", machine="here"
        )
    made = table(path, ("method", "seeds", "ap"), ("method",), over="seed").splitlines()[2:]
    assert made == ["| a | 3 | 0.500 |", "| b | 1 | 0.750 |"]
    with pytest.raises(RecordError, match="no column seeds"):
        table(path, ("method", "seeds"), ("method",))
