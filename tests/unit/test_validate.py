"""octavo validate on the sample photographs: ratios counted again, bounds, and models that do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import cli, folder, verbs
from octavo.evaluate import faces
from octavo.verbs.validate import Check, ratios

FLOAT, INT8 = "mtcnn-relu-float", "mtcnn-relu"
QUICK: dict[str, Any] = {"backend": "onnxruntime", "timed_images": 2, "repeats": 2, "min_face": 40}


@pytest.fixture(scope="module")
def validation(annotated: Path) -> verbs.Validation:
    return verbs.validate(FLOAT, INT8, annotated, **QUICK)


def test_accuracy_is_that_of_evaluate(validation: verbs.Validation, annotated: Path) -> None:
    ap = [
        verbs.evaluate(model, annotated, backend="onnxruntime", min_face=40)["ap"] for model in (FLOAT, INT8)
    ]
    assert validation.accuracy == {event: pytest.approx(ap[1][event] / ap[0][event]) for event in ap[0]}
    assert "all" in validation.accuracy
    assert validation.errors["all"] == pytest.approx(1, abs=0.5)


def test_agreement_is_of_what_the_models_report(validation: verbs.Validation) -> None:
    """Not of the thousands of boxes that a low threshold lets through."""
    reported = [
        sum(len(verbs.load(model, "onnxruntime")(path, min_face=40)) for path in verbs.samples())
        for model in (FLOAT, INT8)
    ]
    assert [validation.agreement.reference, validation.agreement.other] == reported
    assert validation.agreement.share == pytest.approx(1, abs=0.2)
    assert validation.agreement.images == len(verbs.samples())


def test_speed_memory_and_size(validation: verbs.Validation) -> None:
    assert len(validation.rows) == 2
    means = [np.mean([pair[i].total.p50 for pair in validation.rows]) for i in (0, 1)]
    assert validation.milliseconds == pytest.approx(means)
    assert validation.speed_up == pytest.approx(means[0] / means[1])
    assert validation.memory is not None
    assert 0 < validation.memory[1] < validation.memory[0]
    assert validation.file_bytes[1] < 0.4 * validation.file_bytes[0]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        pytest.param({"a": 0.8, "all": 0.5}, {"a": 0.4, "all": 0.6}, {"a": 0.5, "all": 1.2}, id="ratios"),
        pytest.param({"all": 0.0}, {"all": 0.0}, {"all": None}, id="nothing to keep"),
    ],
)
def test_accuracy_kept(first: dict, second: dict, kept: dict) -> None:
    assert ratios(first, second) == pytest.approx(kept)


def test_the_benchmarks_subsets_are_kept_too() -> None:
    results = [{"ap": {"all": 1.0}, "easy": easy, "medium": 0.5, "hard": 0.5} for easy in (1.0, 0.9)]
    assert ratios(*map(faces.headline, results)) == pytest.approx(
        {"all": 1, "easy": 0.9, "medium": 1, "hard": 1}
    )


def test_landmarks_that_one_model_never_found_have_no_ratio() -> None:
    first = {"landmarks": {"a": {"nme": 0.02}, "b": {"nme": None}, "all": {"nme": 0.02}}}
    second = {"landmarks": {"a": {"nme": 0.03}, "b": {"nme": 0.1}, "all": {"nme": None}}}
    found = ratios(faces.errors(first), faces.errors(second))
    assert found == {"a": pytest.approx(1.5), "b": None, "all": None}
    assert ratios(faces.errors({}), faces.errors({})) == {}


# Bounds


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "passed"),
    [
        (95.0, 95, False, True),
        (94.99, 95, False, False),
        (50.0, 50, True, True),
        (50.01, 50, True, False),
        (None, 50, True, False),
        (None, 95, False, False),
    ],
)
def test_check(value: float | None, bound: float, at_most: bool, passed: bool) -> None:
    assert Check("it", value, bound, at_most).passed == passed


def test_only_accuracy_is_asked_by_default(validation: verbs.Validation) -> None:
    assert [check.name for check in validation.against(verbs.Bounds())] == ["accuracy kept (all), %"]
    assert validation.against(verbs.Bounds(accuracy=None)) == []


@pytest.mark.parametrize("good", [True, False], ids=["within reach", "out of reach"])
def test_every_bound_can_fail(validation: verbs.Validation, good: bool) -> None:
    least, most = (1, 1000) if good else (1000, 0.001)
    bounds = verbs.Bounds(*(least, least, most, most), speed_up=0.01 if good else 1000, error=most)
    checks = validation.against(bounds)
    assert len(checks) == 6
    assert [check.passed for check in checks] == [good] * 6


@pytest.mark.parametrize("bounds", [{"accuracy": -1}, {"speed_up": 0}, {"memory": float("nan")}])
def test_bounds_are_above_zero(bounds: dict) -> None:
    with pytest.raises(ValueError, match="bound above 0"):
        verbs.Bounds(**bounds)


# Wrong models, wrong data


def changed(model: str, to: Path, **info: Any) -> Path:
    """A copy of an embedded model whose model.json says something else."""
    shutil.copytree(folder.find(model), to)
    folder.write_info(to, folder.read_info(to) | info)
    return to


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        pytest.param(INT8, FLOAT, "give the float model first", id="the wrong way round"),
        pytest.param(FLOAT, FLOAT, "expected are a float and an INT8 model", id="float twice"),
        pytest.param(INT8, INT8, "expected are a float and an INT8 model", id="INT8 twice"),
        pytest.param(FLOAT, "mtcnn-rely", "Did you mean mtcnn-relu", id="no such model"),
    ],
)
def test_models_that_do_not_belong_together(first: str, second: str, says: str, annotated: Path) -> None:
    with pytest.raises(ValueError, match=says):
        verbs.validate(first, second, annotated, **QUICK)


def test_other_families_cannot_be_compared(annotated: Path, tmp_path: Path) -> None:
    other = changed(INT8, tmp_path / "other", family="slim")
    with pytest.raises(ValueError, match="within a family only"):
        verbs.validate(FLOAT, other, annotated, **QUICK)


def test_wrong_settings_are_said_before_anything_long_begins(annotated: Path) -> None:
    with pytest.raises(verbs.WrongSetting, match="stride"):
        verbs.validate(FLOAT, INT8, annotated, **QUICK, stride=2)


def test_photographs_without_faces_are_no_proof(annotated: Path, tmp_path: Path) -> None:
    """Said before the models have looked at all of them."""
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "WIDER_val").symlink_to(annotated / "WIDER_val")
    source = annotated / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    names = [line for line in source.read_text().splitlines() if "--" in line]
    empty = "".join(f"{name}\n0\n0 0 0 0 0 0 0 0 0 0\n" for name in names)
    (tmp_path / "wider_face_split" / source.name).write_text(empty)
    with pytest.raises(ValueError, match="has no valid face"):
        verbs.validate(FLOAT, INT8, tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param([], 0, "", id="good enough"),
        pytest.param(["--speed-up", "1000"], 1, "speed-up is", id="a bound that is not reached"),
        pytest.param(["--accuracy", "0"], 1, "bound above 0", id="a bound that is none"),
        pytest.param(["--split", "test"], 1, "split 'test' is not known", id="no such split"),
        pytest.param(["--data", "/nowhere"], 1, "/nowhere has no annotations", id="no data"),
        pytest.param(["--thresholds", "1,1"], 2, "3 numbers", id="wrong settings"),
        pytest.param(["--backend", "tflite"], 2, "no backend 'tflite'", id="no such backend"),
    ],
)
def test_on_the_command_line(
    words: list[str], code: int, says: str, annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--backend", "onnxruntime", "--timed-images", "1", "--repeats", "1", "--min-face", "20"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", FLOAT, INT8, "--data", str(annotated), *quick, *words, "--json"])
    printed = capsys.readouterr()
    assert stopped.value.code == code, printed.err
    assert says in " ".join(printed.err.split())
    if printed.out:
        told = json.loads(printed.out)
        assert told["passed"] == (code == 0)
        assert told["results"][0]["checks"][0]["name"] == "accuracy kept (all), %"


def test_models_that_find_nothing_do_not_pass(annotated: Path) -> None:
    """Where float finds nothing, nothing can be kept: no division by zero, and no success."""
    found = verbs.validate(FLOAT, INT8, annotated, **QUICK | {"timed_images": 1}, thresholds=(1.0, 1.0, 1.0))
    assert found.accuracy["all"] is None
    assert found.agreement.reference == found.agreement.other == 0
    assert [check.passed for check in found.against(verbs.Bounds(error=2))] == [False, False]
