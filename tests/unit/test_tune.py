"""octavo tune on the sample photographs: what it measures, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo import cli, folder, verbs
from octavo.models.mtcnn.predict import MEASURING
from octavo.verbs import tunable

SMALL: dict[str, Any] = {"share": 1.0, "steps": 2, "span": 0.1, "backend": "onnxruntime"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded INT8 model as a folder of one's own, with thresholds that can be done better."""
    path = tmp_path / "mine"
    shutil.copytree(folder.find("mtcnn-relu"), path)
    info = folder.read_info(path)
    folder.write_info(path, info | {"settings": info["settings"] | {"thresholds": (0.8, 0.7, 0.2)}})
    return path


def test_scores_are_those_of_evaluate(model: Path, annotated: Path) -> None:
    tuned = verbs.tune(model, annotated, dry_run=True, nms_span=0, **SMALL)
    low = (*folder.read_info(model)["settings"]["thresholds"][:2], 0.02)
    measured = verbs.evaluate(model, annotated, split="train", thresholds=low, backend="onnxruntime")
    assert tuned.before.scores.ap == pytest.approx(measured["ap"]["all"], abs=1e-12)
    assert tuned.record["faces"] == measured["faces"]


def test_accuracy_is_measured_by_what_the_family_says_but_for_what_is_given(annotated: Path) -> None:
    options: dict[str, Any] = {"split": "train", "backend": "onnxruntime"}
    usual = verbs.evaluate("mtcnn-relu", annotated, **options)["settings"]
    changed = verbs.evaluate("mtcnn-relu", annotated, factor=0.6, thresholds=None, **options)["settings"]
    assert {name: usual[name] for name in MEASURING} == MEASURING
    assert changed == usual | {"factor": 0.6}


def test_what_was_chosen_is_written_and_nothing_else(model: Path, annotated: Path) -> None:
    before = folder.read_info(model)
    tuned = verbs.tune(model, annotated, by="f1", min_face=24, **SMALL | {"span": 0.7})
    after = folder.read_info(model)
    assert tuned.after.scores.f1 > tuned.before.scores.f1
    assert after["settings"] == json.loads(folder.to_json(tuned.after.settings)) | {"min_face": 20}
    assert after["settings"]["thresholds"] != before["settings"]["thresholds"]
    assert after["tuned"]["searched with"] == {"min_face": 24}
    assert after["tuned"]["images"] == len(verbs.samples())
    assert after["tuned"]["after"]["f1"] == pytest.approx(tuned.after.scores.f1)
    rest = {"settings", "tuned"}
    assert {k: v for k, v in after.items() if k not in rest} == {
        k: v for k, v in before.items() if k not in rest
    }


def test_a_family_that_cannot_replay_finds_the_same(
    model: Path, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"by": "f1", "dry_run": True, "nms_span": 0, "min_face": 40} | SMALL
    replayed = verbs.tune(model, annotated, **options)
    monkeypatch.setattr(tunable, "replays", lambda family: False)
    rerun = verbs.tune(model, annotated, **options)
    assert [axis.label for axis in rerun.values] == [
        "thresholds 1",
        "thresholds 2",
        "thresholds 3",
        *(f"nms {i}" for i in range(1, 5)),
    ]
    assert [p.scores for p in rerun.search.grid] == [p.scores for p in replayed.search.grid]
    assert rerun.after.settings == replayed.after.settings
    assert {k: v for k, v in rerun.after.seen.items() if k != "pnet"} == replayed.after.seen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"by": "map"}, "no yardstick 'map'", id="unknown yardstick"),
        pytest.param({"span": 5}, "span is a number from 0 to 1", id="span"),
        pytest.param({"share": 1e-9}, "0 of the 3 training images", id="nothing held out"),
        pytest.param({"chart": "tune.jpg"}, "tune.jpg: charts are", id="chart"),
        pytest.param({"thresholds": (0.5, 0.5)}, "3 numbers", id="wrong settings"),
        pytest.param({"by": "recall", "precision": 1.0, "min_face": 5}, "reaches the wanted precision", id="precision"),
    ],
)  # fmt: skip
def test_what_is_refused(model: Path, annotated: Path, options: dict, says: str) -> None:
    before = (model / "model.json").read_bytes()
    with pytest.raises(ValueError, match=says):
        verbs.tune(model, annotated, **SMALL | {"nms_span": 0} | options)
    assert (model / "model.json").read_bytes() == before


def test_embedded_models_stay_as_they_are(annotated: Path) -> None:
    with pytest.raises(folder.FolderError, match=r"embedded model.*--dry-run"):
        verbs.tune("mtcnn-relu", annotated, **SMALL)


def test_there_is_no_way_to_tune_on_val(annotated: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tune", "mtcnn-relu", "--data", str(annotated), "--split", "val", "--dry-run"])
    assert stopped.value.code == 2
    with pytest.raises(ValueError, match="split"):  # nor from Python
        verbs.tune("mtcnn-relu", annotated, dry_run=True, split="val")


def test_on_the_command_line(
    model: Path, annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = ["--by", "f1", "--share", "1", "--steps", "3", "--nms-span", "0", "--dry-run", "--min-face", "40"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            [
                "tune",
                str(model),
                "--data",
                str(annotated),
                *words,
                "--chart",
                str(tmp_path / "tune.png"),
                "--json",
            ]
        )
    assert not stopped.value.code
    told = json.loads(capsys.readouterr().out)
    assert len(told["grid"]) == 27
    assert told["written"] is None
    assert (tmp_path / "tune.png").stat().st_size > 5000
