"""Rewritten graphs give the same integers as the plain ones, whatever the sizes; and what fits nothing stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import folder
from octavo.folder import FolderError

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from octavo.export import align_file  # noqa: E402
from octavo.lower import blocks, files, lower, write  # noqa: E402
from octavo.lower.graph import Graph, Window  # noqa: E402
from octavo.run.on_onnxruntime import open_network  # noqa: E402


class Net:
    """A Q/DQ network in the making, as octavo.export writes it, with random weights."""

    def __init__(self, shape: list[int | str], seed: int = 0, per_channel: bool = True) -> None:
        self.shape, self.rng, self.per_channel = shape, np.random.default_rng(seed), per_channel
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: list[tuple[str, int]] = []
        self.grid: tuple[str, str] = ("", "")

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def pixels(self, zero_point: int = 128) -> str:
        self.grid = self.constant(np.float32(1 / 128)), self.constant(np.uint8(zero_point))
        self.step = np.float32(1 / 128)
        return self.add("DequantizeLinear", "image", *self.grid)

    def again(self, x: str) -> str:
        """The present grid once more, as behind a pool."""
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *self.grid), *self.grid)

    def round(self, x: str, scale: float = 0.02, zero_point: int = 0) -> str:
        self.grid = self.constant(np.float32(scale)), self.constant(np.uint8(zero_point))
        self.step = np.float32(scale)
        return self.again(x)

    def layer(self, kind: str, x: str, shape: tuple[int, ...], bias: bool = True, **attributes: Any) -> str:
        scale = self.rng.uniform(0.001, 0.01, shape[0]).astype(np.float32)
        if not self.per_channel:
            scale = scale[0]
        integers = self.rng.integers(-127, 128, shape).astype(np.int8)
        inputs = [x, self._stored(integers, scale)]
        if bias:
            inputs.append(
                self._stored(self.rng.integers(-9999, 9999, shape[0]).astype(np.int32), scale * self.step)
            )
        return self.add(kind, *inputs, **attributes)

    def _stored(self, integers: np.ndarray, scale: np.ndarray) -> str:
        parts = [self.constant(v) for v in (integers, scale, np.zeros(np.shape(scale), integers.dtype))]
        return self.add("DequantizeLinear", *parts, axis=0)

    def model(self, *outputs: str, rank: int = 4) -> Any:
        sides = [f"{axis}'" for axis in "nchw"[:rank]]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in outputs]
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, self.shape)
        graph = helper.make_graph(self.nodes, "g", [image], values, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        onnx.checker.check_model(made)
        return made


def run(model: Any, path: Path, image: np.ndarray) -> tuple[np.ndarray, ...]:
    path.write_bytes(model.SerializeToString())
    return open_network(path)(image)


def shapes_of(model: Any, names: list[str]) -> list[tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    known = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inferred}
    return [known[name] for name in names]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@dataclass(frozen=True)
class Case:
    """A stem, what becomes of it, and how often its sides are to be tried."""

    done: str
    channels: int = 3
    kernel: int = 3
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool: tuple[int, int] | None = (2, 2)
    ceil: int = 0
    relu: bool = True
    bias: bool = True
    out: int = 16
    shape: tuple[int | str, int | str, int | str] = (1, "h", "w")


PHASES, COLUMNS = "channels of 2x2 pixels", "channels of column pairs"
STEMS = {
    "P-Net": Case(f"stem 3x3 as 2x2 on 12 {PHASES}, pool over its phases", ceil=1),
    "P-Net, 10 channels": Case(
        f"channels padded: 10 to 16; stem 3x3 as 2x2 on 12 {PHASES}, pool over its phases", out=10
    ),
    "free batch": Case(f"stem 3x3 as 2x2 on 12 {PHASES}, pool over its phases", shape=("n", "h", "w")),
    "grey": Case(f"stem 3x3 as 2x2 on 4 {PHASES}, pool over its phases", channels=1),
    "four channels": Case(f"stem 3x3 as 2x2 on 16 {PHASES}, pool over its phases", channels=4),
    "5x5": Case(f"stem 5x5 as 3x3 on 12 {PHASES}, pool over its phases", kernel=5, ceil=1),
    "2x2: a row is left over": Case(f"stem 2x2 as 2x2 on 12 {PHASES}, pool over its phases", kernel=2),
    "1x1": Case(f"stem 1x1 as 1x1 on 12 {PHASES}, pool over its phases", kernel=1),
    "padded": Case(f"stem 3x3 as 3x3 on 12 {PHASES}, pool over its phases", pads=(1, 1, 1, 1)),
    "padded on one side": Case(f"stem 3x3 as 2x3 on 12 {PHASES}, pool over its phases", pads=(0, 1, 0, 1)),
    "no ReLU": Case(f"stem 3x3 as 2x2 on 12 {PHASES}, pool over its phases", relu=False),
    "no bias": Case(f"stem 3x3 as 2x2 on 12 {PHASES}, pool over its phases", bias=False),
    "stride 2, YOLOv5": Case(f"stem 6x6 as 3x3 on 12 {PHASES}", kernel=6, stride=2, pads=(2, 2, 2, 2), pool=None),
    "stride 2, slim": Case(f"stem 3x3 as 2x2 on 12 {PHASES}", stride=2, pads=(1, 1, 1, 1), pool=None),
    "R-Net": Case(f"stem 3x3 as 3x2 on 8 {COLUMNS}", pool=(3, 2), ceil=1, shape=("n", 24, 24)),
    "R-Net, 28 channels": Case(
        f"channels padded: 28 to 32; stem 3x3 as 3x2 on 8 {COLUMNS}", out=28, pool=(3, 2), shape=("n", 24, 24)
    ),
    "no pool": Case(f"stem 3x3 as 3x2 on 8 {COLUMNS}", pool=None, shape=(1, "h", 20)),
    "no pool, padded": Case(f"stem 3x3 as 3x3 on 8 {COLUMNS}", pool=None, pads=(1, 1, 1, 1), shape=(1, 13, 20)),
    "no pool, grey": Case(f"stem 3x3 as 3x2 on 4 {COLUMNS}", channels=1, pool=None, shape=(1, "h", 20)),
    # Nothing fits:
    "odd sides": Case("", shape=(1, 15, 21)),
    "2x2 that pools the row left over": Case("", kernel=2, ceil=1),
    "stride 3": Case("", stride=3, pool=None),
    "five channels": Case("", channels=5),
}  # fmt: skip


@pytest.mark.parametrize("case", STEMS.values(), ids=STEMS)
def test_stems_keep_their_integers(case: Case, tmp_path: Path) -> None:
    net = Net([case.shape[0], case.channels, *case.shape[1:]])
    x = net.layer(
        "Conv",
        net.pixels(),
        (case.out, case.channels, case.kernel, case.kernel),
        case.bias,
        pads=case.pads,
        strides=[case.stride] * 2,
    )
    x = net.round(net.add("Relu", x)) if case.relu else net.round(x, 0.05, 117)
    if case.pool:
        side, stride = case.pool
        pool = net.add("MaxPool", x, kernel_shape=[side] * 2, strides=[stride] * 2, ceil_mode=case.ceil)
        x = net.again(pool)
    x = net.round(net.add("Relu", net.layer("Conv", x, (16, case.out, 3, 3))), 0.2)
    plain = net.model(x)

    lowered, done = lower(plain, multiple=2)
    assert "; ".join(done) == case.done
    batches = [case.shape[0]] if isinstance(case.shape[0], int) else [1, 3]
    heights, widths = ([s] if isinstance(s, int) else [12, 18, 40] for s in case.shape[1:])
    for n, h, w in product(batches, heights, widths):
        image = noise(n, case.channels, h, w)
        (ours,), (theirs,) = run(lowered, tmp_path / "a.onnx", image), run(plain, tmp_path / "b.onnx", image)
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(theirs)) > 20  # there was something to differ in


WINDOWS = [
    Window((3, 3), (1, 1), (0, 0), (0, 0)),
    Window((3, 3), (1, 1), (1, 1), (1, 1)),
    Window((4, 1), (1, 1), (1, 0), (0, 0)),
    Window((5, 2), (1, 1), (2, 1), (2, 0)),
    Window((6, 6), (2, 2), (2, 2), (2, 2)),
    Window((3, 3), (2, 2), (1, 1), (1, 1)),
    Window((3, 5), (2, 1), (0, 2), (1, 2)),
]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_folded_weights_are_the_convolution(window: Window, channels: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, *window.kernel))
    image = rng.normal(size=(3, 12, 16))
    down, across = (blocks.axis(window, which, 2) for which in (0, 1))
    assert down is not None
    assert across is not None
    graph = Graph(onnx.ModelProto())
    name = blocks.fold(graph, graph.constant(weight), window, (2, 2), (down, across), channels)
    folded = graph.constants[name]

    expected = convolve(image, weight, window.stride, (window.before, window.after))
    padded = np.concatenate([image, np.ones((channels - 3, 12, 16))])  # what is read with weights of 0
    gathered = padded.reshape(channels, 6, 2, 8, 2).transpose(4, 2, 0, 1, 3).reshape(4 * channels, 6, 8)
    padding = (down.before, across.before), (down.after, across.after)
    phases = convolve(gathered, folded, (1, 1), padding)
    _, h, w = phases.shape
    phases = phases.reshape(down.phases, across.phases, 5, h, w).transpose(2, 3, 0, 4, 1)
    back = phases.reshape(5, h * down.phases, w * across.phases)
    assert expected.shape[1] - back.shape[1] == (0 if down.complete else 1)
    assert expected.shape[2] - back.shape[2] == (0 if across.complete else 1)
    np.testing.assert_allclose(back, expected[:, : back.shape[1], : back.shape[2]], atol=1e-12)


def convolve(image: np.ndarray, weight: np.ndarray, stride: tuple[int, int], padding: Any) -> np.ndarray:
    """(in, h, w) with (out, in, k_y, k_x), by the definition."""
    (top, left), (bottom, right) = padding
    image = np.pad(image, ((0, 0), (top, bottom), (left, right)))
    views = np.lib.stride_tricks.sliding_window_view(image, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwyx,ocyx->ohw", views[:, :: stride[0], :: stride[1]], weight)


def test_padding_stops_where_channels_are_counted(tmp_path: Path) -> None:
    """conv 28 -> pool -> conv 24 -> conv 12 -> Flatten: 28 gains, 24 would be a third more work, a Gemm counts."""
    net = Net(["n", 5, 16, 16])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (28, 5, 3, 3))))
    x = net.again(net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))
    x = net.round(net.add("Relu", net.layer("Conv", x, (24, 28, 1, 1))), 0.2)
    x = net.round(net.add("Relu", net.layer("Conv", x, (12, 24, 3, 3))), 2.0)
    x = net.again(net.add("Flatten", x))
    x = net.layer("Gemm", x, (6, 12 * 25), transB=1)
    plain = net.model(x, rank=2)
    lowered, done = lower(plain)
    assert done == ["channels padded: 28 to 32"]
    inputs = [node.input[1] for node in lowered.graph.node if node.op_type == "Conv"]
    shapes = shapes_of(lowered, inputs)
    assert shapes == [(32, 5, 3, 3), (24, 32, 1, 1), (12, 24, 3, 3)]
    image = noise(3, 5, 16, 16)
    np.testing.assert_array_equal(
        run(lowered, tmp_path / "a.onnx", image)[0], run(plain, tmp_path / "b.onnx", image)[0]
    )


def test_one_scale_for_all_weights(tmp_path: Path) -> None:
    net = Net([1, 3, "h", "w"], per_channel=False)
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (10, 3, 3, 3))))
    x = net.again(net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
    x = net.round(net.add("Relu", net.layer("Conv", x, (40, 10, 3, 3))), 0.2)
    plain = net.model(x)
    lowered, done = lower(plain, multiple=2)
    assert len(done) == 2
    image = noise(1, 3, 20, 18)
    np.testing.assert_array_equal(
        run(lowered, tmp_path / "a.onnx", image)[0], run(plain, tmp_path / "b.onnx", image)[0]
    )


SLOPES = {
    "positive": np.linspace(0.01, 1, 10),
    "negative, too": np.linspace(-1.5, 0.5, 10),
    "zero": np.array([0, 0, 0.2, 0.25, -0.1, 0, 1, 1, 0.3, 0.1]),
    "one for all": np.array([0.25]),
}


@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("pool", [(), (2, 2), (3, 2)], ids=["no pool", "pool 2x2", "pool 3x3"])
def test_prelu_is_the_larger_of_two(slope: np.ndarray, pool: tuple[int, ...], tmp_path: Path) -> None:
    """Integers may differ where the sum is a tie to float32's rounding: the plain graph computes it in float."""
    net = Net(["n", 3, "h", "w"])
    x = net.layer("Conv", net.pixels(), (10, 3, 3, 3), pads=[1, 0, 0, 1])
    shape = (10, 1, 1) if slope.size > 1 else (1,)
    x = net.round(net.add("PRelu", x, net.constant(slope.astype(np.float32).reshape(shape))), 0.03, 90)
    if pool:
        x = net.again(net.add("MaxPool", x, kernel_shape=[pool[0]] * 2, strides=[pool[1]] * 2, ceil_mode=1))
    plain = net.model(x)
    lowered, done = lower(plain, multiple=2, rewrites=["prelu", "columns"])
    assert done[0] == "PReLU of 1 convolution as the larger of two"
    image = noise(2, 3, 40, 30)
    (ours,), (theirs,) = run(lowered, tmp_path / "a.onnx", image), run(plain, tmp_path / "b.onnx", image)
    steps = np.abs(np.rint(ours / 0.03) - np.rint(theirs / 0.03))
    assert steps.max() <= 1
    assert (steps > 0).mean() < 1e-4
    assert len(np.unique(theirs)) > 20


def test_prelu_twice_in_a_row(tmp_path: Path) -> None:
    net = Net([1, 3, 20, 20])
    x = net.layer("Conv", net.pixels(), (16, 3, 3, 3))
    slope = net.constant(np.linspace(-0.5, 0.9, 16, dtype=np.float32).reshape(16, 1, 1))
    x = net.round(net.add("PRelu", x, slope), 0.03, 90)
    x = net.round(net.add("PRelu", net.layer("Conv", x, (16, 16, 3, 3)), slope), 0.5, 100)
    plain = net.model(x)
    lowered, done = lower(plain)
    assert done[0] == "PReLU of 2 convolutions as the larger of two"
    assert [node.op_type for node in lowered.graph.node].count("Conv") == 2
    image = noise(1, 3, 20, 20)
    (ours,), (theirs,) = run(lowered, tmp_path / "a.onnx", image), run(plain, tmp_path / "b.onnx", image)
    assert (ours != theirs).mean() < 1e-3
    np.testing.assert_allclose(ours, theirs, atol=0.501)


def test_prelu_with_a_slope_above_one_stays() -> None:
    net = Net([1, 3, 16, 16])
    x = net.layer("Conv", net.pixels(), (10, 3, 3, 3))
    slope = np.r_[np.zeros(9), 1.01].astype(np.float32).reshape(10, 1, 1)
    plain = net.model(net.round(net.add("PRelu", x, net.constant(slope)), 0.03, 90))
    assert lower(plain, rewrites=["prelu"]) == (plain, [])


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_heads_are_one_product(heads: int, tmp_path: Path) -> None:
    net = Net([1, 8, "h", "w"])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (32, 8, 3, 3))))
    names = [net.layer("Conv", x, (2 + i, 32, 1, 1), bias=i != 1) for i in range(heads)]
    names[0] = net.add("Sigmoid", names[0])  # what follows a head stays
    plain = net.model(*names)
    lowered, done = lower(plain)
    assert done == [f"{heads} head{'s' * (heads > 1)} 1x1 as one integer product"]
    for sides in ((3, 3), (20, 31)):
        assert_close(lowered, plain, noise(1, 8, *sides), tmp_path)


def assert_close(lowered: Any, plain: Any, image: np.ndarray, place: Path) -> None:
    """The same outputs but for the rounding of float32, which the largest of each measures."""
    ours, theirs = (run(model, place / "a.onnx", image) for model in (lowered, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(np.abs(other).max()))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (3, 1)])
@pytest.mark.parametrize("zero_point", [0, 37])
def test_heads_of_larger_kernels_gather_their_windows(
    kernel: tuple[int, int], zero_point: int, tmp_path: Path
) -> None:
    """Padding stands for 0, which is the zero-point among integers; a head of another window is its own product."""
    net = Net([1, 8, "h", "w"])
    x = net.round(net.layer("Conv", net.pixels(), (32, 8, 3, 3)), 0.5, zero_point)
    pads = [kernel[0] // 2, 0, kernel[0] // 2, kernel[1] - 1]
    names = [net.layer("Conv", x, (2 + i, 32, *kernel), bias=i != 1, pads=pads) for i in range(2)]
    plain = net.model(*names, net.layer("Conv", x, (5, 32, 1, 1)))
    lowered, done = lower(plain)
    size = "x".join(map(str, kernel))
    assert done == [f"2 heads {size} as one integer product, 1 head 1x1 as one integer product"]
    for sides in ((5, 5), (20, 31)):
        assert_close(lowered, plain, noise(1, 8, *sides), tmp_path)


UNFIT: dict[str, Callable[[Net], str]] = {
    "the image is read twice": lambda net: net.add(
        "Add",
        net.add("Cast", "image", to=TensorProto.FLOAT),
        net.round(net.layer("Conv", net.pixels(), (3, 3, 3, 3), pads=[1] * 4)),
    ),
    "grouped": lambda net: net.round(net.layer("Conv", net.pixels(), (16, 1, 3, 3), group=4)),
    "dilated": lambda net: net.round(net.layer("Conv", net.pixels(), (16, 4, 3, 3), dilations=[2, 2])),
    "automatic padding": lambda net: net.round(
        net.layer("Conv", net.pixels(), (16, 4, 3, 3), auto_pad="SAME_UPPER")
    ),
    "a head of stride 2": lambda net: net.layer("Conv", net.pixels(), (2, 4, 3, 3), strides=[2, 2]),
}


@pytest.mark.parametrize("make", UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_stays(make: Callable[[Net], str]) -> None:
    net = Net([1, 3 if make is UNFIT["the image is read twice"] else 4, 16, 16])
    plain = net.model(make(net))
    assert lower(plain, multiple=2) == (plain, [])


def test_free_sides_are_not_taken_for_even() -> None:
    net = Net([1, 3, "h", "w"])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (16, 3, 3, 3))))
    x = net.again(net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    plain = net.model(x)
    assert lower(plain)[1] == []
    assert lower(plain, multiple=2)[1] != []


@pytest.mark.parametrize("kernel", [(2, 2), (2, 1), (3, 3)])
def test_average_pools_are_depthwise_convolutions(kernel: tuple[int, int], tmp_path: Path) -> None:
    net = Net([1, 3, "h", "w"])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (16, 3, 3, 3))), 0.02)
    x = net.add("AveragePool", x, kernel_shape=kernel, strides=kernel)
    x = net.add("Relu", net.layer("Conv", net.round(x, 0.013), (16, 16, 1, 1)))
    plain = net.model(net.round(x, 0.03))
    lowered, done = lower(plain, rewrites=["pools"])
    assert done == ["1 average pool as depthwise convolution"]
    assert [n.op_type for n in lowered.graph.node].count("AveragePool") == 0
    image = noise(1, 3, 31, 45)  # what is left over at the edges is left out
    (ours,), (theirs,) = run(lowered, tmp_path / "a.onnx", image), run(plain, tmp_path / "b.onnx", image)
    assert ours.any()
    np.testing.assert_array_equal(ours, theirs)


def test_other_average_pools_stay() -> None:
    for given in ({"pads": [1, 1, 1, 1]}, {"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}):
        net = Net([1, 3, "h", "w"])
        x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (16, 3, 3, 3))))
        x = net.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], **given)
        plain = net.model(net.round(x))
        assert lower(plain, rewrites=["pools"]) == (plain, [])
    net = Net([1, 3, "h", "w"])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (16, 3, 3, 3))))
    plain = net.model(net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))  # read as floats
    assert lower(plain, rewrites=["pools"]) == (plain, [])


def test_openvino_keeps_the_plain_graph() -> None:
    net = Net([1, 3, 16, 16])
    plain = net.model(net.round(net.add("Relu", net.layer("Conv", net.pixels(), (10, 3, 3, 3)))))
    assert lower(plain)[1] != []
    assert lower(plain, "openvino") == (plain, [])
    with pytest.raises(ValueError, match="onnxruntime, openvino"):
        lower(plain, "onnxrt")


def silu(net: Net, x: str, inside: bool) -> str:
    y = net.round(x, 0.5, 31) if inside else x
    s = net.add("Sigmoid", y)
    return net.round(net.add("Mul", y, net.round(s, 1 / 255) if inside else s), 0.3, 2)


def test_openvino_gets_silu_without_the_grids_inside(tmp_path: Path) -> None:
    models = []
    for inside in (True, False):
        net = Net([1, 3, "h", "w"])
        x = silu(net, net.layer("Conv", net.pixels(), (8, 3, 3, 3)), inside)
        models.append(net.model(silu(net, net.layer("Conv", x, (8, 8, 1, 1)), inside)))
    split, whole = models
    lowered, done = lower(split, "openvino")
    assert done == ["2 SiLU without grids inside"]
    assert sorted(n.op_type for n in lowered.graph.node if n.op_type in ("QuantizeLinear", "Sigmoid")) == (
        ["QuantizeLinear"] * 2 + ["Sigmoid"] * 2
    )
    image = noise(1, 3, 20, 30)
    (ours,), (theirs,) = run(lowered, tmp_path / "a.onnx", image), run(whole, tmp_path / "b.onnx", image)
    np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(ours, run(split, tmp_path / "c.onnx", image)[0])


def products(weights: list[int], zero: int = 0) -> Any:
    """x (n, first) through products whose ranges are found at each call, as ONNX Runtime's tool writes them."""
    net = Net(["n", weights[0]])
    x = "x"
    for inputs, outputs in pairwise(weights):
        net.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{x}q", f"{x}s", f"{x}z"]))
        weight = net.constant(net.rng.integers(-127, 128, (inputs, outputs), np.int8))
        scale = net.constant(net.rng.uniform(0.001, 0.01, outputs).astype(np.float32))
        zeros = net.constant(np.full(outputs, zero, np.int8))
        total = net.add(
            "Cast", net.add("MatMulInteger", f"{x}q", weight, f"{x}z", zeros), to=TensorProto.FLOAT
        )
        x = net.add("Mul", total, net.add("Mul", f"{x}s", scale))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights[0]])]
    told = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", weights[-1]])]
    graph = helper.make_graph(net.nodes, "g", given, told, net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_openvino_gets_products_of_floats_and_the_same_integers(tmp_path: Path) -> None:
    plain = products([64, 48, 33])
    onnx.save(plain, tmp_path / "net.onnx")
    align_file(tmp_path / "net.onnx")
    assert write(tmp_path / "net.onnx", "openvino") == ["2 products of floats and stored integers"]
    assert (tmp_path / "net.openvino.onnx").stat().st_size < 1500  # of 4,656 weights
    x = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    values = [onnx.numpy_helper.to_array(c) for c in plain.graph.initializer]
    wanted = x @ (values[0] * values[1]) @ (values[3] * values[4])
    (ours,) = ReferenceEvaluator(lower(plain, "openvino")[0]).run(None, {"x": x})
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)
    for name in (
        "net.onnx",
        "net.openvino.onnx",
    ):  # in ONNX Runtime, which rounds the inputs of both in its own way
        (rounded,) = open_network(tmp_path / name, 1)(x)
        assert 0 < np.abs(rounded - wanted).max() < 0.05 * np.abs(wanted).max()


def test_products_of_weights_with_a_zero_point_stay_integers() -> None:
    plain = products([8, 8], zero=3)
    assert lower(plain, "openvino") == (plain, [])


def test_a_sigmoid_that_is_no_silu_keeps_its_grids() -> None:
    net = Net([1, 3, "h", "w"])
    y = net.round(net.layer("Conv", net.pixels(), (8, 3, 3, 3)), 0.5, 31)
    plain = net.model(net.round(net.add("Sigmoid", y), 1 / 255))
    assert lower(plain, "openvino") == (plain, [])


# ---- files


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """net.onnx with its lowered form beside it: the first layer changes, the second, larger one stays."""
    net = Net(["n", 3, 16, 16])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (16, 3, 3, 3))))
    x = net.round(net.add("Relu", net.layer("Conv", x, (64, 16, 5, 5))), 0.2)
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(net.model(x).SerializeToString())
    assert len(write(path)) == 1
    return path


def test_weights_that_stay_are_stored_once(written: Path, tmp_path: Path) -> None:
    form = written.with_name("net.onnxruntime.onnx")
    assert folder.forms(written) == [form]
    assert folder.plain_of(form) == written
    assert folder.plain_of(written) is None
    assert form.stat().st_size < 64 * 16 * 25 < written.stat().st_size
    image = noise(2, 3, 16, 16)
    expected = open_network(written)(image)
    np.testing.assert_array_equal(open_network(form)(image), expected)
    moved = tmp_path / "elsewhere" / "ünï code"
    shutil.copytree(written.parent, moved)
    shutil.rmtree(written.parent)
    for path in moved.iterdir():
        path.chmod(0o444)
    moved.chmod(0o555)
    np.testing.assert_array_equal(open_network(moved / form.name)(image), expected)


def test_a_form_of_another_file_is_refused(written: Path) -> None:
    form = written.with_name("net.onnxruntime.onnx")
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    written.write_bytes(content)
    with pytest.raises(FolderError, match=r"another net\.onnx"):
        open_network(form)
    written.unlink()
    with pytest.raises(FolderError, match=r"net\.onnx"):
        open_network(form)


def test_what_follows_from_other_constants_is_not_stored() -> None:
    """28 -> 32 channels in front of 64: padding, zero-points and the scales of biases are nodes."""
    net = Net([1, 3, 16, 16])
    x = net.round(net.add("Relu", net.layer("Conv", net.pixels(), (28, 3, 3, 3))))
    plain = net.model(net.round(net.add("Relu", net.layer("Conv", x, (64, 28, 3, 3))), 0.2))
    given = {onnx.numpy_helper.to_array(c).tobytes() for c in plain.graph.initializer}
    lowered, done = lower(plain)
    assert done[0] == "channels padded: 28 to 32"
    stored = [onnx.numpy_helper.to_array(c) for c in lowered.graph.initializer]
    assert {v.tobytes() for v in stored if v.nbytes > 64} <= given
    assert not [v for v in stored if v.nbytes > 64 and not v.any()]
    weights, scales = 28 * 3 * 9 + 64 * 28 * 9, 28 + 64
    assert sum(v.nbytes for v in stored if v.dtype != np.int64) < weights + (4 + 4) * scales + 100


REFERENCES = {  # place of the bytes in NAME.onnx, how many, type of the constant, offset of the reference
    "bytes, anywhere": (101, 300, np.uint8, "101"),
    "shorter than a reference": (101, 20, np.uint8, None),
    "floats at a multiple of 4": (100, 400, np.float32, "100"),
    "floats out of place": (101, 400, np.float32, None),
    "floats in place the second time": (1, 400, np.int32, "1028"),
}


@pytest.mark.parametrize(("start", "length", "dtype", "offset"), REFERENCES.values(), ids=REFERENCES)
def test_references_point_at_the_bytes(start: int, length: int, dtype: Any, offset: str | None) -> None:
    rng = np.random.default_rng(0)
    stored = rng.bytes(1024)
    stored += b"...." + stored[1:] if start == 1 else b""
    value = np.frombuffer(stored[start : start + length], dtype)
    model = helper.make_model(helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(value, "a")]))
    files.refer(model, "net.onnx", stored)
    (constant,) = model.graph.initializer
    places = {entry.key: entry.value for entry in constant.external_data}
    expected = {"location": "net.onnx", "offset": offset, "length": str(length)} if offset else {}
    assert places == expected
    assert bool(constant.raw_data) == (offset is None)


def test_bytes_that_are_absent_stay() -> None:
    model = helper.make_model(
        helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.full(300, 7, np.int8), "a")])
    )
    files.refer(model, "net.onnx", bytes(1000))
    assert model.graph.initializer[0].raw_data
