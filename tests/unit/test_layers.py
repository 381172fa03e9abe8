"""Every kind of layer that quantization promises to know, each in a small network: quantized, exported, compared.

The float network says what is right, ONNX Runtime's kernels what integers make of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.export import export, parity
from octavo.quantize import Scheme, calibrate, layers, prepare
from octavo.quantize.describe import how

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PREPROCESSING = {"offset": 128, "scale": 1 / 128}
PICTURE, LINE, VOLUME = (4, 3, 12, 16), (4, 3, 40), (4, 3, 6, 8, 10)


class Net(nn.Module):
    """first -> ReLU -> what is tested -> head, a function of the parts and x."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def between(part: nn.Module, channels: int = 8, kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    """A part between a first layer (3 to 8 channels) and a head."""
    first, head = kind(3, 8, 3, padding=1), kind(channels, 4, 1)  # type: ignore[call-arg]
    return nn.Sequential(first, nn.ReLU(), part, nn.ReLU(), head)


def twice(run: Callable[[Tensor, Tensor], Tensor], channels: int = 8) -> nn.Module:
    """An operation on two values, a head behind it."""
    return Net(
        lambda n, x: n.h(run(F.relu(n.a(x)), F.relu(n.b(x)))),
        **{
            "a": nn.Conv2d(3, 8, 3, padding=1),
            "b": nn.Conv2d(3, 8, 3, padding=1),
            "h": nn.Conv2d(channels, 4, 1),
        },
    )


def activation(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 8, 3), act, nn.Conv2d(8, 4, 1))


RESHAPED = Net(
    lambda n, x: n.h(n.a(x).reshape(4, 4, 20, 14)), **{"a": nn.Conv2d(3, 8, 3), "h": nn.Conv2d(4, 2, 1)}
)
LAYERS = [
    # kind, the network, the input's shape
    ("Conv1d", between(nn.Conv1d(8, 8, 3, 2), kind=nn.Conv1d), LINE),
    ("Conv2d", between(nn.Conv2d(8, 8, 3, 2)), PICTURE),
    ("Conv3d", between(nn.Conv3d(8, 8, 3), kind=nn.Conv3d), VOLUME),
    ("ConvTranspose1d", between(nn.ConvTranspose1d(8, 6, 4, 2), 6, nn.Conv1d), LINE),
    ("ConvTranspose2d", between(nn.ConvTranspose2d(8, 6, 4, 2), 6), PICTURE),
    ("ConvTranspose3d", between(nn.ConvTranspose3d(8, 6, 2, 2), 6, nn.Conv3d), VOLUME),
    ("Linear", nn.Sequential(nn.Flatten(), nn.Linear(576, 9), nn.ReLU(), nn.Linear(9, 4)), PICTURE),
    ("MaxPool", between(nn.MaxPool2d(3, 2, ceil_mode=True)), PICTURE),
    ("AvgPool", between(nn.AvgPool2d(2)), PICTURE),
    ("AdaptiveAvgPool", between(nn.AdaptiveAvgPool2d(1)), PICTURE),
    ("Add", twice(lambda a, b: a + b), PICTURE),
    ("Concat", twice(lambda a, b: torch.cat([a, b], 1), 16), PICTURE),
    ("Mul", twice(lambda a, b: a * b), PICTURE),
    ("MatMul", twice(lambda a, b: a @ b.transpose(2, 3)), PICTURE),
    ("ReLU", activation(nn.ReLU()), PICTURE),
    ("ReLU6", activation(nn.ReLU6()), PICTURE),
    ("LeakyReLU", activation(nn.LeakyReLU(0.1)), PICTURE),
    ("PReLU", activation(nn.PReLU(8)), PICTURE),
    ("Mul", activation(nn.SiLU()), PICTURE),  # as y · sigmoid(y)
    ("Hardswish", activation(nn.Hardswish()), PICTURE),
    ("Sigmoid", activation(nn.Sigmoid()), PICTURE),
    ("Upsample", between(nn.Upsample(scale_factor=2)), PICTURE),
    ("Upsample", between(nn.Upsample(scale_factor=2, mode="bilinear")), PICTURE),
    ("Reshape", RESHAPED, PICTURE),
]  # fmt: skip


def pixels(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "net", "shape"), [pytest.param(*row, id=f"{row[0]} {i}") for i, row in enumerate(LAYERS)]
)
def test_each_layer_quantized_and_exported(
    kind: str, net: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)  # the networks were made when the tests were collected, with other weights each time
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    net.eval()
    batches = [(pixels(shape, seed).float() - 128) / 128 for seed in range(3)]
    model = prepare(net, Scheme.for_target("cpu"))
    assert kind in {node.meta["kind"] for node in model.graph.nodes}
    assert not [node for node in model.graph.nodes if "not a kind known" in how(node, model)]
    calibrate(model, batches)
    assert len(layers(model)) == sum(
        isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in net.modules()
    )

    x = (pixels(shape, 9).float() - 128) / 128
    with torch.no_grad():
        wanted, got = net(x), model(x)
    assert 25 < 10 * math.log10(float(wanted.square().sum() / (wanted - got).square().sum())) < 60

    path = tmp_path / "net.onnx"
    export(model, path, torch.zeros(shape), outputs=["y"], preprocessing=PREPROCESSING)
    found = parity(model, path, [pixels(shape, 9)])
    assert found.ok, found


def test_a_size_that_changes_between_batches() -> None:
    """A convolutional network takes any; ranges are those of all."""
    net = activation(nn.ReLU()).eval()
    model = prepare(net, Scheme.for_target("cpu"))
    calibrate(model, [torch.ones(1, 3, 9, 9) * 0.1, torch.ones(2, 3, 20, 7) * 0.9])
    with torch.no_grad():
        for shape in ((1, 3, 9, 9), (3, 3, 31, 8)):
            x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            assert model(x).shape == net(x).shape
