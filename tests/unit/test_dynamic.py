"""Integer weights, ranges at run time, float16: against closed forms, torch's float layers and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from octavo.quantize import dynamic  # noqa: E402
from octavo.quantize.dynamic import Stored, float_twin, half, quantize_dynamic, to_onnx, weight_only  # noqa: E402


class Reader(nn.Module):
    """Two directions of LSTM or GRU over (n, time, 12), and a linear layer."""

    def __init__(self, kind: type = nn.LSTM, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True, **options}
        self.rnn = kind(12, 16, **options)
        self.fc = nn.Linear(16 * (1 + options["bidirectional"]), 5)

    def forward(self, x: Any) -> Any:
        return self.fc(self.rnn(x)[0])


@pytest.fixture
def x() -> Any:
    return torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))


# Stored weights


@pytest.mark.parametrize(
    ("bits", "group", "shape"),
    [(8, None, (5, 12)), (4, None, (5, 7)), (4, 4, (5, 12)), (4, 32, (6, 8, 2, 2)), (4, 5, (5, 12))],
)
def test_stored_weights_are_off_by_half_a_step(bits: int, group: int | None, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = Stored(weight, bits, group)
    length = weight[0].numel()
    size = group if group and length % group == 0 else length
    rows = weight.reshape(-1, size)
    step = rows.abs().amax(1) / (2 ** (bits - 1) - 1)
    error = (stored().reshape(-1, size) - rows).abs().amax(1)
    assert stored().shape == weight.shape
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert stored.integers.numel() == -(-weight.numel() * bits // 8)  # two 4-bit integers in a byte
    assert torch.equal(Stored(stored(), bits, group)(), stored())  # the grid's own values stay


def test_stored_bad_weights() -> None:
    with pytest.raises(ValueError, match="4 or 8 bits, got 3"):
        Stored(torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="float16"):
        Stored(torch.ones(2, 2).half())
    with pytest.raises(ValueError, match="finite"):
        Stored(torch.full((2, 2), float("nan")))
    assert torch.equal(Stored(torch.zeros(2, 3), 4)(), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("bits", "group", "smaller", "error"), [(8, None, 2.5, 0.02), (4, 4, 2.3, 0.2), (4, None, 4.0, 0.3)]
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_weight_only(x: Any, kind: type, bits: int, group: int | None, smaller: float, error: float) -> None:
    network = Reader(kind).eval()
    q = weight_only(network, bits=bits, group=group)
    y = network(x)
    assert (q(x) - y).norm() / y.norm() < error
    assert dynamic.stored_bytes(network) / dynamic.stored_bytes(q) > smaller
    torch.testing.assert_close(float_twin(q)(x), q(x), rtol=1e-5, atol=1e-6)
    fresh = weight_only(Reader(kind), bits=bits, group=group).eval()
    fresh.load_state_dict(q.state_dict())
    assert torch.equal(
        fresh.state_dict()["rnn.weights.weight_hh_l0.integers"], q.rnn.weights["weight_hh_l0"].integers
    )
    torch.testing.assert_close(fresh(x), q(x), rtol=1e-5, atol=1e-6)


def test_weight_only_convolutions_and_patterns() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    q = weight_only(network, "2")
    assert isinstance(q[0], nn.Conv2d)
    assert isinstance(q[2], dynamic.WeightOnly)
    image = torch.rand(1, 3, 9, 9)
    assert 0 < (q(image) - network(image)).abs().max() < 0.01
    with pytest.raises(ValueError, match="fits conv; there are: 0, 2"):
        weight_only(network, "conv")


# Ranges at run time


def test_ranges_at_run_time_are_those_of_onnx() -> None:
    """The three examples of the ONNX operator specification of DynamicQuantizeLinear."""
    for values, scale, zero, expected in (
        ([0, 2, -3, -2.5, 1.34, 0.5], 0.0196078438, 153, [153, 255, 0, 26, 221, 179]),
        ([-1.0, -2.1, -1.3, -2.5, -3.34, -4.0], 0.0156862754, 255, [191, 121, 172, 96, 42, 0]),
        ([1, 2.1, 1.3, 2.5, 3.34, 4.0, 1.5, 2.6, 3.9, 4.0, 3.0, 2.345], 0.0156862754, 0, None),
    ):
        steps, step = dynamic.round_at_run_time(torch.tensor(values))
        assert float(step) == pytest.approx(scale, rel=1e-6)
        if expected is not None:
            assert (steps + zero).tolist() == expected
    assert dynamic.round_at_run_time(torch.zeros(3))[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [24, 2000])
def test_dynamic_linear_is_the_integer_sum(inputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, 6, bias=bias), torch.randn(4, inputs)
    q = quantize_dynamic(layer)
    steps, scale = dynamic.round_at_run_time(x)
    total = steps.long() @ q.weights["weight"].integers.reshape(6, -1).long().T
    expected = total.float() * (scale * q.weights["weight"].scale[:, 0])
    assert torch.equal(q(x), expected + layer.bias if bias else expected)
    assert (q(x) - layer(x)).norm() / layer(x).norm() < 0.02
    assert q(x[:0]).shape == (0, 6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": False}, {"bidirectional": False, "num_layers": 1}, {"bias": False}],
    ids=["plain", "time first", "one way", "no bias"],
)
def test_dynamic_recurrence(x: Any, kind: type, options: dict[str, Any]) -> None:
    """The same loop with exact products is torch's own layer; with integers it is close to it."""
    network = Reader(kind, **options).eval()
    q = quantize_dynamic(network)
    y, state = network.rnn(x)
    z, other = q.rnn(x)
    assert z.shape == y.shape
    assert 1e-5 < (z - y).norm() / y.norm() < 0.03
    for a, b in zip(_tuple(state), _tuple(other), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 0.05
    again, _ = q.rnn(x, other)  # a state is taken where it is given
    assert (again - network.rnn(x, state)[0]).abs().max() < 0.05
    flat, _ = q.rnn(x[0])
    assert flat.shape == network.rnn(x[0])[0].shape


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_loop_without_rounding_is_torch_s(x: Any, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "round_at_run_time", lambda x: (x, torch.ones(())))
    q = quantize_dynamic(Reader(kind).eval())
    torch.testing.assert_close(q(x), float_twin(q)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_dynamic_cells(x: Any, kind: type) -> None:
    torch.manual_seed(0)
    cell = kind(12, 16)
    q = quantize_dynamic(nn.ModuleDict({"cell": cell}))["cell"]
    state = other = None
    for t in range(x.shape[1]):
        state, other = cell(x[:, t], state), q(x[:, t], other)
    for a, b in zip(_tuple(state), _tuple(other), strict=True):
        assert 1e-6 < (a - b).abs().max() < 0.03


def _tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def test_what_has_no_dynamic_form() -> None:
    with pytest.raises(ValueError, match="proj_size"):
        quantize_dynamic(nn.LSTM(4, 8, proj_size=2))
    with pytest.raises(ValueError, match="fits \\*; there are: none"):
        quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 1)))
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 4)])
    with pytest.raises(ValueError, match="pad the sequences"):
        quantize_dynamic(nn.LSTM(4, 8))(packed)


# ONNX Runtime


def run(path: Path, x: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    ("network", "operators", "close"),
    [
        pytest.param(
            lambda: nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)),
            {"MatMulInteger": 2},
            1e-4,
            id="linear",
        ),
        pytest.param(
            lambda: Reader(nn.LSTM), {"MatMulInteger": 1, "DynamicQuantizeLSTM": 2}, 0.02, id="lstm"
        ),
        pytest.param(lambda: Reader(nn.GRU), {"MatMulInteger": 1}, 0.02, id="gru"),
    ],
)
def test_dynamic_in_onnx_runtime(
    tmp_path: Path, x: Any, network: Any, operators: dict[str, int], close: float
) -> None:
    """close: of the output's norm. GRU stays float in ONNX Runtime, so only its linear layer is compared."""
    pytest.importorskip("onnx")
    from octavo.lower.dynamic import dynamic as make_dynamic

    torch.manual_seed(0)
    network = network().eval()
    q = quantize_dynamic(
        network, *(["fc"] if hasattr(network, "rnn") and isinstance(network.rnn, nn.GRU) else [])
    )
    to_onnx(q, tmp_path / "float.onnx", x, inputs=["x"], outputs=["y"])
    assert (run(tmp_path / "float.onnx", x) - float_twin(q)(x)).abs().max() < 1e-5
    assert make_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx") == operators
    with torch.no_grad():
        ours, theirs, exact = q(x), run(tmp_path / "int8.onnx", x), network(x)
    distance, error = (float((theirs - y).norm() / y.norm()) for y in (ours, exact))
    print(f"ONNX Runtime against torch {distance:.2g}, against the float network {error:.2g}")
    assert distance < close
    assert error < 0.05


def test_large_weights_are_found(tmp_path: Path) -> None:
    """The exporter writes those of a large LSTM as Concat and Reshape of torch's."""
    pytest.importorskip("onnx")
    from octavo.lower.dynamic import dynamic as make_dynamic

    torch.manual_seed(0)
    lstm = nn.ModuleDict({"lstm": nn.LSTM(128, 128, bidirectional=True)})["lstm"]
    linear = nn.Sequential(nn.Linear(128, 1024), nn.ReLU(), nn.Linear(1024, 8))
    cases = (
        (lstm, ["y", "h", "c"], (2, 1, 128), "DynamicQuantizeLSTM", 1),
        (linear, ["y"], (2, 128), "MatMulInteger", 2),
    )
    for network, outputs, shape, operator, count in cases:
        to_onnx(network, tmp_path / "float.onnx", torch.zeros(shape), inputs=["x"], outputs=outputs)
        assert make_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx") == {operator: count}
        assert (tmp_path / "int8.onnx").stat().st_size < 0.3 * (tmp_path / "float.onnx").stat().st_size


def test_nothing_to_make_dynamic(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from octavo.lower.dynamic import dynamic as make_dynamic

    to_onnx(nn.ReLU(), tmp_path / "float.onnx", torch.zeros(2, 3), inputs=["x"], outputs=["y"])
    with pytest.raises(ValueError, match="nothing to quantize"):
        make_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["float.onnx"]


# float16


def small() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(100, 2),
    ).eval()


def test_half_keeps_ten_bits() -> None:
    network, image = small(), torch.rand(2, 3, 9, 9) * 2 - 1
    h, y = half(network), network(image)
    assert h(image).dtype == torch.float32
    assert 0 < (h(image) - y).norm() / y.norm() < 2e-3  # 2**-11 per rounding, some of them
    assert dynamic.stored_bytes(h) < 0.52 * dynamic.stored_bytes(network)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_half_of_a_recurrent_network(x: Any) -> None:
    network = Reader().eval()
    assert (half(network)(x) - network(x)).norm() / network(x).norm() < 2e-3


def test_half_exported_takes_pixels_and_gives_floats(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from octavo.export import export
    from octavo.run.on_onnxruntime import open_network

    network, sizes = small(), {}
    preprocessing = {"offset": 128, "scale": 1 / 128}
    for name, module in (("float", network), ("half", half(network))):
        sizes[name] = export(
            module,
            tmp_path / f"{name}.onnx",
            torch.zeros(1, 3, 9, 9),
            outputs=["y"],
            preprocessing=preprocessing,
        )
    assert sizes["half"] < 0.75 * sizes["float"]
    model = onnx.load(tmp_path / "half.onnx")
    assert {c.data_type for c in model.graph.initializer if c.dims} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 9, 9), dtype=np.uint8)
    (a,), (b,) = (open_network(tmp_path / f"{name}.onnx")(image) for name in ("float", "half"))
    assert b.dtype == np.float32
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 3e-3
