"""The rules of a target that exported networks break."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octavo import folder
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from octavo.lower.check import Finding


def check_targets() -> tuple[str, ...]:
    from octavo.lower.check import TARGETS

    return TARGETS


def check(model: PathLike, target: str | None = None) -> dict[str, list[Finding]]:
    """The rules of a target that networks break, by file: of a model, of a folder's .onnx files, or of one file.

    target: None stands for the one a model was quantized for. Where export wrote a form for the target's
    runtime, that is what is read, because that is what runs.
    """
    from octavo.lower.check import TARGETS
    from octavo.lower.check import check as find
    from octavo.run import file_for

    path = Path(model)
    if path.is_file() and path.suffix == ".onnx":
        files = [path]
    elif path.is_dir() and not (path / "model.json").is_file() and any(path.glob("*.onnx")):
        files = sorted(path.glob("*.onnx"))
    else:
        path = folder.find(model)
        target = target or folder.read_info(path)["target"]
        runtime = {"cpu": "onnxruntime", "openvino": "openvino"}.get(str(target), "")
        files = [file_for(path, name, runtime) for name in folder.files(path, ".onnx")]
    if target is None:
        raise ValueError(
            f"{model} does not say what it was quantized for. Give --target: {', '.join(TARGETS)}."
        )
    return {file.name: find(file, target) for file in files}
