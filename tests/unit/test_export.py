"""What is written: read back with onnx, run with ONNX Runtime, compared with torch bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.quantize import Grid, Scheme, calibrate, prepare

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from octavo.export import Parity, export, parity  # noqa: E402

PIXELS = {"offset": 128.0, "scale": 1 / 128}
CPU = Scheme.for_target("cpu", quantize_outputs=True)


class Net(nn.Module):
    def __init__(self, run: Callable[[Net, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def pixels(n: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    shape = (n, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(image: Tensor) -> Tensor:
    return (image.float() - 128) / 128


def quantized(net: nn.Module, scheme: Scheme = CPU, size: int = 16) -> nn.Module:
    model = prepare(net.eval(), scheme)
    calibrate(model, [normalised(pixels(4, size, size, seed)) for seed in range(3)])
    return model


def write(net: nn.Module, path: Path, **options: Any) -> Path:
    options = {"outputs": ["y"], "preprocessing": PIXELS, **options}
    export(net, path, pixels(1), **options)
    return path


def runtime_operators(path: Path, folder: Path) -> Counter[str]:
    """Operators left after ONNX Runtime's own rewriting: those that it will run."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def pnet() -> nn.Module:
    """A fully convolutional network with two heads, as the first of a face detector's."""
    return Net(
        lambda n, x: (lambda y: (n.face(y), n.box(y)))(n.body(x)),
        body=nn.Sequential(
            *(
                nn.Conv2d(3, 10, 3, bias=False),
                nn.BatchNorm2d(10),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ),
            *(nn.Conv2d(10, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()),
        ),
        face=nn.Conv2d(32, 2, 1),
        box=nn.Conv2d(32, 4, 1),
    )


def rnet() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Conv2d(3, 28, 3),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(28, 48, 3),
            nn.ReLU(),
        ),
        *(nn.Flatten(), nn.Linear(48 * 25, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4)),
    )


# ---- the same bits

# Networks, and the operators ONNX Runtime must have made of them.
INTEGER = [
    pytest.param(rnet(), {"QLinearConv": 2, "QGemm": 2}, id="convs, pools, linear layers"),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(n.b(F.relu(n.a(x))) + n.c(x))),
            **{"a": conv(3, 16), "b": conv(16, 16), "c": conv(3, 16), "h": conv(16, 4)},
        ),
        {"QLinearConv": 4, "QLinearAdd": 1},
        id="residual",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(torch.cat([F.relu(n.a(x)), F.max_pool2d(F.relu(n.b(x)), 3, 1, 1)], 1)),
            **{"a": conv(3, 16), "b": conv(3, 16), "h": conv(32, 4)},
        ),
        {"QLinearConv": 3, "QLinearConcat": 1},
        id="concat",
    ),
    pytest.param(
        Net(lambda n, x: n.h(F.relu(n.a(F.relu(n.a(F.relu(n.i(x))))))), i=conv(3, 8), a=conv(8, 8), h=conv(8, 4)),
        {"QLinearConv": 4},
        id="a layer called twice",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu6(n.g(F.relu(n.d(F.relu(n.a(x))))))),
            **{"a": conv(3, 16, stride=2), "d": conv(16, 16, groups=16), "g": conv(16, 16, groups=4, dilation=2)},
            **{"h": conv(16, 4, bias=False)},
        ),
        {"QLinearConv": 4},
        id="depthwise, groups, stride, dilation, ReLU6, no bias",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.avg_pool2d(F.interpolate(F.relu(n.a(x)), scale_factor=2), 4)),
            **{"a": conv(3, 16), "h": conv(16, 4)},
        ),
        {"QLinearConv": 2, "QLinearAveragePool": 1},
        id="average pool, upsampling",
    ),
    pytest.param(
        Net(lambda n, x: n.h((lambda y: y * torch.sigmoid(y))(n.a(x))), a=conv(3, 16), h=conv(16, 4)),
        {"QLinearConv": 2, "QLinearMul": 1, "QLinearSigmoid": 1},
        id="mul",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h((lambda a, b: torch.cat([b, F.relu(n.b(a))], 1))(*(n.s(x)[:, i::2] for i in (0, 1)))),
            **{"s": nn.Sequential(conv(3, 16), nn.ReLU()), "b": conv(8, 8), "h": conv(16, 4)},
        ),
        {"QLinearConv": 3, "QLinearConcat": 1},
        id="slices",
    ),
    pytest.param(
        Net(lambda n, x: n.h(F.silu(n.a(x))), a=conv(3, 16), h=conv(16, 4)),
        {"QLinearConv": 2, "QLinearMul": 1, "QLinearSigmoid": 1},
        id="SiLU",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(n.l(F.relu(n.a(x)).flatten(2).transpose(1, 2)))),
            **{"a": conv(3, 8), "l": nn.Linear(8, 16), "h": nn.Linear(16, 4)},
        ),
        {"QLinearConv": 1, "QGemm": 2},
        id="linear layers on three axes",
    ),
]  # fmt: skip
FLOAT = [
    pytest.param(
        Net(lambda n, x: n.h(n.p(n.a(x))), a=conv(3, 16), p=nn.PReLU(16), h=conv(16, 4)),
        {"QLinearConv": 1, "PRelu": 1},
        id="PReLU",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(n.t(F.relu(n.a(x))))),
            **{"a": conv(3, 8), "t": nn.ConvTranspose2d(8, 8, 2, 2), "h": conv(8, 4)},
        ),
        {"QLinearConv": 2, "ConvTranspose": 1},
        id="transposed",
    ),
    pytest.param(
        Net(lambda n, x: n.h(torch.cat([F.relu(n.a(x)), x], 1)), a=conv(3, 16), h=conv(19, 4)),
        {"QLinearConv": 1, "QLinearConcat": 1},
        id="the image joined",
    ),
]  # fmt: skip


def seeded(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for m in net.modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    return net


@pytest.mark.parametrize(("net", "operators"), INTEGER)
def test_onnx_runtime_computes_the_same_bits_in_integers(
    net: nn.Module, operators: dict[str, int], tmp_path: Path
) -> None:
    model = quantized(seeded(net))
    path = write(model, tmp_path / "net.onnx")
    result = parity(model, path, [pixels(1, seed=s) for s in range(8)])
    assert result.verdict == "bit for bit", str(result)
    found = runtime_operators(path, tmp_path)
    assert {name: found[name] for name in operators} == operators
    assert not found["Conv"] + found["FusedConv"] + found["Gemm"] + found["MatMul"]
    table = str(model)
    assert "float: " not in table, table


@pytest.mark.parametrize(("net", "operators"), FLOAT)
def test_what_stays_float_agrees_but_for_a_step_here_and_there(
    net: nn.Module, operators: dict[str, int], tmp_path: Path
) -> None:
    model = quantized(seeded(net))
    path = write(model, tmp_path / "net.onnx")
    result = parity(model, path, [pixels(1, seed=s) for s in range(8)])
    assert result.ok, str(result)
    assert min(o.equal for o in result.outputs) > 0.99
    found = runtime_operators(path, tmp_path)
    assert {name: found[name] for name in operators} == operators


def test_any_size_of_image(tmp_path: Path) -> None:
    model = quantized(seeded(pnet()), size=24)
    path = tmp_path / "pnet.onnx"
    export(
        model,
        path,
        pixels(1, 48, 64),
        dynamic={2: "h", 3: "w"},
        outputs=["face", "box"],
        preprocessing=PIXELS,
    )
    sizes = [(12, 12), (13, 17), (48, 64), (121, 30), (12, 200)]
    result = parity(model, path, [pixels(1, h, w) for h, w in sizes])
    assert result.verdict == "bit for bit", str(result)
    assert [o.name for o in result.outputs] == ["face", "box"]
    found = runtime_operators(path, tmp_path)
    assert (found["QLinearConv"], found["Conv"]) == (5, 0)


def test_float_heads_are_floats(tmp_path: Path) -> None:
    model = quantized(seeded(pnet()), Scheme.for_target("cpu"), size=24)
    path = write(model, tmp_path / "pnet.onnx", dynamic={2: "h", 3: "w"}, outputs=["face", "box"])
    result = parity(model, path, [pixels(1, 40, 50)])
    assert result.verdict == "float rounding", str(result)
    assert max(o.largest_difference for o in result.outputs) < 1e-5
    found = runtime_operators(path, tmp_path)
    assert (found["QLinearConv"], found["Conv"]) == (3, 2)


def test_on_photographs(tmp_path: Path, shared: Path) -> None:
    from octavo.images import read

    files = sorted((shared / "data" / "faces" / "WIDER_val" / "images").glob("*/*.jpg"))[::200]
    images = [
        torch.from_numpy(np.ascontiguousarray(read(f).transpose(2, 0, 1)[None, :, :300, :300])) for f in files
    ]
    assert images
    model = prepare(seeded(pnet()).eval(), CPU)
    calibrate(model, [normalised(image) for image in images])
    path = write(model, tmp_path / "pnet.onnx", dynamic={2: "h", 3: "w"}, outputs=["face", "box"])
    result = parity(model, path, images)
    assert result.verdict == "bit for bit", str(result)
    assert result.images == len(images)


@pytest.mark.parametrize(
    "net", [pytest.param(pnet, id="convolutional"), pytest.param(rnet, id="with linear layers")]
)
def test_float_networks(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    module = seeded(net())
    module.train()
    module(normalised(pixels(4)))
    module.eval()
    outputs = ["face", "box"] if net is pnet else ["y"]
    path = write(module, tmp_path / "float.onnx", dynamic={0: "n"}, outputs=outputs)
    result = parity(module, path, [pixels(3)], PIXELS)
    assert result.verdict in ("bit for bit", "float rounding"), str(result)
    assert max(o.largest_difference for o in result.outputs) < 1e-5
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def test_parity_sees_a_difference(tmp_path: Path) -> None:
    module = seeded(rnet()).eval()
    path = write(module, tmp_path / "net.onnx", dynamic={0: "n"})
    with torch.no_grad():
        module[0].weight.mul_(1.5)  # type: ignore[index,operator]
    result = parity(module, path, [pixels(8)], PIXELS)
    assert (result.verdict, result.ok) == ("different", False)
    assert "different on 8 images" in str(result)
    assert Parity(**result.to_dict()).verdict == "different"
    with torch.no_grad():
        module[0].weight.fill_(torch.nan)  # type: ignore[index,operator]
    assert parity(module, path, [pixels(8)], PIXELS).verdict == "different"


# ---- the graph


def edges(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, list[Any]]]:
    """The model; {tensor: its maker}; {constant: array}; {tensor: its readers}."""
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return model, makers, constants, readers


def test_rules_of_the_cpu_target(tmp_path: Path) -> None:
    model, makers, constants, readers = edges(write(quantized(seeded(rnet())), tmp_path / "net.onnx"))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 19)]
    (first,) = readers["image"]
    assert first.op_type == "DequantizeLinear", "pixels are the grid: nothing to round"
    assert (constants[first.input[1]], constants[first.input[2]]) == (np.float32(1 / 128), np.uint8(128))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 3, "zero-points are always said"
        if node.op_type in ("Conv", "Gemm"):
            inputs = [makers[name] for name in node.input]
            assert {n.op_type for n in inputs} == {"DequantizeLinear"}
            data, weight, bias = inputs
            step = constants[data.input[1]] * constants[weight.input[1]]
            assert np.array_equal(constants[bias.input[1]], step)
            assert (constants[weight.input[0]].dtype, constants[bias.input[0]].dtype) == (np.int8, np.int32)
            assert constants[weight.input[0]].min() >= -127
            assert not constants[weight.input[2]].any()


def test_rules_of_the_tensorrt_target(tmp_path: Path) -> None:
    net = Net(
        lambda n, x: n.h(torch.cat([F.silu(n.a(x)), F.max_pool2d(F.relu(n.b(x)), 3, 1, 1)], 1)),
        **{"a": conv(3, 16), "b": conv(3, 16), "h": conv(32, 4)},
    )
    quant = quantized(seeded(net), Scheme.for_target("tensorrt"))
    path = write(quant, tmp_path / "net.onnx", target="tensorrt")
    model, makers, constants, readers = edges(path)
    types = [node.op_type for node in model.graph.node]
    assert types[:3] == ["Cast", "Sub", "Mul"]
    scales = set()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        if node.op_type == "Conv":
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert node.input[2] in constants, "biases stay float"
            assert {reader.op_type for reader in readers.get(node.output[0], [])} <= {
                "Relu",
                "Sigmoid",
                "Mul",
            }
        if node.op_type == "Concat":
            for name in node.input:
                assert makers[name].op_type == "DequantizeLinear"
                scales.add(makers[name].input[1])
            (reader,) = readers[node.output[0]]
            assert reader.op_type == "QuantizeLinear"
            scales.add(reader.input[1])
    assert len(scales) == 1, "one scale at a Concat"
    assert parity(quant, path, [pixels(1)]).ok


def test_nothing_but_the_network_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = quantized(seeded(rnet()))
    size = export(model, path, pixels(1), dynamic={0: "n"}, outputs=["y"], preprocessing=PIXELS)
    assert size == path.stat().st_size
    weights = sum(p.numel() for p in model.parameters())
    graph = onnx.load(path).graph
    assert size < weights + 13 * (28 + 48 + 64 + 4) + 80 * len(graph.node)
    assert size < 0.3 * write(seeded(rnet()).eval(), tmp_path / "float.onnx").stat().st_size
    for node in graph.node:
        assert not node.metadata_props
        assert bool(node.name) == (node.op_type in ("Conv", "Gemm"))
    assert [n.name for n in graph.node if n.name] == ["0", "3", "6", "9"]
    assert not graph.value_info
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["n", 3, 16, 16]
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["n", 4]
    onnx.checker.check_model(str(path), full_check=True)


def test_floats_lie_where_they_can_be_read_in_place(tmp_path: Path) -> None:
    for net in (rnet(), nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), nn.Linear(1280, 3))):
        path = write(quantized(seeded(net)), tmp_path / "net.onnx")
        content = path.read_bytes()
        words = [c for c in onnx.load(path).graph.initializer if c.data_type in (1, 6) and len(c.dims)]
        assert len(words) > 4
        for constant in words:
            assert content.index(constant.raw_data) % 4 == 0 or not any(constant.raw_data)


def test_smaller_grids_are_clipped(tmp_path: Path) -> None:
    scheme = Scheme.for_target(
        "cpu",
        weight=Grid(bits=4, granularity="group", narrow=True, group=16),
        activation=Grid(bits=6, signed=False, symmetric=False),
        quantize_outputs=True,
    )
    net = Net(lambda n, x: n.h(F.relu(n.b(F.relu(n.a(x))))), a=conv(3, 16), b=conv(16, 16), h=conv(16, 4))
    model = quantized(seeded(net), scheme)
    path = write(model, tmp_path / "net.onnx", dynamic={0: "n"})
    result = parity(model, path, [pixels(4, seed=7)])
    assert result.ok, str(result)
    assert min(o.equal for o in result.outputs) > 0.98


def test_other_preprocessing(tmp_path: Path) -> None:
    """Pixels / 255 are a grid too; pixels less 127.5 aren't, and are rounded behind the normalisation."""
    net = seeded(rnet()).eval()
    model = prepare(net, Scheme.for_target("cpu", input_range=(0.0, 1.0)))
    calibrate(model, [pixels(4).float() / 255])
    path = write(model, tmp_path / "a.onnx", preprocessing={"offset": 0.0, "scale": 1 / 255})
    assert onnx.load(path).graph.node[0].op_type == "DequantizeLinear"
    assert parity(model, path, [pixels(1)]).verdict == "bit for bit"
    half = {"offset": 127.5, "scale": 1 / 128}
    model = prepare(net, Scheme.for_target("cpu", input_range=None))
    calibrate(model, [(pixels(4).float() - 127.5) / 128])
    path = write(model, tmp_path / "b.onnx", preprocessing=half)
    assert [node.op_type for node in onnx.load(path).graph.node[:4]] == [
        "Cast",
        "Sub",
        "Mul",
        "QuantizeLinear",
    ]
    assert parity(model, path, [pixels(1)], half).ok


# ---- refusals


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    net = seeded(rnet()).eval()
    with pytest.raises(ValueError, match="no range yet"):
        write(prepare(net, CPU), path)
    model = quantized(net)
    with pytest.raises(ValueError, match="quantized for cpu, not tensorrt"):
        write(model, path, target="tensorrt")
    with pytest.raises(ValueError, match="does not read Q/DQ"):
        write(quantized(net, Scheme.for_target("arm")), path)
    with pytest.raises(ValueError, match="1 outputs, 2 names"):
        write(model, path, outputs=["a", "b"])
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    with pytest.raises(ValueError, match="cannot export the network with varying h: "):
        write(fixed, path, dynamic={2: "h"})
    assert not list(tmp_path.iterdir()), "nothing is left of what failed"
    write(model, path)
    with pytest.raises(ValueError, match="at least one batch"):
        parity(model, path, [])
    with pytest.raises(ValueError, match="uint8 pixels"):
        parity(model, path, [normalised(pixels(1))])
    with pytest.raises(ValueError, match="preprocessing="):
        parity(net, path, [pixels(1)])


def test_exporting_prints_nothing(tmp_path: Path) -> None:
    code = (
        "import torch; from torch import nn; from octavo.export import export\n"
        f"export(nn.Conv2d(3, 4, 3), {str(tmp_path / 'a.onnx')!r}, torch.zeros(1, 3, 8, 8), dynamic={{2: 'h', 3: 'w'}},"
        " outputs=['y'], preprocessing={'offset': 128, 'scale': 1 / 128})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(seeded(rnet()).eval(), tmp_path / "net.onnx")
    before = path.read_bytes()

    def full(*args: Any) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(quantized(seeded(rnet())), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
