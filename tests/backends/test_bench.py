"""The bench measures what it says: turns, stages that sum up, whole shares, memory of a process of its own."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.run import bench as b

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
FILES = [pytest.param("onnxruntime"), pytest.param("openvino", marks=needs_openvino)]
IMAGE = np.zeros((20, 30, 3), np.uint8)


class Clock:
    """Seconds that pass only when something takes them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A network that takes so long for an image."""

    inputs, outputs = ("image",), ("score",)

    def __init__(self, clock: Clock, seconds: float, path: Path) -> None:
        self.clock, self.seconds, self.path = clock, seconds, path

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        self.clock.now += self.seconds * len(image)
        return (image,)


def candidate(name: str, clock: Clock, path: Path, log: list[str], own: float = 0.002) -> b.Candidate:
    """Calls "a" twice (3 ms each) and "b" once on two images (5 ms each), and takes `own` itself; 4 found."""
    path.touch()

    def predict(image: np.ndarray, run: Mapping[str, Any]) -> list[int]:
        log.append(name)
        pixels = image.transpose(2, 0, 1)[None]
        run["a"](pixels)
        clock.now += own
        run["a"](pixels[:, :, ::2])
        run["b"](np.repeat(pixels, 2, axis=0))
        return [0] * 4

    networks = {"a": Fake(clock, 0.003, path), "b": Fake(clock, 0.005, path)}
    return b.Candidate(name, "fake", predict, networks, path.parent)


def test_models_take_turns(tmp_path: Path) -> None:
    clock, log, rounds = Clock(), [], []
    models = [candidate(name, clock, tmp_path / name, log) for name in "xyz"]
    b.bench(
        models,
        IMAGE,
        repeats=3,
        warmup=2,
        memory=False,
        clock=clock,
        on_round=lambda: rounds.append(len(log)),
    )
    assert "".join(log) == "xyz yzx xyz zxy xyz yzx".replace(
        " ", ""
    )  # the third: graphs have just been fixed
    assert rounds == [3, 9, 12, 15, 18]


def test_files_with_weights_of_their_own_count(tmp_path: Path) -> None:
    """ncnn: the .param is the layers, the .bin the weights."""
    (tmp_path / "x").write_bytes(bytes(100))
    (tmp_path / "x.bin").write_bytes(bytes(11))
    model = candidate("x", Clock(), tmp_path / "x", [])
    for network in model.run.values():
        network.weights = tmp_path / "x.bin"
    (row,) = b.bench([model], IMAGE, repeats=1, warmup=1, memory=False)
    assert row.file_bytes == 2 * 111


def test_stages_add_up(tmp_path: Path) -> None:
    clock, log = Clock(), []
    (tmp_path / "x").write_bytes(bytes(100))
    models = [candidate("x", clock, tmp_path / "x", log), candidate("y", clock, tmp_path / "y", log, own=0.1)]
    row, other = b.bench(models, IMAGE, repeats=4, warmup=2, memory=False, clock=clock)
    assert list(row.stages) == ["a", "b", "other"]
    assert [row.stages[s].p50 for s in row.stages] == pytest.approx([6, 10, 2])
    assert row.total.p50 == row.total.p95 == pytest.approx(18)
    assert other.stages["other"].p50 == pytest.approx(100)
    assert row.calls == {"a": 2, "b": 1}
    assert row.images_per_second == pytest.approx(1 / 0.018)
    assert (row.detections, row.width, row.height, row.repeats, row.threads) == (4, 30, 20, 4, 1)
    assert row.file_bytes == 200, "two networks of 100 bytes each"
    assert row.integers is None
    assert row.memory is None
    assert row.to_dict()["stages"]["b"] == {"p50": pytest.approx(10), "p95": pytest.approx(10)}


def test_quantiles_are_of_single_images(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "x"
    path.touch()
    times = iter([0.0] * 2 + [0.001 * i for i in range(1, 102)])

    def predict(image: np.ndarray, run: Mapping[str, Any]) -> list[int]:
        clock.now += next(times)
        return []

    model = b.Candidate("x", "fake", predict, {"a": Fake(clock, 1.0, path)}, tmp_path)
    (row,) = b.bench([model], IMAGE, repeats=101, warmup=1, memory=False, clock=clock)
    assert (row.total.p50, row.total.p95) == (pytest.approx(51), pytest.approx(96))  # of 1 ... 101
    assert row.stages["a"].p50 == 0, "never called"
    assert row.detections == 0


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    import cv2

    before = cv2.getNumThreads()
    inside = []

    def predict(image: np.ndarray, run: Mapping[str, Any]) -> list[int]:
        inside.append((cv2.getNumThreads(), gc.isenabled()))
        raise KeyError("broken")

    model = b.Candidate("x", "fake", predict, {}, tmp_path)
    with pytest.raises(KeyError, match="broken"):
        b.bench([model], IMAGE, memory=False)
    assert inside == [(1, False)]
    assert (cv2.getNumThreads(), gc.isenabled()) == (before, True)
    with pytest.raises(ValueError, match="rounds from 1 up"):
        b.bench([model], IMAGE, warmup=0)


def layer(op: str, integer: bool, count: int | None, computes: bool = True) -> b.Layer:
    return b.Layer(op, op, "u8" if integer else "f32", computes, integer, count, 1.0)


@pytest.mark.parametrize(
    ("table", "share"),
    [
        pytest.param([], b.Share(0, 0, None), id="nothing"),
        pytest.param([layer("Conv", False, 10)], b.Share(0, 1, 0.0), id="float"),
        pytest.param([layer("QGemm", True, 30), layer("Conv", False, 10)], b.Share(1, 2, 0.75), id="mixed"),
        pytest.param(
            [layer("QGemm", True, 30), layer("MaxPool", False, None, False)], b.Share(1, 1, 1.0), id="a pool"
        ),
        pytest.param(
            [layer("QGemm", True, 30), layer("LSTM", False, None)], b.Share(1, 2, None), id="work unknown"
        ),
    ],
)
def test_share_counts_what_multiplies(table: list[b.Layer], share: b.Share) -> None:
    assert b.share(table) == share


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_layers_are_asked_of_the_runtime(
    backend: str, quantized: bool, named: bool, toy: Any, pixels: Any, tmp_path: Path
) -> None:
    path = toy.save(tmp_path / "toy.onnx", quantized=quantized, named=named)
    table = b.layers(path, backend, pixels(1, 3, 22, 34), runs=3)
    computing = sorted((x for x in table if x.computes), key=lambda x: x.multiply_adds or 0)
    assert [x.integer for x in computing] == [False, False, quantized], "the heads are float"
    assert {x.precision for x in computing if x.integer} <= {"u8", "i8"}
    assert [x.multiply_adds for x in computing] == [20 * 32 * n for n in (8 * 2, 8 * 4, 27 * 8)]
    assert all(x.ms >= 0 for x in table)
    assert sum(x.ms for x in table) > 0
    assert not list(tmp_path.glob("*.json")), "no profile left behind"


def test_layers_need_a_file(toy: Any, pixels: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'torch'"):
        b.layers(toy.save(tmp_path / "toy.onnx"), "torch", pixels(1, 3, 9, 9))


LINEAR = [
    pytest.param("QGemm", [[5, 576], [], [], [128, 576]], [5, 128], 5 * 576 * 128, id="linear"),
    pytest.param("MatMul", [[2, 7, 32], [32, 6]], [2, 7, 6], 2 * 7 * 32 * 6, id="rows of a tensor"),
    pytest.param(
        "QLinearConv", [[1, 9, 9, 4], [], [], [16, 4, 3, 3]], [1, 7, 7, 16], 49 * 16 * 36, id="conv"
    ),
    pytest.param("Conv", [[1, 8, 9, 9], [8, 1, 3, 3]], [1, 8, 7, 7], 49 * 8 * 9, id="depthwise"),
    pytest.param("ConvTranspose", [[1, 8, 5, 5], [8, 3, 2, 2]], [1, 3, 10, 10], 25 * 8 * 12, id="transposed"),
    pytest.param("Conv", [[1, 8, 9, 9], [8]], [1, 8, 7, 7], None, id="weights not shown"),
    pytest.param("LSTM", [[9, 1, 8], [1, 32, 8]], [9, 1, 1, 8], None, id="recurrent"),
]


@pytest.mark.parametrize(("op", "inputs", "output", "count"), LINEAR)
def test_multiply_adds_from_shapes(op: str, inputs: Any, output: list[int], count: int | None) -> None:
    event = {"input_type_shape": [{"float": s} for s in inputs], "output_type_shape": [{"float": output}]}
    assert b._multiply_adds(op, event) == count


@pytest.mark.parametrize("backend", FILES)
def test_a_bench_of_real_networks(backend: str, toy: Any, tmp_path: Path) -> None:
    from importlib import import_module

    open_network = import_module(f"octavo.run.on_{backend}").open_network
    models = []
    for name, quantized in (("float", False), ("int8", True)):
        path = toy.save(tmp_path / f"{name}.onnx", quantized=quantized)
        run = {"toy": open_network(path, 1), "unused": open_network(path, 1)}

        def predict(image: np.ndarray, run: Mapping[str, Any]) -> np.ndarray:
            pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
            run["toy"](pixels[:, :, ::2])
            return run["toy"](pixels)[0][0, 0]

        models.append(b.Candidate(name, backend, predict, run, tmp_path))
    rows = b.bench(models, IMAGE, repeats=3, warmup=1, memory=False)
    assert [(r.integers.integer, r.integers.layers) for r in rows if r.integers] == [(0, 3), (1, 3)]
    assert rows[1].integers.of_multiply_adds == pytest.approx(216 / (216 + 16 + 32))  # type: ignore[union-attr]
    assert rows[0].calls == {"toy": 2, "unused": 0}
    assert rows[0].file_bytes == 2 * (tmp_path / "float.onnx").stat().st_size
    for row in rows:
        assert 0 < row.total.p50 <= row.total.p95
    if backend == "openvino":
        assert models[0].run["toy"]._static, "measured as after warming up"
    assert b.largest_inputs(models[0], IMAGE)["toy"][0].shape == (1, 3, 20, 30)


# Memory -------------------------------------------------------------------------------------------------


def fresh(monkeypatch: pytest.MonkeyPatch, script: str, tmp_path: Path) -> b.Memory | None:
    """peak_memory with another script in the fresh process."""
    head = "import json, sys\nfrom octavo.run.bench import process_peak\n"
    monkeypatch.setattr(b, "_FRESH", head + script)
    model = b.Candidate("x", "onnxruntime", lambda image, run: [], {}, tmp_path, {"min_face": 20})
    return b.peak_memory(model, IMAGE, threads=1)


@pytest.mark.skipif(b.process_peak() is None, reason="this system does not tell a process's peak memory")
def test_memory_is_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = np.ones(50_000_000)  # 400 MB that must not count
    script = "a = process_peak(); x = b'1' * 200_000_000; del x; print('noise'); print(json.dumps([a, process_peak()]))"
    memory = fresh(monkeypatch, script, tmp_path)
    assert memory is not None
    assert memory.runtime < 250 < 400 < b.process_peak()  # type: ignore[operator]
    assert memory.peak - memory.runtime == pytest.approx(200e6 / 2**20, rel=0.1)
    assert len(ours)


def test_a_model_that_fails_alone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match="x could not be run in a process of its own: ValueError: no such thing"
    ):
        fresh(monkeypatch, "raise ValueError('no such thing')", tmp_path)


def test_the_fresh_process_is_told_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = """
folder, backend, threads, pixels, settings = json.loads(sys.argv[1])
import numpy
assert (backend, threads, settings) == ("onnxruntime", 1, {"min_face": 20}), sys.argv
assert numpy.load(pixels).shape == (20, 30, 3)
print(json.dumps([1, 2]))
"""
    assert fresh(monkeypatch, script, tmp_path) == b.Memory(1, 2)


@pytest.mark.slow
def test_memory_of_an_embedded_model() -> None:
    """The script as it is, on a model folder."""
    from octavo import folder

    if not folder.names():
        pytest.skip("this checkout embeds no models")
    path = folder.find(folder.names()[0])
    memory = b.peak_memory(b.Candidate("x", "onnxruntime", lambda image, run: [], {}, path), IMAGE)
    assert memory is None or 20 < memory.runtime < memory.peak < 1000
