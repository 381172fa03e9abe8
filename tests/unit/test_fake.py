"""Rounding to grids: against ONNX Runtime's kernels, torch's own fake quantization, plain integers, closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo.quantize.fake import BIAS_LIMIT, FakeQuant, QuantLayer, scale_of
from octavo.quantize.scheme import TARGETS, Grid, Scheme

U8 = Grid(signed=False, symmetric=False)
S8_AFFINE = Grid(symmetric=False)
S8 = Grid()
WEIGHT = Grid(granularity="channel", narrow=True)


def quantizer(grid: Grid, low: float | list[float], high: float | list[float], axis: int = 0) -> FakeQuant:
    low, high = torch.tensor(low), torch.tensor(high)
    fake = FakeQuant(grid, "x", rows=len(low) if low.dim() else 1, axis=axis)
    fake.set_range(low, high)
    fake.mode = "quantize"
    return fake.eval()


def run_onnx(x: Tensor, fake: FakeQuant) -> tuple[np.ndarray, np.ndarray]:
    """QuantizeLinear and DequantizeLinear by ONNX Runtime's kernels, unfused: (integers, floats)."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    dtype = np.int8 if fake.grid.signed else np.uint8
    constants = [
        onnx.numpy_helper.from_array(fake.scale.numpy(), "s"),
        onnx.numpy_helper.from_array(fake.zero_point.numpy().astype(dtype), "z"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=fake.axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=fake.axis),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("q", kind.INT8 if fake.grid.signed else kind.UINT8, x.shape),
            helper.make_tensor_value_info("y", kind.FLOAT, x.shape),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return tuple(session.run(None, {"x": x.numpy()}))


CASES = [
    pytest.param(U8, 0.0, 6.0, 0, id="u8 after a ReLU"),
    pytest.param(U8, -1.7, 3.1, 0, id="u8 affine"),
    pytest.param(U8, -1.0, 127 / 128, 0, id="u8 pixels"),
    pytest.param(S8_AFFINE, -0.52, 1.7, 0, id="s8 affine"),
    pytest.param(S8, -2.5, 2.5, 0, id="s8 symmetric"),
    pytest.param(S8, -127.0, 127.0, 0, id="s8 with scale 1: ties"),
    pytest.param(
        Grid(granularity="channel"), [-1.0, -3.0, -0.1, -9.0], [1.0, 3.0, 0.1, 9.0], 0, id="channel"
    ),
    pytest.param(Grid(granularity="channel"), [-1.0, -3.0, -0.1], [1.0, 3.0, 0.1], 1, id="channel on axis 1"),
]


@pytest.mark.parametrize(("grid", "low", "high", "axis"), CASES)
def test_same_as_the_onnx_kernels(grid: Grid, low: float, high: float, axis: int) -> None:
    fake = quantizer(grid, low, high, axis)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 50, 41, generator=generator) * 3
    # Every tie between two integers, beyond the grid's ends too.
    ties = (torch.arange(-300, 300) + 0.5) * fake.scale.flatten()[0]
    x.view(-1)[: len(ties)] = ties
    q, y = run_onnx(x, fake)
    assert np.array_equal(fake.integers(x).numpy(), q)
    assert np.array_equal(fake(x).numpy(), y)


@pytest.mark.parametrize(("grid", "low", "high", "axis"), CASES)
def test_training_rounds_as_evaluation_does(grid: Grid, low: float, high: float, axis: int) -> None:
    fake = quantizer(grid, low, high, axis)
    x = torch.randn(4, 3, 50, 40, generator=torch.Generator().manual_seed(1)) * 3
    expected = fake(x)
    trained = fake.train()(x.requires_grad_())
    # torch's kernel multiplies by 1 / scale, so a tie may fall to the other side: one step, hardly ever.
    step = fake.scale.max()
    assert (trained - expected).abs().max() <= step * 1.001
    assert (trained != expected).double().mean() < 1e-4


def test_the_gradient_passes_straight_through_and_stops_where_values_were_clipped() -> None:
    fake = quantizer(U8, 0.0, 2.55).train()
    x = torch.tensor([-1.0, 0.0, 0.013, 1.0, 2.55, 2.6, 9.0], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("grid", "low", "high", "scale", "zero_point"),
    [
        pytest.param(U8, 0.0, 2.55, 0.01, 0, id="u8 after a ReLU"),
        pytest.param(S8_AFFINE, -0.52, 1.7, 2.22 / 255, -68, id="a course's example"),
        pytest.param(S8, -0.52, 1.7, 1.7 / 127, 0, id="the same, symmetric"),
        pytest.param(U8, 0.5, 2.55, 0.01, 0, id="zero is always on the grid"),
        pytest.param(U8, -2.55, -0.5, 0.01, 255, id="only negative"),
        pytest.param(U8, 0.0, 0.0, 1.0, 0, id="a tensor of zeros"),
        pytest.param(S8, 0.0, 0.0, 1.0, 0, id="zeros, symmetric"),
        pytest.param(Grid(bits=4, narrow=True), -0.7, 0.7, 0.1, 0, id="four bits"),
        pytest.param(Grid(bits=2, signed=False, symmetric=False), 0.0, 3.0, 1.0, 0, id="two bits"),
    ],
)
def test_scale_and_zero_point(grid: Grid, low: float, high: float, scale: float, zero_point: int) -> None:
    got = scale_of(torch.tensor(low), torch.tensor(high), grid)
    assert float(got[0]) == pytest.approx(scale, rel=1e-6)
    assert int(got[1]) == zero_point


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e3, 0, width=32),
    high=st.floats(0, 1e3, width=32),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    share=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_error_bound_idempotent_monotone_zero(
    low: float, high: float, bits: int, signed: bool, symmetric: bool, share: list[float]
) -> None:
    grid = Grid(bits=bits, signed=signed, symmetric=symmetric)
    low = 0.0 if symmetric and not signed else low
    fake = quantizer(grid, low, high)
    x = torch.tensor(sorted(low + s * (high - low) for s in share))
    y = fake(x)
    inside = (x >= fake.range()[0]) & (x <= fake.range()[1])  # the zero-point's rounding may cut half a step
    error = (x - y).abs()
    assert (error[inside] <= fake.scale * (0.5 + 1e-4)).all()
    assert (error <= fake.scale * (1 + 1e-4)).all()
    assert torch.equal(fake(y), y)
    assert (y.diff() >= 0).all()
    assert float(fake(torch.zeros(()))) == 0


def test_groups_have_their_own_scale() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[1, 32:] *= 100
    grid = Grid(bits=4, narrow=True, granularity="group", group=32)
    layer = nn.Linear(64, 4)
    layer.weight = nn.Parameter(weight)
    quant = QuantLayer(layer, FakeQuant(grid, "w", rows=8), integer_bias=False)
    quant.fit_weight([None])
    expected = weight.reshape(8, 32).abs().amax(1) / 7
    assert torch.allclose(quant.weight_grid.scale, expected)
    quant.weight_grid.mode = "quantize"
    error = (quant.weight_grid.eval()(weight) - weight).abs().reshape(8, 32).amax(1)
    assert (error <= expected * 0.5001).all()


# ---- layers


def quant_layer(layer: nn.Module, axis: int = 0) -> QuantLayer:
    weight = FakeQuant(WEIGHT, "w", rows=layer.weight.shape[axis], axis=axis)  # type: ignore[operator,arg-type,index,union-attr]
    quant = QuantLayer(layer, weight, integer_bias=True).eval()
    return quant


def by_integers(quant: QuantLayer, q_x: Tensor, before: FakeQuant, after: FakeQuant) -> Tensor:
    """The output's integers from int64 sums and one float32 multiplication, as integer kernels are specified."""
    layer = quant.layer
    q_w = torch.round(
        quant.weight.detach() / quant.weight_grid.scale.reshape(-1, *[1] * (quant.weight.dim() - 1))
    )
    step = before.scale * quant.weight_grid.scale
    q_b = torch.round(layer.bias.detach() / step)  # type: ignore[union-attr,operator]
    x = q_x.double() - before.zero_point
    if isinstance(layer, nn.Linear):
        total = F.linear(x, q_w.double(), q_b.double()).long()
        multiplier = step / after.scale
    else:
        total = F.conv2d(x, q_w.double(), q_b.double(), layer.stride, layer.padding).long()  # type: ignore[arg-type]
        multiplier = (step / after.scale).reshape(-1, 1, 1)
    q = torch.round(total.float() * multiplier) + after.zero_point
    return q.clamp(after.grid.low, after.grid.high)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.Conv2d(3, 10, 3), (2, 3, 20, 21), id="conv"),
        pytest.param(nn.Conv2d(8, 16, 3, stride=2, padding=1), (2, 8, 20, 21), id="stride and padding"),
        pytest.param(nn.Linear(64, 12), (5, 64), id="linear"),
        pytest.param(nn.Linear(4096, 3), (5, 4096), id="sums beyond float32's integers"),
    ],
)
def test_layers_compute_what_integer_kernels_compute(layer: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before = quantizer(U8, -1.0, 2.0)
    q_x = torch.randint(0, 256, shape, generator=generator)
    x = (q_x - before.zero_point) * before.scale
    quant = quant_layer(layer)
    quant.fit_weight([before])
    quant.weight_grid.mode = "quantize"
    with torch.no_grad():
        raw = quant(x, before, None)
        after = quantizer(U8, float(raw.min()) * 0.8, float(raw.max()) * 0.8)
        got = after.integers(quant(x, before, after))
        in_training = after.integers(quant.train()(x, before, after))
    expected = by_integers(quant, q_x, before, after)
    assert torch.equal(got.double(), expected.double())
    # Float sums err by some 1e-6 of a value: now and then that tips a rounding, by one.
    difference = (in_training.int() - got.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 2e-3


def test_the_bias_is_trained_on_its_int32_grid() -> None:
    layer = nn.Conv2d(3, 4, 1)
    before = quantizer(U8, 0.0, 255 * 0.25)
    quant = quant_layer(layer)
    quant.fit_weight([before])
    quant.weight_grid.mode = "quantize"
    bias = quant.train()(torch.zeros(1, 3, 1, 1), before, None).flatten()
    steps = bias / (0.25 * quant.weight_grid.scale)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert (bias - layer.bias).abs().max() > 1e-4  # type: ignore[operator]
    bias.sum().backward()
    assert quant.bias is not None
    assert torch.allclose(quant.bias.grad, torch.ones(4))  # type: ignore[arg-type]


def test_dead_channels_and_huge_biases_get_scales_that_their_biases_can_live_with() -> None:
    layer = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [0.5, -1.27], [1e-12, 0.0]]).reshape(3, 2, 1, 1))
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([0.3, 0.1, 5.0]))
    before = quantizer(U8, 0.0, 2.55)
    quant = quant_layer(layer)
    quant.fit_weight([before])
    quant.weight_grid.mode = "quantize"
    scale = quant.weight_grid.scale
    assert float(scale[1]) == pytest.approx(0.01)
    assert float(scale[0]) == pytest.approx(0.01)  # zeros: the other channels' scale
    q_bias = layer.bias.detach() / (before.scale * scale)
    assert float(q_bias.abs().max()) <= BIAS_LIMIT * 1.001
    with torch.no_grad():
        y = quant(torch.ones(1, 2, 1, 1), before, None).flatten()
    assert torch.allclose(y, torch.tensor([0.3, 0.1 + 0.5 - 1.27, 5.0]), atol=0.01)


def test_a_layer_of_zeros() -> None:
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    before = quantizer(U8, 0.0, 2.55)
    quant = quant_layer(layer)
    quant.fit_weight([before])
    quant.weight_grid.mode = "quantize"
    assert quant.weight_grid.ready
    with torch.no_grad():
        assert torch.allclose(quant(torch.ones(1, 4), before, None)[0], layer.bias, atol=0.01)


def test_transposed_convolutions_scale_their_second_axis() -> None:
    layer = nn.ConvTranspose2d(6, 4, 2, 2)
    quant = quant_layer(layer, axis=1)
    quant.fit_weight([None])
    assert torch.allclose(quant.weight_grid.scale, layer.weight.detach().abs().amax((0, 2, 3)) / 127)


def test_adapt_follows_the_data() -> None:
    fake = FakeQuant(S8, "x")
    fake.mode = "adapt"
    fake.train()
    x = torch.linspace(-1, 1, 101)
    fake(x)
    assert float(fake.scale) == pytest.approx(1 / 127)
    for _ in range(100):
        fake(4 * x)
    assert float(fake.scale) == pytest.approx(4 / 127, rel=1e-3)
    started = FakeQuant(S8, "x")  # from a calibrated range it moves slowly
    started.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    started.mode = "adapt"
    started.train()(2 * x)
    assert 1.01 / 127 < float(started.scale) < 1.3 / 127


def test_state_goes_through_a_fresh_one() -> None:
    fake = quantizer(WEIGHT, [-1.0, -2.0], [1.0, 2.0])
    fresh = FakeQuant(WEIGHT, "y", rows=2)
    assert not fresh.ready
    fresh.load_state_dict(fake.state_dict())
    assert fresh.mode == "quantize"
    x = torch.randn(2, 9)
    assert torch.equal(fresh.eval()(x), fake(x))


def test_half_precision_is_refused() -> None:
    fake = quantizer(U8, 0.0, 1.0).half()
    with pytest.raises(ValueError, match="stays in float32"):
        fake(torch.ones(3).half())


# ---- schemes


@pytest.mark.parametrize("target", TARGETS)
def test_a_scheme_survives_json(target: str) -> None:
    scheme = Scheme.for_target(
        target,
        calibrator="percentile",
        calibrator_options={"percentile": 99.9},
        skip=("head.*",),
        overrides=(("conv1", {"weight": Grid(bits=4, granularity="channel", narrow=True)}),),
    )
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_targets_differ_as_their_kernels_do() -> None:
    cpu, tensorrt, arm = (Scheme.for_target(target) for target in ("cpu", "tensorrt", "arm"))
    assert (cpu.activation.low, cpu.activation.high, cpu.integer_bias) == (0, 255, True)  # type: ignore[union-attr]
    assert (tensorrt.activation.low, tensorrt.activation.high) == (-128, 127)  # type: ignore[union-attr]
    assert tensorrt.activation.symmetric  # type: ignore[union-attr]
    assert not tensorrt.integer_bias
    assert arm.activation.low == -127  # type: ignore[union-attr]
    for scheme in (cpu, tensorrt, arm):
        assert (scheme.weight.low, scheme.weight.high, scheme.weight.granularity) == (-127, 127, "channel")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: Grid(bits=9), "2 to 8 bits", id="bits"),
        pytest.param(lambda: Grid(granularity="row"), "granularity", id="granularity"),
        pytest.param(lambda: Grid(signed=False, narrow=True), "unsigned", id="narrow"),
        pytest.param(lambda: Grid(granularity="group", group=0), "at least one", id="group"),
        pytest.param(lambda: Scheme(target="gpu"), "choose one of cpu", id="target"),
        pytest.param(lambda: Scheme.for_target("tpu"), "choose one of cpu", id="target's defaults"),
        pytest.param(lambda: Scheme(activation=WEIGHT), "one scale per tensor", id="activations"),
        pytest.param(lambda: Scheme(input_range=(1.0, 0.0)), "low, high", id="input range"),
        pytest.param(lambda: Scheme(overrides=(("a", {"bias": S8}),)), "no grid of a layer", id="override"),
        pytest.param(lambda: Scheme.from_dict({"targte": "cpu"}), "no quantization scheme", id="unknown key"),
    ],
)
def test_wrong_schemes_are_refused(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]
