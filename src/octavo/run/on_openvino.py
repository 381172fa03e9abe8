"""Run a network file with OpenVINO on the CPU.

Latency hint, f32 where a layer is not quantized (OpenVINO would take bf16 where the CPU has it, no honest
float baseline), threads as told. Networks have free sizes, and a shape OpenVINO has not met costs it 1 to 4 ms
of code generation, a compiled graph of fixed shape 35 to 60 ms. What is done about it, measured on MTCNN's
graphs (one Zen 5 core, OpenVINO 2026.4):

- Free height and width: the graph with free sizes runs everything at first; where shapes alternate, as in a
  pyramid, a fixed one is 15 to 28 % faster. A shape gets one when that saving, over the time the shape has
  already run, would have paid for its compilation: whatever comes next, at most twice the best is spent.
  `settle` does it at once for the shapes met. The least recently used of STATIC are kept.
- Its cache of generated code is bounded: the default one grew by 630 MB over 1,500 image sizes, 256 entries
  by 60 MB, at the same speed.
- Free batch only: fixed graphs for PIECES; a batch is cut into them, the last one filled up with zeros. 5 to
  9 % faster than the free graph at batches of 1 to 64 in any order, and no batch is new to it (1.2 to 3.4 ms
  where the run takes .5). Slower: powers of two, fixed (.98) or free (.7), padding to the next one (.9).

Outputs are copied out of the request (1 to 2 % of the time), so that they stay valid.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from octavo.run import arrays_error, file_error, input_error

STATIC = 32  # fixed graphs kept: two image sizes of up to 16 pyramid levels; some 2 MB each at 640x480
REMEMBERED = 1024  # shapes whose running time is remembered
SAVING = 0.2  # of the running time, by a fixed graph
CODE_CACHE = 256  # entries of OpenVINO's cache of generated code: some 8 a shape
PIECES = (16, 4)  # images, largest first

Shape = tuple[int, ...]


class Compiled:
    """One open network: uint8 (n, 3, h, w) -> float32 arrays in the order of `outputs`."""

    def __init__(self, model: Any, path: Path, threads: int) -> None:
        self.path = path
        self.inputs: tuple[str, ...] = tuple(value.any_name for value in model.inputs)
        self.outputs: tuple[str, ...] = tuple(value.any_name for value in model.outputs)
        self._model = model
        self._options = _options(threads)
        self._dims = [side.get_length() if side.is_static else -1 for side in model.input(0).partial_shape]
        self._free = [axis for axis, side in enumerate(self._dims) if side < 0]
        batched = all(value.partial_shape[0].is_dynamic for value in model.outputs)
        self._cut = self._free == [0] and batched
        self._static: OrderedDict[Shape, Any] = OrderedDict()
        self._spent: OrderedDict[Shape, float] = OrderedDict()  # seconds a shape has run without one
        started = perf_counter()
        if self._cut:
            self._compile((PIECES[0], *self._dims[1:]))
        else:
            self._any = core().compile_model(model, "CPU", self._options).create_infer_request()
        self._compile_time = perf_counter() - started  # a fixed graph takes as long as a free one

    def __call__(self, image: np.ndarray, /) -> tuple[np.ndarray, ...]:
        shape = getattr(image, "shape", None)
        if shape is None or image.dtype != np.uint8:  # it would convert without a word
            raise input_error(TypeError("input"), image, self._dims, self.path)
        try:
            if self._cut:
                return self._in_pieces(image)
            if not self._free or (request := self._fixed(shape)) is None:
                return self._timed(image, shape)
            return _infer(request, image)
        except ValueError:
            raise
        except Exception as error:
            raise input_error(error, image, self._dims, self.path) from error

    def settle(self) -> None:
        """Compile fixed graphs for the shapes met so far, latest first, instead of when they have paid."""
        if len(self._free) and not self._cut:
            for shape in list(self._spent)[-STATIC:]:
                self._compile(shape)

    def _fixed(self, shape: Shape) -> Any:
        """The request of a fixed graph for this shape, made where it is due; None where it is not."""
        if shape in self._static:
            self._static.move_to_end(shape)
            return self._static[shape]
        spent = self._spent.get(shape)
        if spent is None:
            self._check(shape)
        elif spent * SAVING > self._compile_time:
            return self._compile(shape)
        return None

    def _check(self, shape: Shape) -> None:
        """Refuse a shape the network has no output for: the graph with free sizes would answer with its
        previous output."""
        model = self._model.clone()
        model.reshape(list(shape))
        if not all(all(value.shape) for value in model.outputs):
            raise ValueError(f"{self.path.name} is given {shape}, too small for any output.")

    def _compile(self, shape: Shape) -> Any:
        model = self._model.clone()
        model.reshape(list(shape))
        request = core().compile_model(model, "CPU", self._options).create_infer_request()
        self._static[shape] = request
        self._spent.pop(shape, None)
        if len(self._static) > STATIC:
            self._static.popitem(last=False)
        return request

    def _timed(self, image: np.ndarray, shape: Shape) -> tuple[np.ndarray, ...]:
        started = perf_counter()
        arrays = _infer(self._any, image)
        if self._free:
            self._spent[shape] = self._spent.get(shape, 0.0) + perf_counter() - started
            self._spent.move_to_end(shape)
            if len(self._spent) > REMEMBERED:
                self._spent.popitem(last=False)
        return arrays

    def _in_pieces(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """The batch cut into PIECES, each as often as it fits, what is left in one more of the smallest."""
        count = len(batch)
        arrays: list[np.ndarray] = []
        start = 0
        while start < count or not arrays:
            size = next((size for size in PIECES if count - start >= size), PIECES[-1])
            piece = batch[start : start + size]
            if len(piece) < size:
                piece = np.zeros((size, *batch.shape[1:]), np.uint8)
                piece[: count - start] = batch[start:]
            views = self._piece(size).infer(piece, share_inputs=True, share_outputs=True).values()
            arrays = arrays or [np.empty((count, *view.shape[1:]), view.dtype) for view in views]
            for array, view in zip(arrays, views, strict=True):
                array[start : start + size] = view[: count - start]
            start += size
        return tuple(arrays)

    def _piece(self, size: int) -> Any:
        shape = (size, *self._dims[1:])
        return self._static.get(shape) or self._compile(shape)


class OnArrays:
    """One open network that is given no pixels: arrays in the order of `inputs` -> arrays in that of `outputs`.

    One graph with free sizes: what such a network is given (places of a line, characters written) varies from call to
    call, and there is less to compute than a fixed graph would take to be made.
    """

    def __init__(self, model: Any, path: Path, threads: int) -> None:
        self.path = path
        self.inputs: tuple[str, ...] = tuple(value.any_name for value in model.inputs)
        self.outputs: tuple[str, ...] = tuple(value.any_name for value in model.outputs)
        self._types = [np.dtype(value.element_type.to_dtype()) for value in model.inputs]
        self._request = core().compile_model(model, "CPU", _options(threads)).create_infer_request()

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        given = [getattr(array, "dtype", None) for array in arrays]
        if given != self._types:  # it would convert without a word
            raise arrays_error(TypeError("other types"), arrays, self.inputs, self.path)
        try:
            return _infer(self._request, list(arrays))
        except Exception as error:
            raise arrays_error(error, arrays, self.inputs, self.path) from error


def _options(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "CPU_RUNTIME_CACHE_CAPACITY": str(CODE_CACHE),
    }


def _infer(request: Any, image: np.ndarray | list[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(request.infer(image, share_inputs=True, share_outputs=False).values())


@cache
def core() -> Any:
    import openvino

    return openvino.Core()


def open_network(path: Path, threads: int = 1) -> Compiled | OnArrays:
    """Load `path` (.onnx). FolderError (a ValueError) for a file that OpenVINO cannot load."""
    try:
        model = core().read_model(str(path))
        pixels = model.input(0).element_type.get_type_name() == "u8"
        return (Compiled if pixels else OnArrays)(model, Path(path), threads)
    except Exception as error:
        raise file_error(error, path, "OpenVINO") from error
