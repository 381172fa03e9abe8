"""What do weight-only, dynamic and half-precision networks gain in ONNX Runtime, and what do they lose?

    python benchmarks/dynamic_layers.py

Layers of the sizes that text readers have, random weights and inputs: kB of the file, ms per call with one
thread (forms in turn, median of the rounds), error = |y - float y| / |float y|. Weights of 4 and 8 bits are
stored by torch and run as float; their kB are those of the state dict. -> results/dynamic_layers.csv
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import onnxruntime
import torch
from torch import Tensor, nn

from octavo.evaluate import record
from octavo.lower.dynamic import dynamic
from octavo.quantize.dynamic import half, stored_bytes, to_onnx, weight_only
from octavo.run.on_onnxruntime import session_options


class First(nn.Module):
    """A recurrent layer's sequence, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """VietOCR's encoder reads 32 to 128 columns of 512 values with 256 hidden ones."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    return {
        "LSTM, 2 layers, both ways, 64 steps": (First(nn.LSTM(512, 256, **options)), torch.randn(1, 64, 512)),
        "GRU, 2 layers, both ways, 64 steps": (First(nn.GRU(512, 256, **options)), torch.randn(1, 64, 512)),
        "Linear 256-2048-256, 64 rows": (
            nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 256)),
            torch.randn(64, 256),
        ),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    file = options.out / "dynamic_layers.csv"
    for name, (network, x) in networks().items():
        if not options.again and common.there(file, network=name):
            print(name, "there already")
            continue
        for row in measure(network.eval(), x, options.rounds):
            record.append(
                file, {"network": name, **row}, model=name, data="random", split="", command=common.command()
            )
            print(name, *row.values(), flush=True)


def measure(network: nn.Module, x: Tensor, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        paths = {form: Path(temporary) / f"{form}.onnx" for form in ("float", "float16", "dynamic int8")}
        to_onnx(network, paths["float"], x, inputs=["x"], outputs=["y"])
        to_onnx(half(network), paths["float16"], x, inputs=["x"], outputs=["y"])
        if isinstance(getattr(network, "layer", None), nn.GRU):
            del paths["dynamic int8"]  # ONNX Runtime has none
        else:
            dynamic(paths["float"], paths["dynamic int8"])
        sessions = {
            form: onnxruntime.InferenceSession(
                str(path), session_options(1), providers=["CPUExecutionProvider"]
            )
            for form, path in paths.items()
        }
        feed = {"x": x.numpy()}
        times: dict[str, list[float]] = {form: [] for form in sessions}
        for _ in range(rounds + 3):
            for form, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feed)
                times[form].append((time.perf_counter() - start) * 1000)
        exact = network(x)

        def error(y: Tensor) -> float:
            return float((y - exact).norm() / exact.norm())

        rows = []
        first = statistics.median(times["float"][3:])
        for form, session in sessions.items():
            ms = statistics.median(times[form][3:])
            y = torch.from_numpy(session.run(None, feed)[0])
            kilobytes = paths[form].stat().st_size / 1000
            rows.append({"form": form, "kB": kilobytes, "ms": ms, "times": first / ms, "error": error(y)})
        for form, bits, group in (("weights int8", 8, None), ("weights int4, groups of 32", 4, 32)):
            q = weight_only(network, bits=bits, group=group)
            rows.append(
                {"form": form, "kB": stored_bytes(q) / 1000, "ms": "", "times": "", "error": error(q(x))}
            )
    return rows


if __name__ == "__main__":
    main()
