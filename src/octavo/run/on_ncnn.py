"""Run a network with ncnn on the CPU: NAME.ncnn.param and NAME.ncnn.bin, written by octavo.export.to_ncnn.

ncnn knows no batches, so images go through one by one, and its arrays are float32: the pixels are converted
here. float16 and bfloat16, which ncnn would take where the CPU has them, are off: a float network is an honest
baseline, and what the integers of a quantized one are added to is what was trained. An unknown CPU feature or a
broken file ends ncnn with a message on stderr and a code, which becomes an error here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.folder import FolderError
from octavo.run import input_error


class Net:
    """One open network: uint8 (n, 3, h, w) -> float32 arrays in the order of `outputs`."""

    def __init__(self, net: Any, path: Path) -> None:
        self.path = path
        self.weights = path.with_suffix(".bin")
        self.inputs: tuple[str, ...] = tuple(net.input_names())
        self.outputs: tuple[str, ...] = tuple(net.output_names())
        self._net = net

    def __call__(self, image: np.ndarray, /) -> tuple[np.ndarray, ...]:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 4:
            raise input_error(TypeError("input"), image, (None, 3, None, None), self.path)
        answers = [self._one(pixels) for pixels in image]
        return tuple(np.stack(arrays) for arrays in zip(*answers, strict=True))

    def _one(self, pixels: np.ndarray) -> list[np.ndarray]:
        import ncnn

        converted = pixels.astype(np.float32)
        extractor = self._net.create_extractor()
        extractor.input(self.inputs[0], ncnn.Mat(converted).clone())  # a Mat does not keep its array alive
        arrays = []
        for name in self.outputs:
            code, mat = extractor.extract(name)
            if code:
                raise ValueError(f"{self.path.name} failed on {pixels.shape}, perhaps too small for it")
            arrays.append(np.array(mat))
        return arrays


def open_network(path: Path, threads: int = 1) -> Net:
    """Load NAME.ncnn.param and the .bin beside it. FolderError (a ValueError) for files that ncnn cannot load."""
    import ncnn

    path = Path(path)
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise FolderError(f"{file} does not exist.")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(net.opt, f"use_{half}"):
            setattr(net.opt, f"use_{half}", False)
    if net.load_param(str(path)) or net.load_model(str(weights)):
        raise FolderError(
            f"ncnn cannot load {path} with {weights.name}: was one of them changed? Convert again."
        )
    return Net(net, path)
