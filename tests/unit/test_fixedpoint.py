"""Worked cases by hand, torch's and ONNX Runtime's kernels, and properties."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quantize import fixedpoint as fp

VALUES = [-0.52, 0.3, 1.7]
SCALE = 0.0087059


@pytest.mark.parametrize(
    ("x", "n", "m", "q", "binary"),
    [
        pytest.param(2.71875, 10, 5, 87, "0,0000000010,10111", id="S(10.5), issue 3"),
        pytest.param(-0.499878, 2, 13, -4095, "1,11,1000000000001", id="S(2.13), issue 3"),
        pytest.param(0.0, 3, 4, 0, "0,000,0000", id="zero"),
        pytest.param(-8.0, 3, 4, -128, "1,000,0000", id="the smallest S(3.4)"),
        pytest.param(100.0, 3, 4, 127, "0,111,1111", id="saturates above"),
        pytest.param(-100.0, 3, 4, -128, "1,000,0000", id="saturates below"),
        pytest.param(5.0, 7, 0, 5, "0,0000101,", id="an integer"),
        pytest.param(-0.25, 0, 7, -32, "1,,1100000", id="a fraction"),
    ],
)
def test_fixed_point(x: float, n: int, m: int, q: int, binary: str) -> None:
    assert int(fp.to_fixed(x, n, m)) == q
    assert fp.to_binary(q, n, m) == binary
    assert fp.from_binary(binary) == (q, n, m)


@given(st.integers(-(2**15), 2**15 - 1), st.integers(0, 15))
def test_binary_is_twos_complement(q: int, m: int) -> None:
    text = fp.to_binary(q, 15 - m, m).replace(",", "")
    assert struct.pack(">h", q) == int(text, 2).to_bytes(2, "big")
    assert fp.from_binary(fp.to_binary(q, 15 - m, m)) == (q, 15 - m, m)


@given(st.floats(-7.9, 7.9), st.integers(0, 20))
def test_fixed_point_error_is_half_a_step(x: float, m: int) -> None:
    q = fp.to_fixed(x, 4, m)
    assert abs(fp.from_fixed(q, m) - x) <= 2.0 ** -(m + 1)


def arrays(kind: str, values: list[float]):
    return np.array(values) if kind == "numpy" else torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_worked_tensor(kind: str) -> None:
    x = arrays(kind, VALUES)
    assert fp.quantize(x, SCALE, clip=False).tolist() == [-60, 34, 195]
    assert fp.quantize(x, SCALE).tolist() == [-60, 34, 127]
    assert np.round(fp.fake_quantize(x, SCALE).tolist(), 3).tolist() == [-0.522, 0.296, 1.106]
    assert fp.quantize(x, SCALE, -68).tolist() == [-128, -34, 127]
    scale, zero_point = fp.offset_method(-0.52, 1.7)
    assert (round(scale, 7), zero_point) == (SCALE, -68)
    scale, zero_point = fp.max_abs_method(-0.52, 1.7)
    assert fp.quantize(x, scale, zero_point).tolist() == [-39, 22, 127]
    assert type(fp.fake_quantize(x, scale)) is type(x)


def test_types() -> None:
    for x in (np.float32([1, 2]), torch.tensor([1.0, 2.0])):
        assert fp.fake_quantize(x, 0.3).dtype == x.dtype
    assert fp.fake_quantize([1, 2], 0.3).tolist() == fp.fake_quantize(np.array([1, 2]), 0.3).tolist()
    assert fp.fake_quantize(torch.tensor([1, 2]), 0.5).tolist() == [1, 2]
    scales = np.array([[0.5], [0.25]])
    assert fp.quantize(np.ones((2, 3)), scales).tolist() == [[2] * 3, [4] * 3]


values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)


@given(values, st.integers(2, 8), st.booleans(), st.booleans())
def test_properties(xs: list[float], bits: int, symmetric: bool, signed: bool) -> None:
    x = np.sort(np.array(xs))
    if symmetric:
        (scale, zero), signed = fp.max_abs_method(x[0], x[-1], bits), True
    else:
        scale, zero = fp.offset_method(x[0], x[-1], bits, signed)
    y = fp.fake_quantize(x, scale, zero, bits, signed)
    assert (np.abs(y - x) <= scale / 2 * (1 + 1e-9)).all()
    assert (np.diff(y) >= 0).all()
    np.testing.assert_allclose(fp.fake_quantize(y, scale, zero, bits, signed), y, rtol=1e-12)
    assert float(fp.fake_quantize(0.0, scale, zero, bits, signed)) == 0
    t = fp.fake_quantize(torch.from_numpy(x), scale, zero, bits, signed)
    assert t.tolist() == y.tolist()


@given(values, st.floats(2**-10, 2**10, width=32), st.integers(-128, 127))
def test_against_torchs_kernel(xs: list[float], scale: float, zero_point: int) -> None:
    """The kernel multiplies by float32 1/scale: compare where that cannot tip a rounding."""
    x = torch.tensor(xs, dtype=torch.float64)
    apart = (x / scale - (x / scale).floor() - 0.5).abs() > 1e-3
    ours = fp.fake_quantize(x, scale, zero_point)
    theirs = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, -128, 127)
    assert torch.allclose(ours[apart].float(), theirs[apart], rtol=1e-6)


@pytest.mark.parametrize(("signed", "zero_point"), [(True, -68), (True, 0), (False, 60)])
def test_against_onnxruntimes_kernels(signed: bool, zero_point: int) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    dtype = np.int8 if signed else np.uint8
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    scale = np.float32(2**-7)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor_value_info("q", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n"]),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(np.array(zero_point, dtype), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.concatenate([np.arange(-400, 400) / 256, [-99, 99]]).astype(
        np.float32
    )  # every half step among them
    q, y = session.run(None, {"x": x})
    assert fp.quantize(x, scale, zero_point, signed=signed).tolist() == q.tolist()
    assert fp.fake_quantize(x, scale, zero_point, signed=signed).tolist() == y.tolist()


def test_explain_fixedpoint() -> None:
    told = fp.explain_fixedpoint(-0.499878, 2, 13)
    assert (told["integer"], told["binary"], told["clipped"]) == (-4095, "1,11,1000000000001", False)
    assert "1,11,1000000000001" in told["text"]
    assert "clipped to 127" in fp.explain_fixedpoint(99.0, 3, 4)["text"]


def test_explain_tensor() -> None:
    told = fp.explain_tensor(VALUES)
    assert [m["integers"] for m in told["methods"]] == [[-128, -34, 127], [-60, 34, 127], [-39, 22, 127]]
    assert told["methods"][1]["max_error"] == pytest.approx(1.7 - 127 * SCALE, abs=1e-4)
    assert (told["bytes_float32"], told["bytes"]) == (12, 3)
    assert "zero-point   -128 - round(-0.52 / 0.0087059) = -68" in told["text"]
    assert fp.explain_tensor([0.0])["methods"][0]["integers"] == [-128]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        pytest.param(lambda: fp.to_fixed(1.0, -1, 4), r"S\(-1.4\)", id="format"),
        pytest.param(lambda: fp.to_binary(128, 3, 4), "does not fit", id="too large"),
        pytest.param(lambda: fp.from_binary("0,12,0"), "expected sign,", id="no binary"),
        pytest.param(lambda: fp.limits(1), "2 to 32 bits", id="bits"),
        pytest.param(lambda: fp.explain_tensor([]), "finite", id="nothing"),
        pytest.param(lambda: fp.explain_tensor([float("nan")]), "finite", id="nan"),
        pytest.param(lambda: fp.explain_fixedpoint(float("inf"), 3, 4), "finite", id="inf"),
    ],
)
def test_errors_say_what_was_wrong(act, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
