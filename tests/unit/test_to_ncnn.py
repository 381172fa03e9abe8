"""ncnn's files: their layout by hand, and what ncnn computes from them against torch where it is installed."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from octavo.export import to_ncnn
from octavo.export.to_ncnn import Integers, answering_integers, calibration_table, read_layers, with_integers
from octavo.quantize import Scheme, calibrate, grids, prepare

needs_ncnn = pytest.mark.skipif(
    not (find_spec("ncnn") and find_spec("pnnx")), reason="needs ncnn and pnnx: pip install 'octavo[ncnn]'"
)
PREPROCESSING = {"offset": 128.0, "scale": 1 / 128}

# A convolution of 1 to 3 channels with biases, handed to one of 3 to 1 and to an output: as pnnx writes it.
PARAM = """7767517
5 6
Input                    in0                      0 1 in0
Convolution              first                    1 1 in0 1 0=3 1=1 5=1 6=3 9=1
Split                    split                    1 2 1 2 3
Convolution              second                   1 1 2 out0 0=1 1=1 5=0 6=3
PReLU                    third                    1 1 3 out1 0=3
"""
FIRST, BIASES, SECOND, SLOPES = ([1.0, -0.5, 0.25], [4.0, 5, 6], [0.1, 0.2, 0.3], [0.7, 0.8, 0.9])
TAG = struct.pack("<I", 0)
BIN = b"".join(
    [
        *(TAG, struct.pack("<3f", *FIRST), struct.pack("<3f", *BIASES)),
        *(TAG, struct.pack("<3f", *SECOND), struct.pack("<3f", *SLOPES)),
    ]
)


def ours(name: str, weight: list[float], input_scale: float) -> Integers:
    floats = np.array(weight, "<f4")
    integers, scale = np.array([127, -127, 127], np.int8), 127 / np.abs(floats)
    return Integers(name, floats.tobytes(), integers, scale.astype(np.float32), input_scale)


def test_what_is_read_is_written_again() -> None:
    layers = list(read_layers(PARAM, BIN))
    assert [layer.kind for layer in layers] == ["Input", "Convolution", "Split", "Convolution", "PReLU"]
    assert layers[2].tops == ("2", "3")
    assert to_ncnn.text(layers).split() == PARAM.split()
    assert b"".join(layer.stored() for layer in layers) == BIN


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="a way not known here: 4 bytes are left"):
        list(read_layers(PARAM, BIN + bytes(4)))


def test_layout_of_an_integer_layer() -> None:
    """ncnn's ModelBin: a tag, int8 up to four bytes, bias, then the scales of weights and input, in float32."""
    layer = with_integers(list(read_layers(PARAM, BIN))[1], [ours("conv", FIRST, 20)])
    assert layer.parameters["8"] == "1"
    assert layer.stored() == b"".join(
        [
            struct.pack("<I", 0x000D4B38) + bytes([127, 129, 127]) + b"\0",
            struct.pack("<3f", *BIASES),
            struct.pack("<3f", 127, 254, 508) + struct.pack("<f", 20),
        ]
    )


def test_a_layer_without_integers_stays_as_it_is() -> None:
    layers = list(read_layers(PARAM, BIN))
    assert [with_integers(layer, [ours("conv", [9, 9, 9], 20)]) for layer in layers] == layers


@pytest.mark.parametrize(("outputs_too", "term"), [(False, "101"), (True, "1")])
def test_a_layer_rounds_its_answer_where_integers_read_it(outputs_too: bool, term: str) -> None:
    """Through the Split its answer goes to `second` alone, or to a PReLU, which wants floats, as well."""
    lines = PARAM if outputs_too else PARAM.replace("PReLU                    third ", "Convolution third ")
    lines = lines if outputs_too else lines.replace("3 out1 0=3", "3 out1 0=1 1=1 5=0 6=3")
    stored = BIN if outputs_too else BIN[:-12] + TAG + struct.pack("<3f", *SECOND)
    integers = [ours("a", FIRST, 20), ours("b", SECOND, 30)]
    layers = [with_integers(layer, integers) for layer in read_layers(lines, stored)]
    made = answering_integers(layers[1], layers)
    assert made.parameters["8"] == term
    assert made.others[-1].tolist() == ([20] if outputs_too else [30])
    assert answering_integers(layers[3], layers) is layers[3]  # an output of the network


def test_the_table_is_that_of_ncnn2table() -> None:
    layers = list(read_layers(PARAM, BIN))
    table = calibration_table([with_integers(layer, [ours("conv", FIRST, 20)]) for layer in layers])
    assert table == "first_param_0 127 254 508\nfirst 20\n"


class Small(nn.Module):
    """Convolutions of every kind that ncnn has integers for, and an Add, which it has none for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.wise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU())
        self.across = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        return self.head(x + self.across(self.wise(x))), x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 8)


def batches(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, 3, 34, 42), np.uint8) for _ in range(count)]


def normalised(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).float() - 128) / 128


def written(module: nn.Module, path: Path) -> Path:
    shape = torch.zeros(1, 3, 34, 42)
    free = {2: "height", 3: "width"}
    to_ncnn.write(module, path, shape, dynamic=free, outputs=("a", "b"), preprocessing=PREPROCESSING)
    return path.with_name(path.name + ".ncnn.param")


@needs_ncnn
def test_float_network_in_ncnn(tmp_path: Path) -> None:
    from octavo.run.on_ncnn import open_network

    torch.manual_seed(0)
    module = Small().eval()
    net = open_network(written(module, tmp_path / "small"))
    assert (net.inputs, net.outputs) == (("image",), ("a", "b"))
    assert not (tmp_path / "small.ncnn.table").exists()
    for pixels in (*batches(1), np.random.default_rng(1).integers(0, 256, (2, 3, 50, 60), np.uint8)):
        with torch.inference_mode():
            expected = module(normalised(pixels))
        for found, wanted in zip(net(pixels), expected, strict=True):
            assert found.shape == wanted.shape
            assert np.abs(found - wanted.numpy()).max() < 1e-5


@needs_ncnn
def test_integers_in_ncnn(tmp_path: Path) -> None:
    """The same integers: what differs is a value between two steps, now and then, by one step of a layer."""
    from octavo.run.on_ncnn import open_network

    torch.manual_seed(0)
    module = prepare(Small().eval(), Scheme.for_target("arm"))
    calibrate(module, (normalised(pixels) for pixels in batches()))
    net = open_network(written(module, tmp_path / "small"))
    table = (tmp_path / "small.ncnn.table").read_text().splitlines()
    assert len(table) == 2 * 4
    pixels = batches(1)[0]
    with torch.inference_mode():
        expected = module(normalised(pixels))
    (a, b), (wanted_a, wanted_b) = net(pixels), (output.numpy() for output in expected)
    step = float(grids(module)["stem_2_grid"].scale)
    assert np.abs(b - wanted_b).max() <= 0.501 * step  # an output, which only torch rounds
    assert np.abs(a - wanted_a).mean() < 0.01 * np.abs(wanted_a).max()


def test_affine_grids_are_refused(tmp_path: Path) -> None:
    module = prepare(Small().eval(), Scheme.for_target("cpu"))
    calibrate(module, (normalised(pixels) for pixels in batches()))
    with pytest.raises(
        ValueError, match=r"ncnn knows symmetric grids only: octavo quantize \.\.\. --target arm"
    ):
        written(module, tmp_path / "small")
