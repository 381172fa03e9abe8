"""The run contract: every runtime gives the same arrays for the same file, and says what is wrong with an input."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import folder, run

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
FILES = [pytest.param("onnxruntime"), pytest.param("openvino", marks=needs_openvino)]
PREPROCESSING = {"color": "RGB", "offset": 128.0, "scale": 1 / 128}
FREE, BATCH = (1, 3, "H", "W"), ("N", 3, 12, 12)


def open_network(backend: str, path: Path, threads: int = 1) -> Any:
    return import_module(f"octavo.run.on_{backend}").open_network(path, threads)


@pytest.fixture
def torch_toy(toy: Any) -> Any:
    pytest.importorskip("torch")
    from octavo.run.on_torch import open_module

    return open_module(toy.module(), PREPROCESSING, 1)


SHAPES = [
    pytest.param(FREE, (1, 3, 12, 12), id="square"),
    pytest.param(FREE, (1, 3, 41, 17), id="odd sides"),
    pytest.param(FREE, (1, 3, 3, 200), id="one row of outputs"),
    pytest.param(BATCH, (1, 3, 12, 12), id="batch of 1"),
    pytest.param(BATCH, (7, 3, 12, 12), id="batch of 7"),
    pytest.param(BATCH, (150, 3, 12, 12), id="batch of 150, more than a piece"),
    pytest.param((2, 3, 10, 14), (2, 3, 10, 14), id="all sizes fixed"),
    pytest.param(("N", 3, "H", "W"), (3, 3, 9, 8), id="all sizes free"),
]


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize(("dims", "shape"), SHAPES)
def test_float_file_agrees_with_the_module(
    backend: str, dims: Any, shape: Any, toy: Any, torch_toy: Any, pixels: Any, tmp_path: Path
) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx", dims))
    assert (network.inputs, network.outputs) == (("image",), ("score", "box"))
    for _ in range(3):  # a runtime may change its mind about a shape it sees again
        image = pixels(*shape)
        arrays = network(image)
        assert [a.dtype for a in arrays] == [np.float32] * 2
        for ours, reference in zip(arrays, torch_toy(image), strict=True):
            np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize(("dims", "shape"), SHAPES)
def test_quantized_file_agrees_with_whole_numbers(
    backend: str, dims: Any, shape: Any, toy: Any, pixels: Any, tmp_path: Path
) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx", dims, quantized=True))
    image = pixels(*shape)
    for ours, reference in zip(network(image), toy.integers(image), strict=True):
        np.testing.assert_allclose(
            ours, reference, rtol=0, atol=1e-4
        )  # half a hidden step would be .03 and more


@pytest.mark.parametrize("backend", FILES)
def test_arrays_stay_valid(backend: str, toy: Any, pixels: Any, tmp_path: Path) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx"))
    first = network(pixels(1, 3, 20, 20))
    kept = [array.copy() for array in first]
    for _ in range(3):
        network(pixels(1, 3, 20, 20))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("backend", FILES)
def test_a_view_is_read_as_what_it_shows(backend: str, toy: Any, pixels: Any, tmp_path: Path) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx"))
    for view in (pixels(1, 16, 18, 3).transpose(0, 3, 1, 2), pixels(1, 3, 30, 40)[:, :, ::2, ::-1]):
        for array, same in zip(network(view), network(np.ascontiguousarray(view)), strict=True):
            np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("backend", FILES)
def test_threads_change_nothing_but_time(backend: str, toy: Any, pixels: Any, tmp_path: Path) -> None:
    path, image = toy.save(tmp_path / "toy.onnx", quantized=True), pixels(1, 3, 64, 64)
    for one, two in zip(
        open_network(backend, path)(image), open_network(backend, path, 2)(image), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("backend", FILES)
def test_an_empty_batch_gives_empty_arrays(backend: str, toy: Any, pixels: Any, tmp_path: Path) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx", BATCH))
    assert [a.shape for a in network(pixels(0, 3, 12, 12))] == [(0, 2, 10, 10), (0, 4, 10, 10)]


WRONG = [
    pytest.param(lambda i: i.astype(np.float32) / 255, r"not float32: do not normalise", id="floats"),
    pytest.param(lambda i: i.astype(np.int64), r"uint8 array \(1, 3, any, any\).*not int64", id="int64"),
    pytest.param(lambda i: i[0], r"\(3, 20, 30\)\. .*image\[None\]", id="no batch axis"),
    pytest.param(lambda i: i.transpose(0, 2, 3, 1), r"\(1, 20, 30, 3\)\. .*transpose", id="channels last"),
    pytest.param(lambda i: np.repeat(i, 2, axis=0), r"not \(2, 3, 20, 30\)", id="two images"),
    pytest.param(lambda i: i[:, :1], r"not \(1, 1, 20, 30\)", id="one channel"),
    pytest.param(lambda i: "photo.jpg", "not str", id="a path"),
    pytest.param(lambda i: None, "not NoneType", id="nothing"),
    pytest.param(lambda i: i[:, :, :2], "too small", id="smaller than the conv"),
    pytest.param(lambda i: i[:, :, :0], "too small", id="no rows"),
]


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_wrong_input_is_explained(
    backend: str, spoil: Any, message: str, toy: Any, pixels: Any, tmp_path: Path, capfd: Any
) -> None:
    network = open_network(backend, toy.save(tmp_path / "toy.onnx"))
    image = pixels(1, 3, 20, 30)
    right = network(image)
    with pytest.raises(ValueError, match=message) as error:
        network(spoil(image))
    assert "toy.onnx" in str(error.value)
    assert capfd.readouterr() == ("", ""), "said twice"
    for array, before in zip(network(image), right, strict=True):  # it goes on working
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "cannot load", id="empty"),
        pytest.param(b"these are no networks\n", "cannot load", id="text"),
        pytest.param("half", "cannot load", id="truncated"),
    ],
)
def test_a_broken_file_is_named(backend: str, content: Any, message: str, toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    if content == "half":
        whole = toy.save(path).read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_network(backend, path)
    assert str(path) in str(error.value)


# torch --------------------------------------------------------------------------------------------------


def test_torch_is_in_eval_and_keeps_no_graph(toy: Any, pixels: Any) -> None:
    torch = pytest.importorskip("torch")
    from octavo.run.on_torch import open_module

    module = toy.module().train()
    network, image = open_module(module, PREPROCESSING, 1), pixels(1, 3, 12, 12)
    assert not module.training
    image.flags.writeable = False  # torch warns about sharing such an array, and warnings are errors here
    for one, two in zip(network(image), network(image), strict=True):
        np.testing.assert_array_equal(one, two)
    network(pixels(2, 3, 5, 5))
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match=r"Net takes .* not float32"):
        network(image.astype(np.float32))
    with pytest.raises(ValueError, match="BGR"):
        open_module(module, PREPROCESSING | {"color": "BGR"}, 1)


def test_torch_takes_a_single_output(pixels: Any) -> None:
    torch = pytest.importorskip("torch")
    from octavo.run.on_torch import open_module

    image = pixels(2, 3, 4, 5)
    (array,) = open_module(torch.nn.Identity(), PREPROCESSING, 1)(image)
    np.testing.assert_array_equal(array, (image.astype(np.float32) - 128) / 128)


# OpenVINO's shapes --------------------------------------------------------------------------------------


@needs_openvino
def test_fixed_graphs_are_bounded_and_right(
    toy: Any, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.run import on_onnxruntime, on_openvino

    monkeypatch.setattr(on_openvino, "STATIC", 3)
    monkeypatch.setattr(on_openvino, "REMEMBERED", 4)
    monkeypatch.setattr(on_openvino, "SAVING", 1e9)  # every shape has paid for its graph after one call
    path = toy.save(tmp_path / "toy.onnx", quantized=True)
    network, other = on_openvino.open_network(path), on_onnxruntime.open_network(path)
    for side in (8, 8, 9, 9, 10, 10, 11, 12, 13, 14, 15, 11, 12, 12, 8, 8):
        image = pixels(1, 3, side, 8)
        for array, same in zip(network(image), other(image), strict=True):
            np.testing.assert_allclose(array, same, rtol=0, atol=1e-5)
        assert len(network._static) <= 3
        assert len(network._spent) <= 4
    assert list(network._static)[-1] == (1, 3, 8, 8), "the least recently used went first"


@needs_openvino
def test_no_fixed_graph_before_it_pays(
    toy: Any, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.run import on_openvino

    network = on_openvino.open_network(toy.save(tmp_path / "toy.onnx"))
    monkeypatch.setattr(network, "_compile_time", 1e9)
    for _ in range(5):
        network(pixels(1, 3, 20, 20))
        network(pixels(1, 3, 10, 10))
    assert not network._static
    network.settle()
    assert set(network._static) == {(1, 3, 20, 20), (1, 3, 10, 10)}
    network(pixels(1, 3, 20, 20))
    assert not network._spent


@needs_openvino
def test_batches_are_cut_into_few_shapes(
    toy: Any, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.run import on_openvino

    network = on_openvino.open_network(toy.save(tmp_path / "toy.onnx", BATCH))
    sizes: list[int] = []
    piece = network._piece
    monkeypatch.setattr(type(network), "_piece", lambda self, size: (sizes.append(size), piece(size))[1])
    for count, pieces in (
        (42, [16, 16, 4, 4, 4]),
        (16, [16]),
        (4, [4]),
        (1, [4]),
        (0, [4]),
        (47, [16, 16, 4, 4, 4, 4]),
    ):
        image = pixels(count, 3, 12, 12)
        sizes.clear()
        assert len(network(image)[0]) == count
        assert sizes == pieces
    assert len(network._static) == 2


# open ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(toy: Any, tmp_path: Path) -> Path:
    """A folder of two networks, in an order that is not the alphabet's."""
    info = {
        "format": 1,
        "family": "toy",
        "variant": "toy",
        "precision": "float",
        "networks": ["second", "first"],
        "preprocessing": PREPROCESSING,
        "settings": {},
    }
    folder.write_info(tmp_path, info)
    for name in info["networks"]:
        toy.save(tmp_path / f"{name}.onnx")
    return tmp_path


@pytest.mark.parametrize("backend", ["auto", *FILES])
def test_open_gives_the_networks_in_order(backend: str, model: Path, pixels: Any) -> None:
    networks = run.open(model, backend)
    assert list(networks) == ["second", "first"]
    assert [len(network(pixels(1, 3, 9, 9))) for network in networks.values()] == [2, 2]


def test_auto_takes_the_first_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "available", lambda: ["openvino", "onnxruntime"])
    assert run.choose(model) == "openvino"
    monkeypatch.setattr(run, "available", lambda: ["onnxruntime", "torch"])
    assert run.choose(model) == "onnxruntime"


def test_auto_takes_torch_for_a_folder_in_training(
    model: Path, toy: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    for name in ("first", "second"):
        (model / f"{name}.onnx").rename(model / f"{name}.pt")
    assert run.choose(model) == "torch"
    with pytest.raises(ValueError, match="modules="):
        run.open(model)
    networks = run.open(model, modules={"first": toy.module(), "second": toy.module()})
    assert list(networks) == ["second", "first"]
    assert networks["first"](pixels(1, 3, 9, 9))[0].shape == (1, 2, 7, 7)
    with pytest.raises(ValueError, match=f"octavo export {model}"):
        run.choose(model, "onnxruntime")
    monkeypatch.setattr(run, "available", lambda: ["onnxruntime"])
    with pytest.raises(ValueError, match=r"pip install 'octavo\[train\]'"):
        run.choose(model)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        pytest.param("onnxrutime", "Did you mean onnxruntime", id="typing error"),
        pytest.param("tpu", "There are: auto, ", id="unknown"),
        pytest.param("openvino", r"pip install 'octavo\[openvino\]'", id="not installed"),
        pytest.param("torch", r"no \.pt files, and torch reads no int8 weights", id="no state dicts"),
    ],
)
def test_a_backend_that_cannot_be_had(
    backend: str, message: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "available", lambda: ["onnxruntime", "torch"])
    folder.write_info(model, folder.read_info(model) | {"precision": "int8"})  # float ones torch reads back
    with pytest.raises(ValueError, match=message):
        run.open(model, backend)


def test_open_without_files_or_threads(model: Path) -> None:
    with pytest.raises(ValueError, match="threads"):
        run.open(model, "onnxruntime", threads=0)
    (model / "first.onnx").unlink()
    with pytest.raises(ValueError, match="networks are missing"):
        run.open(model)


def test_a_file_made_for_the_runtime_comes_first(model: Path, toy: Any) -> None:
    toy.save(model / "second.onnxruntime.onnx", BATCH)
    networks = run.open(model, "onnxruntime")
    assert [network.path.name for network in networks.values()] == ["second.onnxruntime.onnx", "first.onnx"]
    assert run.file_for(model, "second", "openvino").name == "second.onnx"


def test_available_imports_nothing() -> None:
    import subprocess
    import sys

    code = (
        "import sys, octavo.run as run; print(run.available());"
        "assert not {'torch', 'openvino', 'onnxruntime'} & set(sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "onnxruntime" in child.stdout
