"""Published weights are pickles, and a pickle is a program. Here is what reads them and runs none.

    read_state("slim_Final.pth")                a plain state dict: names -> tensors
    read_objects("yolov5n.pt", ("models.*",))   a whole pickled network, as a tree of `Object`s that only hold state
    tensors(tree)                               its parameters and buffers, by the names that its state dict would have

A torch file is a zip: data.pkl, and data/0, data/1, ... with the bytes of the storages. Of the globals that
data.pkl names, a few are known here and rebuilt by our own functions (dictionaries, sets, tensors); those whose
module fits a pattern of the caller become an `Object`, whatever they were; any other is refused by name, before
anything was done with it. An `Object` has no code: "calling" it keeps the arguments, giving it a state keeps the state.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# The storages of torch files and the type of their elements.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What torch's modules are made of: their classes are not wanted, only what they hold.
TORCH_MODULES = "torch.nn.modules.*"


class UnsafeWeights(ValueError):
    """The file asks for something that weights don't need."""


class Object:
    """Stands in for an instance of a class that we don't have: its class's name and its state, no behaviour."""

    kind = ""  # of a subclass: "module.Name"
    state: dict[str, Any]

    def __new__(cls, *args: Any) -> Object:
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any) -> None:
        """Whatever it was made from is not looked at."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state


def read_state(path: Path, expected: str) -> dict[str, Tensor]:
    """A plain state dict, by torch's own restricted unpickler. `expected`: what the caller would have liked, in words.

    ValueError for a missing file and for anything else than names and tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: {expected}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has many ways to refuse
        raise ValueError(
            f"{path} is not a plain PyTorch state dict, and nothing else is opened: {error}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors)")
    return state


def check_fit(given: Mapping[str, Tensor], module: nn.Module, path: Path, variant: str) -> None:
    """ValueError unless every tensor of the module is given, with its shape, and no other."""
    expected = module.state_dict()
    wrong = sorted(set(expected) ^ set(given)) or [k for k in expected if expected[k].shape != given[k].shape]
    if wrong:
        raise ValueError(f"{path} does not fit {variant}: missing, unknown or misshaped {', '.join(wrong)}")


def read_objects(path: Path, allowed: Sequence[str]) -> Any:
    """What a torch file holds, with `Object`s for the classes of modules that fit a pattern of `allowed`.

    ValueError for a file of another kind, UnsafeWeights (a ValueError) for one that names other globals.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file of weights")
    try:
        with zipfile.ZipFile(path) as file:
            program = next((name for name in file.namelist() if name.endswith("/data.pkl")), None)
            if program is None:
                raise ValueError(f"{path} is a zip file, but none of torch's: there is no data.pkl in it")
            return _Reader(file, program, (*allowed, TORCH_MODULES)).load()
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no torch file, or one of before torch 1.6") from None
    except UnsafeWeights as error:
        raise UnsafeWeights(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{path} is broken: {error}") from None


def tensors(tree: Object, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a pickled nn.Module and its children, as its state_dict would name them."""
    found = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in tree.state.get(kind, {}).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
    for name, child in tree.state.get("_modules", {}).items():
        if isinstance(child, Object):
            found |= tensors(child, f"{prefix}{name}.")
    return found


class _Reader(pickle.Unpickler):
    def __init__(self, file: zipfile.ZipFile, program: str, allowed: Sequence[str]) -> None:
        super().__init__(file.open(program), encoding="utf-8")
        self.file, self.folder, self.allowed = file, program.removesuffix("data.pkl"), allowed
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in STORAGES:
            return name
        # A dotted name could reach from an allowed module into what that module imports.
        if "." not in name and any(fnmatchcase(module, pattern) for pattern in self.allowed):
            return type(name, (Object,), {"kind": f"{module}.{name}"})
        raise UnsafeWeights(f"it asks for {module}.{name}, which weights don't need; nothing was run")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor of its elements. pid: ("storage", type, key, device, elements)."""
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in STORAGES:
            raise UnsafeWeights(f"it refers to {kind!r} of type {storage!r}, which is no storage of numbers")
        if key not in self.storages:
            entry = self.file.getinfo(f"{self.folder}data/{key}")
            size = count * STORAGES[storage].itemsize
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
                raise UnsafeWeights(f"storage {key} is not {size} bytes, as they are")
            data = bytearray(self.file.read(entry))
            self.storages[key] = torch.frombuffer(data, dtype=STORAGES[storage]) if size else torch.empty(0)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 makes; torch checks that it lies in the storage."""
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
