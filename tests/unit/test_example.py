"""The example for users' own networks: it runs, and integers cost it next to nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_your_own.py"


def test_quantize_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import torch

    spec = importlib.util.spec_from_file_location("quantize_your_own", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    threads = torch.get_num_threads()
    try:
        accuracy = example.main(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert accuracy["float"] > 0.9
    assert abs(accuracy["int8"] - accuracy["float"]) < 0.03
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2
    said = capsys.readouterr().out
    assert "bit for bit on 512 images" in said
    assert "error" not in said
