"""Networks as functions of arrays: one file per runtime, found by its name (on_NAME.py).

A network is called with ONE contiguous uint8 array (n, 3, h, w), RGB, raw pixels 0 to 255, and answers with
float32 arrays in a fixed order, which belong to the caller. Every exported file holds the normalisation, so
nothing else is done to the pixels here. A network that is given what other networks found, no pixels, takes their
arrays (float32, or int64 where it counts) in the order of its inputs. `open` makes the mapping
{network: function} that predict.py takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from octavo import folder as model_folder
from octavo.folder import FolderError

# What each reads, in auto's order.
RUNTIMES = {"openvino": ".onnx", "onnxruntime": ".onnx", "ncnn": ".ncnn.param", "torch": ".pt"}
WRITTEN_BY = {".onnx": "octavo export", ".ncnn.param": "octavo convert --to ncnn"}


class Network(Protocol):
    """An open network. `inputs` and `outputs` are the names in the file, in the order of the arrays."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]: ...


def available() -> list[str]:
    """The runtimes installed here, best first: those that `open` accepts. Nothing is imported for it."""
    return [name for name in RUNTIMES if find_spec(name)]


def choose(folder: str | PathLike[str], backend: str = "auto") -> str:
    """The runtime that `open` takes for this folder. ValueError says why a named one cannot be had."""
    info = model_folder.read_info(folder)
    networks = info["networks"]
    has = {
        suffix: all((Path(folder) / (n + suffix)).is_file() for n in networks) for suffix in RUNTIMES.values()
    }
    has[".pt"] |= has[".onnx"] and info["precision"] == "float"  # which are read back
    if backend == "auto":
        usable = [name for name in available() if has[RUNTIMES[name]]]
        # A form made for a runtime is the faster choice, and OpenVINO pays 1 to 4 ms for every new image size.
        usable.sort(key=lambda name: file_for(folder, networks[0], name).suffixes[:-1] != [f".{name}"])
        if usable:
            return usable[0]
        if not any(has.values()):
            raise FolderError(
                f"{folder} has neither {networks[0]}.onnx nor {networks[0]}.pt: its networks are missing."
            )
        backend = "onnxruntime" if has[".onnx"] else "torch"  # the reason follows below
    if backend not in RUNTIMES:
        near = model_folder.did_you_mean(backend, RUNTIMES)
        raise ValueError(f"no backend {backend!r}.{near} There are: auto, {', '.join(RUNTIMES)}.")
    if backend not in available():
        extra = {"torch": "octavo[train]", "onnxruntime": "octavo"}.get(backend, f"octavo[{backend}]")
        raise ValueError(f"backend {backend} is not installed here: pip install '{extra}'")
    if not has[RUNTIMES[backend]]:
        if backend == "torch":
            raise FolderError(
                f"{folder} has no .pt files, and torch reads no {info['precision']} weights back from .onnx files: "
                "use --backend auto"
            )
        suffix = RUNTIMES[backend]
        raise FolderError(
            f"{folder} has no {suffix} files for {backend}. Export it first: {WRITTEN_BY[suffix]} {folder}"
        )
    return backend


def open(
    folder: str | PathLike[str],
    backend: str = "auto",
    threads: int = 1,
    modules: Mapping[str, Any] | None = None,
) -> dict[str, Network]:
    """{network: function} of a model folder, in the order of its model.json.

    backend   a name, or auto: of the installed RUNTIMES whose files are there the one that export lowered
              the networks for, else the first
    threads   of each network's calls
    modules   for torch only: {network: module on normalised float32 pixels}; octavo.load builds them
    """
    backend = choose(folder, backend)
    if threads < 1:
        raise ValueError(f"threads is a number of threads from 1 up, not {threads}")
    info = model_folder.read_info(folder)
    if backend == "torch":
        if modules is None:
            raise ValueError("torch runs modules, not files: give modules={network: module}, or octavo.load.")
        open_module = import_module("octavo.run.on_torch").open_module
        return {name: open_module(modules[name], info["preprocessing"], threads) for name in info["networks"]}
    runtime = import_module(f"octavo.run.on_{backend}")
    return {name: runtime.open_network(file_for(folder, name, backend), threads) for name in info["networks"]}


def file_for(folder: str | PathLike[str], network: str, backend: str) -> Path:
    """The file a backend runs: NETWORK.BACKEND.onnx where export wrote a form made for it, else its plain one.

    What makes one runtime fast can make another slow (FACTS section 4, docs of octavo.lower).
    """
    own = Path(folder) / f"{network}.{backend}.onnx"
    return own if own.is_file() else Path(folder) / f"{network}{RUNTIMES.get(backend, '.onnx')}"


def input_error(error: Exception, image: Any, shape: Sequence[Any], path: Path) -> Exception:
    """What was wrong with the array given to the network of `path`, as a ValueError; else `error` itself.

    shape: of the network's input, numbers where fixed. Called after a failure only, so that the check costs
    nothing while all is well.
    """
    wanted = ", ".join(str(side) if isinstance(side, int) and side > 0 else "any" for side in shape)
    rule = f"{path.name} takes a contiguous uint8 array ({wanted}) of raw RGB pixels"
    if not isinstance(image, np.ndarray):
        return ValueError(f"{rule}, not {type(image).__name__}.")
    if image.dtype != np.uint8:
        return ValueError(f"{rule}, not {image.dtype}: do not normalise, the network does.")
    fits = image.ndim == len(shape) and all(
        not (isinstance(want, int) and want > 0) or side == want
        for side, want in zip(image.shape, shape, strict=True)
    )
    if not fits:
        hint = ""
        if image.ndim == 4 and image.shape[3] == 3:
            hint = " It looks like (n, h, w, 3): transpose(0, 3, 1, 2) first."
        elif image.ndim == 3:
            hint = " The first axis counts images: give image[None]."
        return ValueError(f"{rule}, not {image.shape}.{hint}")
    text = str(error).strip().splitlines()
    return ValueError(
        f"{path.name} failed on {image.shape}, perhaps too small for it: {text[-1] if text else error}"
    )


def arrays_error(error: Exception, arrays: Sequence[Any], inputs: Sequence[str], path: Path) -> Exception:
    """What was wrong with the arrays given to a network that takes no pixels, as a ValueError."""
    given = ", ".join(
        f"{getattr(a, 'dtype', type(a).__name__)} {getattr(a, 'shape', '')}".strip() for a in arrays
    )
    text = str(error).strip().splitlines()
    return ValueError(
        f"{path.name} takes {', '.join(inputs)}; it was given {given or 'nothing'}: {text[-1] if text else error}"
    )


def file_error(error: Exception, path: Path, runtime: str) -> Exception:
    """Why `runtime` could not load the network file, in one line, as a ValueError."""
    if not Path(path).is_file():
        return FolderError(f"{path} does not exist.")
    text = re.sub(r"Exception from \S+:\d+: ", "", " ".join(str(error).split()))  # where in OpenVINO's source
    return FolderError(f"{runtime} cannot load {path}: {text[:300]}")
