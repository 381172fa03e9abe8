"""Run a network file with ONNX Runtime on the CPU.

One session per network, made once; a call is `session.run`. What is decided here was measured on MTCNN's
graphs (one Zen 5 core, ONNX Runtime 1.31):

- arena and memory pattern stay on. Without the arena, shapes that change from call to call take 1.5 to 2
  times as long and peak higher (page faults); with fixed shapes the difference is noise.
- I/O binding, new each time or with our own output arrays, gains nothing (.97 to .98).
- with threads > 1 a worker spins for 100 us after its work, less than ONNX Runtime's own milliseconds: each network has
  workers of its own, and those of P-Net would still spin while R-Net runs (a portrait on two threads: 27 ms, on one
  13; so 14). One pool for all networks takes 11, but then no other library in the process can open a model any more.
  Processes are the better use of cores: two look at twice the images. Old versions (1.23) ignore the option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo import folder as model_folder
from octavo.folder import FolderError
from octavo.run import arrays_error, file_error, input_error

SPIN = 100  # microseconds
QUIET = 4  # fatal only: errors are raised as exceptions and would be printed a second time


class Session:
    """One open network: uint8 (n, 3, h, w), or arrays in the order of `inputs`, -> arrays in that of `outputs`."""

    __slots__ = ("_names", "_session", "inputs", "outputs", "path")

    def __init__(self, session: Any, path: Path) -> None:
        self.path = path
        self.inputs: tuple[str, ...] = tuple(value.name for value in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in session.get_outputs())
        self._session, self._names = session, list(self.outputs)

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return tuple(self._session.run(self._names, dict(zip(self.inputs, arrays, strict=True))))
        except Exception as error:
            first = self._session.get_inputs()[0]
            if first.type == "tensor(uint8)" and len(arrays) == 1:
                raise input_error(error, arrays[0], first.shape, self.path) from error
            raise arrays_error(error, arrays, self.inputs, self.path) from error


def session_options(threads: int) -> Any:
    """`threads` work inside an operator, one walks the graph; nothing is printed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    if threads > 1:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN))
    return options


def open_network(path: Path, threads: int = 1) -> Session:
    """Load `path` (.onnx). FolderError (a ValueError) for a file that ONNX Runtime cannot load.

    NAME.onnxruntime.onnx (octavo.lower) must belong to the NAME.onnx beside it.
    """
    import onnxruntime

    path = Path(path)
    plain = model_folder.plain_of(path)

    try:
        options = session_options(threads)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise file_error(error, path, "ONNX Runtime") from error
    belongs_to = session.get_modelmeta().custom_metadata_map.get(model_folder.BELONGS_TO)
    if plain and belongs_to and not (plain.is_file() and model_folder.digest(plain) == belongs_to):
        raise FolderError(f"{path} was made from another {plain.name} than lies beside it. Export it again.")
    return Session(session, path)
