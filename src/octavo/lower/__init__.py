"""Rewrites of exported graphs that make integers fast in a runtime: the same sums, in another shape.

What makes one runtime fast makes another slow, so each has its own list, chosen by measurement
(benchmarks/lowering.py -> results/lowering.csv). An exported NAME.onnx is right everywhere; beside it stands
NAME.RUNTIME.onnx where rewrites pay, which octavo.run prefers.

    model, done = lower("pnet.onnx", "onnxruntime", multiple=2)
    write("pnet.onnx", "onnxruntime", multiple=2)          pnet.onnxruntime.onnx beside it, see files.py

All are exact but those for OpenVINO, which leave roundings out. They find their pattern by operators and shapes, in
graphs as octavo.export writes them for target cpu.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

# In this order. What each brings, times as fast as without it: MTCNN's networks, one thread, AVX512-VNNI
# (results/lowering.csv; other stems in phases.py and columns.py):
#
#               P-Net   R-Net   O-Net
#   prelu        1.2     1.3     5.5     variant mtcnn with the published slopes
#   pad          1.10    1.10     -      the following: variant mtcnn-relu
#   phases       1.94     -       -
#   columns       -      1.37    1.43
#   heads        1.19     -       -
#   pools         -       -       -       VietOCR's VGG19: 1.05
#
# OpenVINO keeps the plain graph: its kernels take 3 channels, and it carries out every Transpose (.4 to .9). But it
# fuses a layer with its SiLU where no grid stands between them: YOLOv5-n 1.3 (results/yolov5_speed.csv); and it
# rounds the inputs of stored integers by itself: whole lines of the readers in INT8 .8 to 1.5 times as fast as float
# before, 1.4 to 2.7 since (results/vietocr_speed.csv).
REWRITES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("prelu", "pad", "phases", "columns", "pools", "heads"),
    "openvino": ("silu", "found"),
}


def lower(
    model: Any, runtime: str = "onnxruntime", multiple: int = 1, rewrites: Sequence[str] | None = None
) -> tuple[Any, list[str]]:
    """The model (onnx.ModelProto or a path) in the form that is fastest in a runtime, and what was done to it.

    multiple: what free heights and widths are multiples of; some rewrites need even ones. rewrites: instead of
    the runtime's own. The list is empty, and the model as it was, where nothing fits. Needs the onnx package;
    ValueError says so.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("lowering needs the onnx package: pip install 'octavo[train]'") from None
    from octavo.lower.graph import Graph

    if runtime not in REWRITES:
        raise ValueError(f"no rewrites are known for {runtime!r}; there are: {', '.join(REWRITES)}")
    if isinstance(model, (str, PathLike)):
        model = onnx.load(str(model))
    graph, done = Graph(model), []
    for name in REWRITES[runtime] if rewrites is None else rewrites:
        if said := import_module(f"octavo.lower.{name}").apply(graph, multiple):
            done.append(said)
    if not done:
        return model, []
    graph.derive_scales()
    lowered = graph.finish()
    onnx.checker.check_model(lowered)
    return lowered, done


def write(path: str | PathLike[str], runtime: str = "onnxruntime", multiple: int = 1) -> list[str]:
    """Write NAME.RUNTIME.onnx beside NAME.onnx where something can be done; what was done."""
    from octavo.lower import files

    lowered, done = lower(path, runtime, multiple)
    if done:
        files.write(lowered, Path(path), runtime)
    return done
