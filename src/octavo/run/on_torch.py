"""Run a module with torch on the CPU: the float reference, and models that are still in training.

Modules take normalised float32 pixels; what every exported file does inside, (x - offset) · scale, is done
here, so that a module is called like any other network. Arrays that are no pixels are given as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.run import input_error


class Module:
    """One module: uint8 (n, 3, h, w), or other arrays, -> its outputs as float32 arrays. It is switched to eval.

    torch has one number of threads per process: a call sets it where it differs.
    """

    __slots__ = ("_module", "_offset", "_scale", "_threads", "inputs", "outputs")

    def __init__(self, module: nn.Module, preprocessing: Mapping[str, Any], threads: int) -> None:
        if preprocessing.get("color", "RGB") != "RGB":
            raise ValueError(f"networks take RGB, not {preprocessing['color']!r} (model.json, preprocessing)")
        self._module, self._threads = module.eval(), threads
        self._offset, self._scale = float(preprocessing["offset"]), float(preprocessing["scale"])
        self.inputs: tuple[str, ...] = ("image",)
        self.outputs: tuple[str, ...] = ()  # known after the first call only, and without names

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        if len(arrays) == 1 and _no_batch(arrays[0]):
            path = Path(type(self._module).__name__)
            raise input_error(TypeError("input"), arrays[0], (None, 3, None, None), path)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            outputs = self._module(*(self._tensor(array) for array in arrays))
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        return tuple(output.float().numpy() for output in outputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """A copy: the array may be read-only."""
        if array.dtype != np.uint8:
            return torch.tensor(array)
        return torch.tensor(array, dtype=torch.float32).sub_(self._offset).mul_(self._scale)


def _no_batch(image: np.ndarray) -> bool:
    """Whether this is neither a batch of pixels nor what another network found."""
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.float32, np.int64):
        return True
    return (image.dtype == np.uint8) != (image.ndim == 4)


def open_module(module: nn.Module, preprocessing: Mapping[str, Any], threads: int = 1) -> Module:
    """A network of `module`; preprocessing: {"offset", "scale"} as in model.json."""
    return Module(module, preprocessing, threads)
