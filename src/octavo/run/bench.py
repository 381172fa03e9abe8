"""How long, how much memory, how many integers: models side by side on one image.

- Time: rounds in which every model predicts once, in turn and each round beginning with the next one, so that
  a neighbour's noise or a slower clock meets all of them. Per stage (a network's calls in one image together;
  "other" is what lies between them: pyramid, crops, NMS) and in all, median and 95th percentile.
- Memory: a fresh process per model, its peak once the runtime is imported and after it has predicted.
- Integers: what the runtime really executes, asked of the runtime itself (ONNX Runtime's profile of its
  optimized graph, OpenVINO's runtime model), on the largest input that the model gave each network.

Times are of a model that has warmed up: fixed graphs compiled (see on_openvino.settle), caches filled.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from octavo import folder as model_folder
from octavo.run import Network

# Operators that multiply and add, as the runtimes name them; the rest moves, compares or rounds.
FLOAT_OPS = {
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "LSTM",
    "GRU",
}
INTEGER_OPS = {
    "QLinearConv",
    "ConvInteger",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QAttention",
}
OPENVINO_OPS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "LSTMSequence", "GRUSequence"}
PAUSE = 0.01  # s between models with several threads: the last one's workers still spin


@dataclass(frozen=True)
class Candidate:
    """A model to measure. `predict(image, run)` answers with something that has a length."""

    name: str
    backend: str
    predict: Callable[[np.ndarray, Mapping[str, Network]], Any]
    run: Mapping[str, Network]
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the prediction whose memory is measured


@dataclass(frozen=True)
class Spread:
    """Milliseconds an image."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Layer:
    """One operator as the runtime executes it.

    precision      of its input: u8, i8, f32
    computes       it multiplies and adds: conv, linear, recurrent
    multiply_adds  for the input given; None where unknown
    ms             median of some runs
    """

    name: str
    op: str
    precision: str
    computes: bool
    integer: bool
    multiply_adds: int | None
    ms: float


@dataclass(frozen=True)
class Share:
    """Of the layers that multiply and add: how many in integers, of how many, and of their work."""

    integer: int
    layers: int
    of_multiply_adds: float | None


@dataclass(frozen=True)
class Memory:
    """Peak MB of a fresh process: with the runtime imported, and after predicting."""

    runtime: float
    peak: float


@dataclass(frozen=True)
class Row:
    name: str
    backend: str
    threads: int
    repeats: int
    width: int
    height: int
    total: Spread
    stages: dict[str, Spread]  # networks in the model's order, then "other"
    calls: dict[str, int]  # of each network for this image
    images_per_second: float
    detections: int
    file_bytes: int
    integers: Share | None  # None: torch, which runs floats or imitates integers in floats
    memory: Memory | None  # None: not measured, or no way to on this system

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Timed:
    """A network that adds up the time of its calls and remembers its largest input."""

    def __init__(self, network: Network, clock: Callable[[], float] = time.perf_counter) -> None:
        self.network, self.clock = network, clock
        self.inputs, self.outputs = network.inputs, network.outputs
        self.seconds, self.calls = 0.0, 0
        self.largest: tuple[np.ndarray, ...] = ()  # none, before the first call

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        started = self.clock()
        found = self.network(*arrays)
        self.seconds += self.clock() - started
        self.calls += 1
        if not self.largest or _values(arrays) > _values(self.largest):
            self.largest = arrays
        return found


def _values(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.size for array in arrays)


def bench(
    models: Sequence[Candidate],
    image: np.ndarray,
    *,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
    memory: bool = True,
    on_round: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Measure the models on one image (h, w, 3) uint8 RGB; a row each, in the order given.

    threads must be what the models were opened with; here it sets OpenCV's. on_round is called after each
    round, warm-up included, to show progress. With one thread on a crowded machine, time.process_time as the
    clock leaves the neighbours out (the caches they share with us they still share).
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats and warmup count rounds from 1 up, not {repeats} and {warmup}")
    runs = [{name: Timed(network, clock) for name, network in model.run.items()} for model in models]
    totals: list[list[float]] = [[] for _ in models]
    parts: list[list[list[float]]] = [[] for _ in models]  # model, round, network: seconds
    found = [0] * len(models)

    def once(m: int, measured: bool) -> None:
        for network in runs[m].values():
            network.seconds, network.calls = 0.0, 0
        started = clock()
        answer = models[m].predict(image, runs[m])
        seconds = clock() - started
        if measured:
            totals[m].append(seconds)
            parts[m].append([network.seconds for network in runs[m].values()])
            found[m] = len(answer)

    with _quiet_machine(threads):
        for turn in range(warmup + repeats):
            for m in _from(turn, len(models)):
                once(m, turn >= warmup)
                if threads > 1:
                    time.sleep(PAUSE)
            if turn == warmup - 1:
                for m, model in enumerate(models):
                    _settle(model.run)
                    once(m, False)
            if on_round is not None:
                on_round()

    rows = []
    for model, run, total, part, count in zip(models, runs, totals, parts, found, strict=True):
        names = [*run, "other"]
        columns = np.array(part).reshape(len(total), len(run))
        columns = np.column_stack([columns, np.array(total) - columns.sum(axis=1)])
        rows.append(
            Row(
                name=model.name,
                backend=model.backend,
                threads=threads,
                repeats=repeats,
                width=image.shape[1],
                height=image.shape[0],
                total=_spread(np.array(total)),
                stages={name: _spread(columns[:, i]) for i, name in enumerate(names)},
                calls={name: network.calls for name, network in run.items()},
                images_per_second=len(total) / sum(total),
                detections=count,
                file_bytes=sum(path.stat().st_size for path in _files(model)),
                integers=_integers(model, run),
                memory=peak_memory(model, image, threads) if memory else None,
            )
        )
    return rows


def layers(path: Path, backend: str, *arrays: np.ndarray, runs: int = 20) -> list[Layer]:
    """The operators of a network file as the runtime executes them for this call (uint8 NCHW, or arrays), in order."""
    if backend == "onnxruntime":
        return _onnxruntime_layers(path, arrays, runs)
    if backend == "openvino":
        return _openvino_layers(path, arrays, runs)
    raise ValueError(f"layers are known of onnxruntime and openvino, which run files, not of {backend!r}")


def largest_inputs(model: Candidate, image: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """{network: the arrays of the largest call for this image}; networks never called are absent."""
    run = {name: Timed(network) for name, network in model.run.items()}
    model.predict(image, run)
    return {name: network.largest for name, network in run.items() if network.largest}


def share(table: Sequence[Layer]) -> Share:
    """Layers of `layers`, of one network or several together, in integers."""
    computing = [layer for layer in table if layer.computes]
    counts = [layer.multiply_adds for layer in computing]
    known = [count for count in counts if count is not None]
    done = sum(layer.multiply_adds or 0 for layer in computing if layer.integer)
    return Share(
        integer=sum(layer.integer for layer in computing),
        layers=len(computing),
        of_multiply_adds=done / sum(known) if known and len(known) == len(counts) else None,
    )


# Time ---------------------------------------------------------------------------------------------------


@contextmanager
def _quiet_machine(threads: int) -> Iterator[None]:
    """OpenCV on as many threads as the networks, no garbage collection while the clock runs."""
    import cv2

    before, collecting = cv2.getNumThreads(), gc.isenabled()
    cv2.setNumThreads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        cv2.setNumThreads(before)
        if collecting:
            gc.enable()


def _from(start: int, count: int) -> list[int]:
    """0 ... count-1, beginning somewhere else each time."""
    return [(start + i) % count for i in range(count)]


def _settle(run: Mapping[str, Any]) -> None:
    for network in run.values():
        if hasattr(network, "settle"):
            network.settle()


def _spread(seconds: np.ndarray) -> Spread:
    p50, p95 = np.quantile(seconds * 1e3, (0.5, 0.95))
    return Spread(float(p50), float(p95))


def _files(model: Candidate) -> list[Path]:
    """The files the networks were loaded from; for torch, whose networks have no file, those with its weights."""
    paths = [getattr(network, "path", None) for network in model.run.values()]
    if all(paths):
        found = [path for path in paths if path]
        # A form made for one runtime has its weights in the plain file, an ncnn network in a file of its own.
        beside = [
            model_folder.plain_of(path) or getattr(n, "weights", None)
            for path, n in zip(found, model.run.values(), strict=True)
        ]
        return found + [path for path in beside if path]
    states = [Path(model.folder) / f"{name}.pt" for name in model.run]
    return [state if state.is_file() else state.with_suffix(".onnx") for state in states]


# Memory -------------------------------------------------------------------------------------------------

_FRESH = """
import json, sys
import numpy, cv2
folder, backend, threads, pixels, settings = json.loads(sys.argv[1])
__import__(backend)
from octavo.run.bench import process_peak
runtime = process_peak()
import octavo
cv2.setNumThreads(threads)
model = octavo.load(folder, backend=backend, threads=threads)
image = numpy.load(pixels)
for _ in range(3):
    model(image, **settings)
print(json.dumps([runtime, process_peak()]))
"""


def peak_memory(model: Candidate, image: np.ndarray, threads: int = 1) -> Memory | None:
    """Memory of a fresh process that loads the model and predicts three times; None where it cannot be told."""
    if process_peak() is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        pixels = Path(temporary) / "image.npy"
        np.save(pixels, image)
        job = [str(model.folder), model.backend, threads, str(pixels), dict(model.settings)]
        source = str(Path(__file__).parents[2])  # this octavo, wherever the process starts
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.run(
            [sys.executable, "-c", _FRESH, model_folder.to_json(job, indent=None)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{model.name} could not be run in a process of its own: {last}")
    runtime, peak = json.loads(child.stdout.strip().splitlines()[-1])
    return Memory(runtime, peak)


def process_peak() -> float | None:
    """Largest resident memory of this process so far, MB.

    Linux: VmHWM, because ru_maxrss of a child starts with its parent's (it survives exec).
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    kilo = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo / 1024


# Integers -----------------------------------------------------------------------------------------------


def _integers(model: Candidate, run: Mapping[str, Timed]) -> Share | None:
    if model.backend not in ("onnxruntime", "openvino"):
        return None
    table: list[Layer] = []
    for network in run.values():
        if network.largest:  # never called: no shape is known, and it costs nothing
            table += layers(network.network.path, model.backend, *network.largest, runs=1)  # type: ignore[attr-defined]
    return share(table)


def _onnxruntime_layers(path: Path, arrays: Sequence[np.ndarray], runs: int) -> list[Layer]:
    with tempfile.TemporaryDirectory() as temporary:
        timed = _profile(path, arrays, f"{temporary}/timed", runs)
        plain = _profile(path, arrays, f"{temporary}/plain", 1, plain=True)
    work = {
        name: _multiply_adds(args["op_name"], args)
        for name, (args, _) in plain.items()
        if args["op_name"] in FLOAT_OPS | INTEGER_OPS
    }
    # The last optimizations may rename a conv, pad its channels and move its axes: then it is known by rows and
    # columns of its output. Two of the same size (the heads) may change places, their sum is right.
    renamed: dict[tuple[int, ...], list[str]] = {}
    kept = {re.sub(r"_token_\d+$", "", name) for name in timed}
    for name, (args, _) in plain.items():
        if "Conv" in args["op_name"] and name not in kept:
            renamed.setdefault(_places(args)[0], []).append(name)
    table = []
    for name, (args, durations) in timed.items():
        op, inputs = args["op_name"], args["input_type_shape"]
        precision = next(iter(inputs[0]), "") if inputs else ""
        known = re.sub(r"_token_\d+$", "", name)
        if known not in work and "Conv" in op:
            known = next((renamed[place].pop(0) for place in _places(args) if renamed.get(place)), "")
        computes = op in FLOAT_OPS or op in INTEGER_OPS
        table.append(
            Layer(
                name=name,
                op=op,
                precision={"uint8": "u8", "int8": "i8", "float": "f32"}.get(precision, precision),
                computes=computes,
                integer=op in INTEGER_OPS,
                multiply_adds=work.get(known) if computes else None,
                ms=float(np.median(durations)) / 1e3,
            )
        )
    return table


def _profile(
    path: Path, arrays: Sequence[np.ndarray], prefix: str, runs: int, plain: bool = False
) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """{node: (what ONNX Runtime's profile tells of it, microseconds of each run)}, in the order of execution.

    plain: without the last optimizations and the packing of weights, which hide shapes (slower, same integers).
    """
    import onnxruntime

    from octavo.run.on_onnxruntime import session_options

    options = session_options(threads=1)
    options.enable_profiling, options.profile_file_prefix = True, prefix
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    for _ in range(runs):
        session.run(None, given)
    nodes: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            nodes.setdefault(name, (event["args"], []))[1].append(event["dur"])
    return nodes


def _places(args: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """(n, h, w) of a conv's output, if its axes are n, c, h, w, and if they are n, h, w, c."""
    shape = next(iter(args["output_type_shape"][0].values()))
    return [(shape[0], *shape[2:]), tuple(shape[:-1])]


def _multiply_adds(op: str, args: Mapping[str, Any]) -> int | None:
    """From a profile event: conv: outputs · weights per output; linear: inputs · width of the output."""
    shapes = [next(iter(entry.values())) for entry in args["input_type_shape"]]
    output = next(iter(args["output_type_shape"][0].values()))
    if "LSTM" in op or op in ("GRU", "QAttention"):
        return None
    if "Conv" in op:
        weights = next((shape for shape in shapes[1:] if len(shape) == len(output)), None)
        if weights is None:
            return None
        return prod(shapes[0]) * prod(weights[1:]) if "Transpose" in op else prod(output) * prod(weights[1:])
    return prod(shapes[0]) * output[-1]


def _openvino_layers(path: Path, arrays: Sequence[np.ndarray], runs: int) -> list[Layer]:
    from octavo.run.on_openvino import core

    model = core().read_model(str(path))
    shapes = zip(model.inputs, arrays, strict=True)
    model.reshape({value.any_name: list(array.shape) for value, array in shapes})
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    compiled = core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **options})
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        request.infer(list(arrays), share_inputs=True)
        for node in request.profiling_info:
            times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e3)
    table = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {
            key: value.astype(str) for key, value in node.get_rt_info().items() if hasattr(value, "astype")
        }
        op, precision = info["layerType"], info["runtimePrecision"]
        if op in ("Const", "Input", "Output") or info["execTimeMcs"] == "not_executed":
            continue
        inputs, output = (
            [tuple(value.get_shape()) for value in node.inputs()],
            tuple(node.output(0).get_shape()),
        )
        table.append(
            Layer(
                name=node.get_friendly_name(),
                op=op,
                precision=precision,
                computes=op in OPENVINO_OPS,
                integer=op in OPENVINO_OPS and precision in ("u8", "i8"),
                multiply_adds=_openvino_multiply_adds(op, inputs, output),
                ms=float(np.median(times.get(node.get_friendly_name(), [0.0]))),
            )
        )
    return table


def _openvino_multiply_adds(op: str, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int | None:
    if op == "Convolution":
        groups = len(inputs[1]) - len(output)  # grouped weights have one axis more
        return prod(output) * prod(inputs[1][1 + groups :])
    if op == "Deconvolution":
        return prod(inputs[0]) * prod(inputs[1][1:]) if len(inputs[1]) == len(output) else None
    if op in ("FullyConnected", "MatMul"):
        return prod(inputs[0]) * output[-1]
    return None
