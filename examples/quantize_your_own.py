"""Your own network, from float to INT8 in ONNX Runtime, in less than a minute.

A small CNN learns to tell drawn discs, squares and crosses apart; then it is prepared, calibrated, exported,
checked, and compared with its float self: accuracy, size, time. Put your module and your images in their place.

    python examples/quantize_your_own.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.export import export, parity
from octavo.lower.check import check
from octavo.quantize import Scheme, calibrate, prepare
from octavo.run.on_onnxruntime import open_network

SIZE = 32
PREPROCESSING = {"offset": 128, "scale": 1 / 128}  # the network takes (pixels - 128) / 128


class Shapes(nn.Module):
    """Any module that torch.fx can trace will do: no quantization in sight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right = (nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()) for _ in range(2))
        self.down = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(torch.cat([x + self.left(x), self.right(x)], 1))
        return self.head(torch.flatten(self.pool(x), 1))


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3, 32, 32) uint8 pictures of a disc (0), a square (1) or a cross (2) in noise, and which."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (count,), generator=random)
    middle = torch.rand(count, 2, 1, 1, generator=random) * 12 + 10
    radius = torch.rand(count, 1, 1, generator=random) * 4 + 4
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")).float()
    dy, dx = (grid - middle).abs().unbind(1)
    drawn = torch.stack(
        [
            dy**2 + dx**2 < radius**2,
            torch.maximum(dy, dx) < radius,
            (torch.minimum(dy, dx) < 2) & (dy + dx < radius),
        ]
    )
    shape = drawn[kind, torch.arange(count)][:, None]
    colour = torch.rand(count, 3, 1, 1, generator=random) * 90 + 30
    noise = torch.randn(count, 3, SIZE, SIZE, generator=random) * 30
    return (80 + noise + colour * shape).clamp(0, 255).to(torch.uint8), kind


def normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() - PREPROCESSING["offset"]) * PREPROCESSING["scale"]


def train(network: nn.Module, steps: int = 200) -> None:
    pixels, kind = draw(2048, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        some = torch.arange(step * 64, step * 64 + 64) % len(pixels)
        loss = F.cross_entropy(network(normalise(pixels[some])), kind[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def judge(path: Path, pixels: Tensor, kind: Tensor) -> tuple[float, float]:
    """Accuracy, and milliseconds per picture (the best of some rounds), in ONNX Runtime with one thread."""
    network, arrays = open_network(path), pixels.numpy()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (scores,) = network(arrays)
        times.append(time.perf_counter() - start)
    return float((scores.argmax(1) == kind.numpy()).mean()), min(times) / len(arrays) * 1000


def main(folder: Path) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = Shapes()
    train(network)

    # The four lines that matter. Calibration takes pictures without labels.
    scheme = Scheme.for_target("cpu")
    qmodel = prepare(network, scheme)
    calibrate(qmodel, [normalise(batch) for batch in draw(128, seed=1)[0].split(32)])
    print(qmodel)

    how = {"dynamic": {0: "n"}, "outputs": ["scores"], "preprocessing": PREPROCESSING}
    example = torch.zeros(1, 3, SIZE, SIZE)
    sizes = {
        "float": export(network, folder / "float.onnx", example, **how),
        "int8": export(qmodel, folder / "int8.onnx", example, target="cpu", **how),
    }
    pixels, kind = draw(512, seed=2)
    print(
        "\nint8.onnx against the quantized network in torch:",
        parity(qmodel, folder / "int8.onnx", [pixels.numpy()]),
    )
    print(
        "\nRules of ONNX Runtime that it breaks:", *check(folder / "int8.onnx", "cpu") or ["none"], sep="\n  "
    )

    measured = {}
    print(f"\n{'':8}{'accuracy':>10}{'kB':>8}{'ms a picture':>15}")
    for name, size in sizes.items():
        accuracy, milliseconds = judge(folder / f"{name}.onnx", pixels, kind)
        print(f"{name:8}{accuracy:10.4f}{size / 1000:8.1f}{milliseconds:15.4f}")
        measured[name] = accuracy
    return measured


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
