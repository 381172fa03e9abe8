"""NAME.RUNTIME.onnx beside NAME.onnx: weights that are the same are stored once.

Most weights stay as they were, others follow from them (graph.py, derived constants). Where the bytes of a
constant occur in NAME.onnx, the lowered file refers to them as ONNX external data: location "NAME.onnx" (a file
in the same folder), offset and length. Only where it is longer than the reference, and where its place in the
file is a multiple of its items' size, as octavo.export sees to: runtimes read it where it lies.

A lowered file holds in its metadata the SHA-256 of the NAME.onnx it belongs to; octavo.run checks it, so that
one without the other is an error and not a wrong answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.folder import BELONGS_TO, atomic, digest

SHORTEST = 96  # bytes; a reference takes about 60


def write(model: Any, plain: Path, runtime: str) -> Path:
    """Write the lowered `model` of the file `plain`; the path."""
    path = plain.with_suffix(f".{runtime}.onnx")
    stored = plain.read_bytes()
    refer(model, plain.name, stored)
    del model.metadata_props[:]
    model.metadata_props.add(key=BELONGS_TO, value=digest(plain))
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return path


def refer(model: Any, name: str, stored: bytes) -> None:
    """Replace constants whose bytes are in `stored`, the file called `name`, by references."""
    from onnx import TensorProto, helper

    for constant in model.graph.initializer:
        data = constant.raw_data
        if len(data) < SHORTEST:
            continue
        size = helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
        offset = stored.find(data)
        while offset % size and offset > 0:
            offset = stored.find(data, offset + 1)
        if offset < 0:
            continue
        constant.ClearField("raw_data")
        constant.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", offset), ("length", len(data))):
            constant.external_data.add(key=key, value=str(value))
