"""The model folder: what is read is checked, what is written is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import folder
from octavo.folder import FolderError

GOOD: dict[str, Any] = {
    "format": 1,
    "family": "mtcnn",
    "variant": "mtcnn-relu",
    "precision": "float",
    "networks": ["pnet", "rnet"],
    "preprocessing": {"color": "RGB", "offset": 128.0, "scale": 0.0078125},
    "settings": {"min_face": 20},
}


def make(path: Path, **changes: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.json").write_text(json.dumps(GOOD | changes))
    return path


def test_round_trip(tmp_path: Path) -> None:
    folder.write_info(tmp_path, GOOD | {"metrics": {"Web": np.float32(0.5), "nme": float("nan")}})
    info = folder.read_info(tmp_path)
    assert {k: info[k] for k in GOOD} == GOOD
    assert info["metrics"] == {"Web": 0.5, "nme": None}
    assert info["target"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"format": 2}, r"format 2.*up to 1.*pip install -U", id="format too new"),
        pytest.param({"format": 0}, "format 0", id="format before the first"),
        pytest.param({"format": "1"}, "'format' must be a whole number", id="format not a number"),
        pytest.param({"format": True}, "'format' must be a whole number", id="format a boolean"),
        pytest.param({"family": "os.path"}, "'family' must be", id="family is not a module name"),
        pytest.param({"family": "../x"}, "'family' must be", id="family leaves the folder"),
        pytest.param({"variant": "a/b"}, "'variant' must be", id="variant with a separator"),
        pytest.param({"precision": "int4"}, "float, half or int8", id="unknown precision"),
        pytest.param({"networks": ["../../etc/passwd"]}, "plain names", id="network name leaves the folder"),
        pytest.param({"networks": ["/tmp/x"]}, "plain names", id="absolute network name"),
        pytest.param({"networks": ["a\\b"]}, "plain names", id="Windows separator"),
        pytest.param({"networks": [".."]}, "plain names", id="parent folder"),
        pytest.param({"networks": ["pnet\n"]}, "plain names", id="line break"),
        pytest.param({"networks": []}, "plain names", id="no networks"),
        pytest.param({"networks": [1]}, "plain names", id="a number as a name"),
        pytest.param({"networks": "pnet"}, "'networks' must be a list", id="networks not a list"),
        pytest.param({"networks": ["pnet", "pnet"]}, "twice", id="a name twice"),
        pytest.param({"settings": []}, "'settings' must be an object", id="settings not an object"),
        pytest.param({"scheme": 3}, "'scheme' must be an object", id="scheme not an object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    make(tmp_path, **change)
    with pytest.raises(FolderError, match=says):
        folder.read_info(tmp_path)
    with pytest.raises(FolderError, match=says):
        folder.write_info(tmp_path, GOOD | change)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))
    with pytest.raises(FolderError, match=f"lacks {key}"):
        folder.read_info(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b'{"format": 1', "not JSON", id="cut off"),
        pytest.param(b"\xff\xfe\x00\x81", "not JSON", id="binary"),
        pytest.param(b"[1]", "JSON object", id="a list"),
        pytest.param(b"[" * 100_000, "not JSON", id="nested without end"),
    ],
)
def test_what_is_not_json_is_said_so(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(FolderError, match=says):
        folder.read_info(tmp_path)


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "EMBEDDED", tmp_path / "weights")
    make(tmp_path / "weights" / "mtcnn-relu")
    make(tmp_path / "weights" / "mtcnn-relu-float")
    mine = make(tmp_path / "runs" / "mine")
    (tmp_path / "empty").mkdir()
    assert folder.names() == ["mtcnn-relu", "mtcnn-relu-float"]
    assert folder.find("mtcnn-relu") == tmp_path / "weights" / "mtcnn-relu"
    assert folder.find(mine) == mine
    assert folder.find(str(mine / "model.json")) == mine
    with pytest.raises(FolderError, match="Did you mean mtcnn-relu"):
        folder.find("mtcn-relu")
    with pytest.raises(FolderError, match=r"Did you mean .*mine"):
        folder.find(tmp_path / "runs" / "mien")
    with pytest.raises(FolderError, match=r"without a model.json"):
        folder.find(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="is a file"):
        folder.find(tmp_path / "file")


def test_an_embedded_name_is_not_hidden_by_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "EMBEDDED", tmp_path / "weights")
    inside = make(tmp_path / "weights" / "net")
    make(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    assert folder.find("net") == inside
    assert folder.find("./net") == Path("net")


def test_files_and_size(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "pnet.onnx").write_bytes(b"x" * 10)
    with pytest.raises(FolderError, match=r"lacks rnet.onnx \(octavo export"):
        folder.size(tmp_path, ".onnx")
    (tmp_path / "rnet.onnx").write_bytes(b"x" * 5)
    (tmp_path / "other.onnx").write_bytes(b"x" * 99)  # not one of its networks
    assert folder.size(tmp_path, ".onnx") == 15
    assert list(folder.files(tmp_path, ".onnx")) == ["pnet", "rnet"]


def test_atomic_writes_and_makes_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    with folder.atomic(target) as temporary:
        assert temporary.name == target.name  # some formats are chosen by it, some store it
        assert temporary.parent.parent == target.parent  # one file system: a rename is all it takes
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["b.json"]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="full disk"),
        pytest.param(KeyboardInterrupt(), id="Ctrl-C"),
        pytest.param(RuntimeError("bug"), id="any exception"),
    ],
)
def test_atomic_leaves_the_old_file_on_failure(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "b.json"
    target.write_text("old")

    def write() -> None:
        with folder.atomic(target) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.json"]


def test_atomic_follows_a_link_and_writes_into_a_device(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with folder.atomic(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    folder.write_json("/dev/null", {"a": 1})
    assert Path("/dev/null").is_char_device()


def test_atomic_onto_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="is a folder"), folder.atomic(tmp_path):
        pass


def test_staged_moves_all_or_nothing(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    (out / "pnet.onnx").write_text("old")
    (out / "log.jsonl").write_text("kept")

    def write(fail: bool) -> None:
        with folder.staged(out) as stage:
            (stage / "pnet.onnx").write_text("new")
            if fail:
                raise OSError(errno.ENOSPC, "No space left on device")
            folder.write_info(stage, GOOD | {"precision": "int8"})

    with pytest.raises(OSError, match="No space"):
        write(fail=True)
    assert (out / "pnet.onnx").read_text() == "old"
    assert sorted(os.listdir(out)) == ["log.jsonl", "model.json", "pnet.onnx"]
    write(fail=False)
    assert (out / "pnet.onnx").read_text() == "new"
    assert folder.read_info(out)["precision"] == "int8"
    assert sorted(os.listdir(out)) == ["log.jsonl", "model.json", "pnet.onnx"]


def test_staged_removes_a_folder_it_made_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder.staged(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_embedded_models_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "EMBEDDED", tmp_path)
    with pytest.raises(FolderError, match="embedded"), folder.staged(make(tmp_path / "m")):
        pass


def test_provenance_is_a_part_of_model_json(tmp_path: Path) -> None:
    folder.write_info(tmp_path, GOOD | folder.provenance("octavo train x"))
    info = folder.read_info(tmp_path)
    assert info["command"] == "octavo train x"
    assert info["created"].endswith("+00:00")
    assert info["octavo"]


def test_did_you_mean() -> None:
    assert folder.did_you_mean("Predcit", ["predict", "evaluate"]) == " Did you mean predict?"
    assert folder.did_you_mean("onnx", ["openvino", "onnxruntime"]) == " Did you mean onnxruntime?"
    assert folder.did_you_mean("", ["predict"]) == ""
    assert folder.did_you_mean("zzz", ["predict", "evaluate"]) == ""


def test_history_tells_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, quantize, export, export again: the last command is the folder's own, those before are its history."""
    folder.write_info(tmp_path, GOOD)
    info = folder.read_info(tmp_path)
    for command in ("train x", "quantize x", "export y", "export y"):
        monkeypatch.setattr("sys.argv", ["octavo", *command.split()])
        info = folder.continued(info, data=command)
    folder.write_info(tmp_path, info)
    info = folder.read_info(tmp_path)
    assert [step["command"] for step in info["history"]] == ["octavo train x", "octavo quantize x"]
    assert (info["command"], info["data"]) == ("octavo export y", "export y")
    assert all(step["created"] for step in info["history"])
