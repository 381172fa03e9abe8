"""Networks as files that a runtime reads, and the proof that they compute the same.

export(network, "pnet.onnx", example, outputs=["face", "box"], preprocessing={"offset": 128, "scale": 1 / 128})
parity(network, "pnet.onnx", batches)
"""

from octavo.export.parity import FLOAT_BETWEEN, VERDICTS, OutputParity, Parity, parity
from octavo.export.to_onnx import OPSET, TARGETS, Then, align_file, export

__all__ = [
    "FLOAT_BETWEEN",
    "OPSET",
    "TARGETS",
    "VERDICTS",
    "OutputParity",
    "Parity",
    "Then",
    "align_file",
    "export",
    "parity",
]
