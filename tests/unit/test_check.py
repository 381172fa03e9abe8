"""Each rule on a graph that breaks it, made by hand; and what ONNX Runtime makes of the graphs about it.

The good graph: image -> grid -> Conv -> ReLU -> grid -> MaxPool -> grid -> Conv -> grid, 16 channels throughout.
A case changes one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from octavo.lower.check import RULES, TARGETS, check  # noqa: E402


class Net:
    """A graph that grows; every method gives the name of the value it made."""

    def __init__(self, target: str = "cpu", opset: int = 19) -> None:
        self.type = np.int8 if target == "tensorrt" else np.uint8
        self.integer_bias = target != "tensorrt"
        self.opset = opset
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: list[str] = []
        self.inputs = ["x"]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(
            numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        )
        return name

    def add(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def grid(
        self,
        x: str,
        scale: float = 0.02,
        zero: int = 0,
        dtype: type | None = None,
        read: float | None = None,
        explicit: bool = True,
    ) -> str:
        dtype = dtype or self.type
        zeros = [self.constant(dtype(zero))] if explicit else []
        q = self.add("QuantizeLinear", x, self.constant(np.float32(scale)), *zeros)
        return str(self.add("DequantizeLinear", q, self.constant(np.float32(read or scale)), *zeros))

    def stored(self, integers: np.ndarray, scale: Any, axis: int | None = 0, explicit: bool = True) -> str:
        scale = np.asarray(scale, np.float32)
        inputs = [self.constant(integers), self.constant(scale)]
        inputs += [self.constant(np.zeros(scale.shape, integers.dtype))] if explicit else []
        return str(self.add("DequantizeLinear", *inputs, **({} if scale.ndim == 0 else {"axis": axis})))

    def layer(
        self,
        x: str,
        name: str = "conv",
        kind: str = "Conv",
        shape: tuple[int, ...] = (16, 16, 3, 3),
        x_scale: float = 0.02,
        bias: str = "",
        bias_scale: float = 1.0,
        scales: int | None = None,
        axis: int = 0,
        explicit: bool = True,
        lowest: int = -127,
        weights: str = "integer",
        varied: bool = False,
        **attributes: Any,
    ) -> str:
        rows = shape[axis] if scales is None else scales
        scale = np.full(rows, 0.01, np.float32) if rows > 1 else np.float32(0.01)
        scale = scale * np.linspace(0.1, 2, rows, dtype=np.float32) if varied else scale
        integers = self.rng.integers(lowest, 128, shape).astype(np.int8)
        integers.flat[0] = lowest
        if weights == "integer":
            inputs = [x, self.stored(integers, scale, axis, explicit)]
        else:
            inputs = [x, self.constant(integers.astype(np.float32) * np.float32(0.01))]
        out = shape[1] if kind == "ConvTranspose" else shape[0]
        bias = bias or ("integer" if self.integer_bias and weights == "integer" else "float")
        if bias == "integer":
            step = np.broadcast_to(np.float32(x_scale) * scale * np.float32(bias_scale), (out,))
            inputs.append(
                self.stored(self.rng.integers(-99, 99, out).astype(np.int32), step.copy(), 0, explicit)
            )
        elif bias == "float":
            inputs.append(self.constant(self.rng.normal(size=out).astype(np.float32)))
        if kind != "Gemm" and shape[2:] == (3, 3):
            attributes.setdefault("pads", [1, 1, 1, 1])
        return str(self.add(kind, *inputs, name=name, **attributes))

    def model(self, *outputs: str, shape: tuple[Any, ...] = (1, 16, 8, 8), rank: int = 4) -> Any:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in self.inputs]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", values, results, self.constants)
        domains = {node.domain for node in self.nodes}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains if d)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        if not domains - {""}:
            onnx.checker.check_model(model)
        return model


def good(target: str, **first: Any) -> Any:
    """The good graph; `first` changes its first layer."""
    net = Net(target)
    x = net.add("Relu", net.layer(net.grid("x"), "conv1", **first))
    x = net.grid(net.add("MaxPool", net.grid(x), kernel_shape=[2, 2], strides=[2, 2]))
    return net.model(net.grid(net.layer(x, "conv2")))


@pytest.mark.parametrize("target", ["tensorrt", "cpu", "openvino"])
def test_a_good_graph_breaks_no_rule(target: str) -> None:
    assert check(good("tensorrt" if target == "tensorrt" else "cpu"), target) == []


# One broken graph per rule ---------------------------------------------------------------------------


def conv(
    target: str = "cpu",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    **layer: Any,
):
    net = Net(target)
    x = net.layer(net.grid("x", **(before or {})), "conv", **layer)
    return net.model(net.grid(x, **(after or {})))


def behind(*kinds: str, target: str = "cpu", rounded: bool = True, **grid: Any) -> Any:
    """Conv, then these operators, then a grid."""
    net = Net(target)
    x = net.layer(net.grid("x"), "conv")
    for kind in kinds:
        if kind == "grid":
            x = net.grid(x, **grid)
        else:
            x = net.add(
                kind, x, *([net.constant(np.full((1, 16, 1, 1), 0.1, np.float32))] * (kind == "PRelu"))
            )
    return net.model(net.grid(x, **grid) if rounded else x)


def concat(scale: float = 0.02, bare: bool = False, behind: float = 0.02) -> Any:
    net = Net()
    a, b = (net.layer(net.grid("x"), name) for name in ("a", "b"))
    joined = net.add("Concat", net.grid(a), b if bare else net.grid(b, scale), name="join", axis=1)
    return net.model(net.grid(joined, behind))


def pool(scale: float) -> Any:
    net = Net()
    x = net.grid(net.layer(net.grid("x"), "conv"))
    return net.model(net.grid(net.add("MaxPool", x, name="pool", kernel_shape=[2, 2]), scale))


def residual(skip: str = "grid", branch: str = "grid", target: str = "cpu") -> Any:
    """x + conv(x), either side on a grid or not."""
    net = Net(target)
    x = net.grid("x")
    y = net.layer(x, "conv")
    short = x if skip == "grid" else net.layer(x, "short", shape=(16, 16, 1, 1)) if skip == "layer" else "x"
    total = net.add("Add", net.grid(y) if branch == "grid" else y, short, name="add")
    return net.model(net.grid(net.add("Relu", total)))


def moved(kind: str) -> Any:
    net = Net()
    x = net.add(kind, net.grid("x"), **({"kernel_shape": [2, 2]} if kind == "MaxPool" else {}))
    return net.model(net.grid(net.layer(x, "conv")))


def scores(scale: float, split: bool = False) -> Any:
    """Boxes and scores in one tensor, rounded together."""
    net = Net()
    x = net.layer(net.grid("x"), "conv")
    if split:
        boxes, logits = net.add("Split", net.grid(x, scale), name="split", outputs=2, axis=1, num_outputs=2)
        return net.model(net.add("Exp", boxes), net.add("Sigmoid", logits))
    head = net.layer(net.grid("x"), "head")
    joined = net.add("Concat", x, net.add("Sigmoid", head), name="join", axis=1)
    return net.model(net.grid(joined, scale))


def raw(kind: str, opset: int = 19) -> Any:
    """An operator that computes in integers by name."""
    net = Net(opset=opset)
    if kind == "DynamicQuantizeLinear":
        return net.model(*net.add(kind, "x", name="dynamic", outputs=3)[1:2])
    scale, zero = net.constant(np.float32(0.1)), net.constant(np.uint8(0))
    q = net.add("QuantizeLinear", "x", scale, zero)
    weight = net.constant(np.ones((16, 16, 1, 1), np.uint8))
    if kind == "ConvInteger":
        return net.model(net.add("Cast", net.add(kind, q, weight, zero, zero, name="conv"), to=1))
    made = net.add(kind, q, scale, zero, weight, scale, zero, scale, zero, name="conv")
    return net.model(net.add("DequantizeLinear", made, scale, zero))


def old(opset: int, dtype: type = np.uint8) -> Any:
    net = Net(opset=opset)
    return net.model(net.grid("x", dtype=dtype))


def varying() -> Any:
    net = Net()
    return net.model(net.grid(net.layer(net.grid("x"))), shape=("n", 16, "h", "w"))


def floats() -> Any:
    net = Net()
    return net.model(net.layer("x", weights="float"))


def half_quantized(what: str) -> Any:
    net = Net("tensorrt")
    if what == "float weights":
        return net.model(net.grid(net.layer(net.grid("x"), weights="float")))
    return net.model(net.grid(net.layer("x")))


def gemm(flat: str = "grid", transposed: bool = True, axis: int = 0, **layer: Any) -> Any:
    net = Net()
    x = net.grid(net.add("GlobalAveragePool", net.grid("x")))
    x = net.add("Flatten", x) if flat == "bare" else net.grid(net.add("Flatten", x))
    attributes = {"transB": 1} if transposed else {}
    return net.model(net.layer(x, "fc", "Gemm", (16, 16), axis=axis, **attributes, **layer), rank=2)


CASES = [  # rule, target, level, node that must be named, graph
    ("any-qdq", "ncnn", "error", "QuantizeLinear before conv1", lambda: good("cpu")),
    ("prelu", "ncnn", "hint", "PRelu behind conv", lambda: behind("PRelu")),
    ("integer-op", "tensorrt", "error", "conv", lambda: raw("QLinearConv")),
    ("integer-op", "tensorrt", "error", "conv", lambda: raw("ConvInteger")),
    ("integer-op", "tensorrt", "error", "dynamic", lambda: raw("DynamicQuantizeLinear")),
    ("integer-op", "openvino", "warning", "conv", lambda: raw("QLinearConv")),
    ("opset", "tensorrt", "error", "the file", lambda: old(12)),
    ("opset", "openvino", "error", "the file", lambda: old(11)),
    ("opset", "tensorrt", "warning", "the file", lambda: old(21, np.int8)),
    ("opset", "cpu", "warning", "the file", lambda: old(21, np.int8)),
    ("scale", "cpu", "error", "QuantizeLinear behind conv", lambda: conv(after={"scale": float("nan")})),
    ("scale", "tensorrt", "error", "QuantizeLinear before conv", lambda: conv(before={"scale": -0.1})),
    ("pair", "cpu", "error", "DequantizeLinear behind conv", lambda: conv(after={"read": 0.03})),
    (
        "zero-point",
        "tensorrt",
        "error",
        "QuantizeLinear behind conv",
        lambda: conv("tensorrt", after={"zero": -3}),
    ),
    (
        "type",
        "tensorrt",
        "error",
        "QuantizeLinear behind conv",
        lambda: conv("tensorrt", after={"dtype": np.uint8}),
    ),
    (
        "type",
        "tensorrt",
        "error",
        "QuantizeLinear behind conv",
        lambda: conv("tensorrt", after={"explicit": False}),
    ),
    (
        "int32-bias",
        "tensorrt",
        "error",
        "DequantizeLinear before conv",
        lambda: conv("tensorrt", bias="integer"),
    ),
    ("bias-scale", "cpu", "warning", "conv", lambda: conv(bias_scale=2)),
    ("weight-scales", "tensorrt", "warning", "conv", lambda: conv("tensorrt", scales=1)),
    ("weight-scales", "tensorrt", "error", "conv", lambda: conv("tensorrt", axis=1)),
    ("weight-scales", "tensorrt", "warning", "up", lambda: good_up(scales=1)),
    ("weight-scales", "cpu", "error", "fc", lambda: gemm(axis=1)),
    ("weight-scales", "cpu", "error", "fc", lambda: gemm(transposed=False, axis=0)),
    ("lowest-weight", "tensorrt", "warning", "conv", lambda: conv("tensorrt", lowest=-128)),
    ("scores-and-boxes", "tensorrt", "error", "join", lambda: scores(2.5)),
    ("scores-and-boxes", "cpu", "warning", "DequantizeLinear behind conv", lambda: scores(0.02, split=True)),
    ("stays-float", "cpu", "warning", "conv", lambda: behind("Relu", rounded=False)),
    ("stays-float", "cpu", "warning", "conv", lambda: behind("Relu", dtype=np.int8)),
    ("stays-float", "cpu", "warning", "conv", lambda: behind("PRelu")),
    ("stays-float", "cpu", "warning", "conv", lambda: moved("Exp")),
    ("stays-float", "cpu", "warning", "fc", lambda: gemm(flat="bare")),
    ("stays-float", "cpu", "warning", "fc", lambda: gemm(explicit=False)),
    ("stays-float", "cpu", "warning", "up", lambda: good_up()),
    ("input-or-weight", "tensorrt", "warning", "conv", lambda: half_quantized("float input")),
    ("input-or-weight", "tensorrt", "hint", "conv", lambda: half_quantized("float weights")),
    (
        "before-activation",
        "tensorrt",
        "warning",
        "conv",
        lambda: behind("grid", "Sigmoid", target="tensorrt"),
    ),
    ("before-activation", "openvino", "warning", "conv", lambda: behind("grid", "PRelu")),
    ("before-activation", "cpu", "warning", "conv", lambda: behind("grid", "Relu")),
    ("concat", "tensorrt", "warning", "join", lambda: concat(scale=0.03)),
    ("concat", "openvino", "warning", "join", lambda: concat(behind=0.03)),
    ("concat", "cpu", "hint", "join", lambda: concat(bare=True)),
    ("max-pool", "tensorrt", "warning", "pool", lambda: pool(0.03)),
    (
        "residual",
        "tensorrt",
        "warning",
        "add",
        lambda: residual(skip="bare", branch="bare", target="tensorrt"),
    ),
    (
        "residual",
        "tensorrt",
        "warning",
        "add",
        lambda: residual(skip="layer", branch="bare", target="tensorrt"),
    ),
    ("residual", "cpu", "warning", "add", lambda: residual(branch="bare")),
    ("float-bias", "cpu", "hint", "conv", lambda: conv(bias="float")),
    ("channels", "cpu", "hint", "conv1", lambda: good("cpu", shape=(16, 16, 3, 3)) and tiny("cpu")),
    ("channels", "tensorrt", "hint", "conv", lambda: conv("tensorrt", shape=(16, 1, 3, 3), group=16)),
    ("prelu", "cpu", "hint", "PRelu behind conv", lambda: behind("PRelu")),
    ("free-shape", "openvino", "hint", "input 'x'", lambda: varying()),
    ("not-quantized", "tensorrt", "hint", "the file", lambda: floats()),
]


def good_up(**layer: Any) -> Any:
    net = Net("cpu")
    x = net.layer(net.grid("x"), "up", "ConvTranspose", (16, 8, 2, 2), axis=1, strides=[2, 2], **layer)
    return net.model(net.grid(x))


def tiny(target: str) -> Any:
    net = Net(target)
    return net.model(net.grid(net.layer(net.grid("x"), "conv1", shape=(10, 3, 3, 3))), shape=(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("rule", "target", "level", "node", "make"),
    CASES,
    ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)],
)
def test_a_broken_rule_is_found(
    rule: str, target: str, level: str, node: str, make: Callable[[], Any]
) -> None:
    found = [f for f in check(make(), target) if f.rule == rule]
    assert [(f.level, f.node) for f in found] == [(level, node)]
    assert all((found[0].what, found[0].why, found[0].do))


def test_every_rule_has_a_case_for_every_level_of_its_own() -> None:
    tested = {(rule, target) for rule, target, *_ in CASES}
    assert {r.name for r in RULES} == {rule for rule, _ in tested}
    assert all(set(r.levels) <= set(TARGETS) for r in RULES)


@pytest.mark.parametrize(
    ("rule", "target", "make"),
    [
        pytest.param("residual", "tensorrt", lambda: residual(branch="bare", target="tensorrt"), id="fuses"),
        pytest.param("residual", "cpu", lambda: residual(), id="both rounded"),
        pytest.param("before-activation", "cpu", lambda: behind("grid", "Sigmoid"), id="integer Sigmoid"),
        pytest.param(
            "before-activation",
            "tensorrt",
            lambda: behind("grid", "Sigmoid", rounded=False),
            id="a rounded head",
        ),
        pytest.param("scores-and-boxes", "tensorrt", lambda: scores(0.008), id="fine steps"),
        pytest.param("weight-scales", "tensorrt", lambda: good_up(), id="axis 1 of ConvTranspose"),
        pytest.param("weight-scales", "cpu", lambda: gemm(transposed=False, axis=1), id="axis 1 of Gemm"),
        pytest.param("concat", "tensorrt", lambda: concat(), id="one grid"),
        pytest.param("opset", "cpu", lambda: old(21), id="opset 21, unsigned"),
        pytest.param("stays-float", "cpu", lambda: gemm(), id="Gemm with a float output"),
    ],
)
def test_what_is_meant_is_not_reported(rule: str, target: str, make: Callable[[], Any]) -> None:
    assert rule not in {f.rule for f in check(make(), target)}


# What ONNX Runtime says -----------------------------------------------------------------------------


def kernels(model: Any, tmp_path: Path) -> set[str]:
    """The operators that ONNX Runtime makes of a graph."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: conv(), id="conv"),
        pytest.param(lambda: good("cpu"), id="conv relu pool"),
        pytest.param(lambda: conv(explicit=False), id="conv without zero-points of weights"),
        pytest.param(lambda: conv(scales=1), id="one scale for all"),
        pytest.param(lambda: behind("Relu", dtype=np.int8, zero=-128), id="signed from -128"),
        pytest.param(lambda: behind("Relu", dtype=np.int8), id="symmetric behind relu"),
        pytest.param(lambda: behind("Relu", rounded=False), id="no grid behind"),
        pytest.param(lambda: behind("PRelu"), id="prelu"),
        pytest.param(lambda: behind("grid", "PRelu"), id="grid before prelu"),
        pytest.param(lambda: moved("MaxPool"), id="a pool without a grid"),
        pytest.param(lambda: moved("Transpose"), id="a transpose without a grid"),
        pytest.param(lambda: moved("Exp"), id="a float operator before it"),
        pytest.param(lambda: gemm(flat="bare"), id="a flatten without a grid"),
        pytest.param(lambda: gemm(), id="gemm"),
        pytest.param(lambda: gemm(explicit=False), id="gemm without zero-points"),
        pytest.param(lambda: good_up(), id="transposed"),
    ],
)
def test_onnx_runtime_agrees_what_stays_float(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    in_float = bool(kernels(model, tmp_path) & {"Conv", "FusedConv", "Gemm", "FusedGemm", "ConvTranspose"})
    assert in_float == any(f.rule == "stays-float" for f in check(model, "cpu"))


@pytest.mark.parametrize("axis", [0, 1])
def test_onnx_runtime_takes_scales_along_another_axis_for_channels(tmp_path: Path, axis: int) -> None:
    """Why weight-scales is an error: where both axes have one length it runs, and is wrong."""
    from onnx.reference import ReferenceEvaluator

    runtime = pytest.importorskip("onnxruntime")
    model = conv(axis=axis, varied=True)
    x = np.random.default_rng(1).random((1, 16, 8, 8), np.float32)
    ours = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    right = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert kernels(model, tmp_path) & {"QLinearConv"}
    assert (np.abs(ours - right).max() > 1) == (axis == 1)
    assert any(f.rule == "weight-scales" for f in check(model, "cpu")) == (axis == 1)


def test_onnx_runtime_keeps_a_layer_in_float_whose_bias_has_another_scale(tmp_path: Path) -> None:
    assert "Conv" in kernels(conv(bias_scale=2), tmp_path)


# Files ----------------------------------------------------------------------------------------------


def test_files_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(conv(bias_scale=2).SerializeToString())
    (finding,) = check(path, "cpu")
    assert "warning: conv: its bias has scale" in str(finding)
    assert finding.to_dict()["rule"] == "bias-scale"
    with pytest.raises(ValueError, match="no target 'coreml'; there are: tensorrt"):
        check(path, "coreml")
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none.onnx", "cpu")
    path.write_bytes(b"no onnx")
    with pytest.raises(ValueError, match="no ONNX file"):
        check(path, "cpu")


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "prelu"])
def test_an_exported_network_breaks_no_rule(tmp_path: Path, target: str, relu: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    from octavo.export import export
    from octavo.quantize import Scheme, calibrate, prepare

    def activation(n: int) -> nn.Module:
        return nn.ReLU() if relu else nn.PReLU(n)

    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), activation(16), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)),
        *(activation(16), nn.Flatten(), nn.Linear(16 * 5 * 5, 4)),
    )
    qmodel = prepare(network, Scheme.for_target(target))
    calibrate(qmodel, [torch.rand(4, 3, 16, 16) * 1.9 - 1])
    path = tmp_path / "net.onnx"
    export(
        qmodel,
        path,
        torch.zeros(1, 3, 16, 16),
        target=target,
        outputs=["y"],
        preprocessing={"offset": 128, "scale": 1 / 128},
    )
    found = check(path, target)
    assert [f.rule for f in found if f.level == "error"] == []
    expected = {"stays-float", "prelu", "channels"} if target == "cpu" and not relu else {"channels"}
    assert {f.rule for f in found} == expected
