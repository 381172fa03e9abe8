"""Predictions in files: ours are read back, and judged as the model that made them was; so are those of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import cli, verbs


def test_predictions_in_files_are_judged_as_their_model_is(annotated: Path, tmp_path: Path) -> None:
    direct = verbs.evaluate(
        "slim", annotated, backend="onnxruntime", save_predictions=tmp_path / "wider", confidence=0.02
    )
    judged = verbs.judge_on(tmp_path / "wider", annotated)
    for figures in ("ap", "ap_by_size", "curves"):
        assert judged[figures] == direct[figures]
    assert (judged["images"], judged["faces"]) == (direct["images"], direct["faces"])
    assert "landmarks" not in judged  # the benchmark's files hold boxes and scores alone


def test_files_of_another_tool(annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The annotated boxes themselves, in whole pixels and by score, and one image left out."""
    first, *others = verbs.task_of_data(annotated).read(annotated, "val")
    for entry in others:
        rows = [
            f"{x1:.0f} {y1:.0f} {x2 - x1:.0f} {y2 - y1:.0f} 0.{99 - place}"
            for place, (x1, y1, x2, y2) in enumerate(entry.xyxy.tolist())
        ]
        file = tmp_path / "theirs" / f"{Path(entry.name).with_suffix('')}.txt"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join([Path(entry.name).name, str(len(rows)), *rows]))
    words = ["--predictions", str(tmp_path / "theirs"), "--data", str(annotated)]
    with (
        pytest.warns(UserWarning, match="1 of 3 images have no predictions"),
        pytest.raises(SystemExit, match="0"),
    ):
        cli.main(["evaluate", *words, "--json", "-"])
    ap = json.loads(capsys.readouterr().out)["ap"]
    assert ap == {entry.event: pytest.approx(1) for entry in others} | {first.event: 0, "all": ap["all"]}
    assert 0 < ap["all"] < 1


def test_where_predictions_cannot_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.evaluate import text

    monkeypatch.setitem(verbs.judge_on.__globals__, "task_of_data", lambda root: text)
    with pytest.raises(ValueError, match=r"predictions of .* can be written, but not read again"):
        verbs.judge_on(tmp_path, tmp_path)
