"""Files of weights: what is read from them, and that nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from octavo.data.pickles import Object, UnsafeWeights, check_fit, read_objects, read_state, tensors


@pytest.fixture
def foreign() -> Iterator[Callable[[], nn.Module]]:
    """A network of a class whose module is there while it is saved, and gone when it is read."""
    module = types.ModuleType("models.foreign")
    source = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU())\n"
        "        self.register_buffer('anchors', __import__('torch').arange(6.0).reshape(3, 2).T)\n"
        "        self.names = ['cat', 'dog']\n"
    )
    exec(source, module.__dict__)
    module.Net.__module__ = "models.foreign"
    package = types.ModuleType("models")
    sys.modules |= {"models": package, "models.foreign": module}
    yield module.Net
    for name in ("models", "models.foreign"):
        sys.modules.pop(name, None)


def forget() -> None:
    del sys.modules["models.foreign"], sys.modules["models"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_unknown_classes_is_read_as_its_state_dict(
    foreign: Callable[[], nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    network = foreign().to(dtype)
    torch.save({"epoch": 3, "model": network}, tmp_path / "net.pt")
    forget()
    held = read_objects(tmp_path / "net.pt", ("models.*",))
    assert held["epoch"] == 3
    tree = held["model"]
    assert isinstance(tree, Object)
    assert tree.kind == "models.foreign.Net"
    assert tree.state["names"] == ["cat", "dog"]
    found, wanted = tensors(tree), network.state_dict()
    assert list(found) == sorted(found, key=list(found).index)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)  # with strides: the anchors were transposed


def test_views_of_one_storage_and_shared_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    torch.save({"a": base[2:20:3], "b": base.reshape(4, 6)[:, 1:3], "c": torch.zeros(0)}, tmp_path / "w.pt")
    read = read_objects(tmp_path / "w.pt", ())
    assert torch.equal(read["a"], base[2:20:3])
    assert torch.equal(read["b"], base.reshape(4, 6)[:, 1:3])
    assert read["c"].shape == (0,)


class Runs:
    """Pickled, this is a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def torch_file(path: Path, program: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, data in storages.items():
            file.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        pytest.param(os.system, ("touch {mark}",), "posix.system|nt.system", id="a shell command"),
        pytest.param(exec, ("open({mark!r}, 'w')",), "(builtins|__builtin__).exec", id="Python code"),
        pytest.param(open, ("{mark}", "w"), "io.open|_io.open", id="a file"),
        pytest.param(getattr, ("text", "upper"), "(builtins|__builtin__).getattr", id="a way to everything"),
        pytest.param(torch.load, ("{mark}",), "torch.serialization.load", id="torch's own loader"),
    ],
)
def test_a_file_that_wants_to_run_something_is_refused(
    function: Any, arguments: tuple[Any, ...], said: str, tmp_path: Path
) -> None:
    mark = tmp_path / "was here"
    arguments = tuple(a.format(mark=str(mark)) if isinstance(a, str) else a for a in arguments)
    if function is getattr:
        arguments = ("text", "upper")
    path = torch_file(tmp_path / "w.pt", pickle.dumps({"model": Runs(function, *arguments)}, protocol=2))
    with pytest.raises(UnsafeWeights, match=f"asks for ({said}).*nothing was run"):
        read_objects(path, ("models.*",))
    assert not mark.exists()


def test_an_allowed_module_is_no_way_to_what_it_imports(tmp_path: Path) -> None:
    """Protocol 4 takes dotted names: torch.nn.modules.module -> .os.system."""
    program = b"\x80\x04\x8c\x17torch.nn.modules.module\x8c\x09os.system\x93\x8c\x04true\x85R."
    with pytest.raises(UnsafeWeights, match=r"asks for torch\.nn\.modules\.module\.os\.system"):
        read_objects(torch_file(tmp_path / "w.pt", program), ("models.*",))


def test_calling_an_object_does_nothing(tmp_path: Path) -> None:
    """An allowed class is never looked up: whatever is in models.evil, it becomes an Object."""
    program = b"cmodels.evil\nsystem\n(S'touch here'\ntR."
    found = read_objects(torch_file(tmp_path / "w.pt", program), ("models.*",))
    assert isinstance(found, Object)
    assert (found.kind, found.state) == ("models.evil.system", {})


def storage(count: int, key: str = "0", kind: str = "FloatStorage", size: int = 4) -> bytes:
    """A program that makes one tensor (size,) of a storage of `count` floats."""

    class Persistent(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if item == "here" else None

    buffer = io.BytesIO()
    Persistent(buffer, 2).dump(Runs(torch._utils._rebuild_tensor_v2, "here", 0, (size,), (1,), False, {}))  # type: ignore[attr-defined]
    return buffer.getvalue().replace(b"FloatStorage", kind.encode())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param(lambda p: p / "absent", "is no file", id="absent"),
        pytest.param(lambda p: wrote(p, b"GIF89a"), "no torch file", id="no zip"),
        pytest.param(lambda p: torch_file(p / "w.pt", b"\x80\x02"), "broken", id="cut off"),
        pytest.param(lambda p: torch_file(p / "w.pt", storage(4)), "broken", id="a storage is missing"),
        pytest.param(
            lambda p: torch_file(p / "w.pt", storage(4), **{"0": b"1234"}), "not 16 bytes", id="short storage"
        ),
        pytest.param(
            lambda p: torch_file(p / "w.pt", storage(4, size=5), **{"0": b"\0" * 16}),
            "broken",
            id="a tensor reaches out of its storage",
        ),
    ],
)
def test_broken_files_say_so(path: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read_objects(path(tmp_path), ("models.*",))


def wrote(folder: Path, content: bytes) -> Path:
    (folder / "w.pt").write_bytes(content)
    return folder / "w.pt"


def test_a_compressed_storage_is_refused(tmp_path: Path) -> None:
    """A few kilobytes could become gigabytes."""
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", storage(4))
        file.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(UnsafeWeights, match="not 16 bytes, as they are"):
        read_objects(tmp_path / "w.pt", ())


def test_a_state_dict_and_whether_it_fits(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt", "a file")
    check_fit(state, module, tmp_path / "w.pt", "linear")
    with pytest.raises(ValueError, match=r"does not fit linear: missing, unknown or misshaped weight"):
        check_fit(state, nn.Linear(5, 3), tmp_path / "w.pt", "linear")
    with pytest.raises(ValueError, match="misshaped bias"):
        check_fit({"weight": state["weight"]}, module, tmp_path / "w.pt", "linear")
    with pytest.raises(ValueError, match="is no file: a file"):
        read_state(tmp_path, "a file")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "w.pt", "a file")
