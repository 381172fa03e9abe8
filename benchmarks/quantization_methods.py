"""How near does each calibrator, and each method on weights, keep a network to its float twin?

    python benchmarks/quantization_methods.py

On the published MTCNN: signal to noise of all outputs in dB, 10 log10(sum y^2 / sum (y - y')^2) with y in float,
on windows of other photographs than those calibrated with, and the CPU seconds of the method on one thread.
SQNR needs no labels and separates methods finely; AP decides (ptq.py).
-> results/quantization_methods.csv
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn

from octavo.evaluate import record
from octavo.models.mtcnn.data import calibration_batches
from octavo.models.mtcnn.net import build, import_weights
from octavo.models.mtcnn.predict import Settings
from octavo.quantize import Grid, Scheme, calibrate, prepare
from octavo.quantize.equalize import correct_bias, equalize
from octavo.quantize.rounding import learn_rounding

CALIBRATORS: list[tuple[str, dict[str, float]]] = [
    ("max", {}),
    ("moving_average", {}),
    ("percentile", {"percentile": 99.99}),
    ("percentile", {"percentile": 99.9}),
    ("mse", {}),
    ("entropy", {}),
]
METHODS = ("plain", "equalized", "bias corrected", "equalized, bias corrected", "learned rounding")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/mtcnn"))
    parser.add_argument(
        "--images", type=int, default=40, help="photographs: half to calibrate, half to test [40]"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.out / "quantization_methods.csv"
    origin = {"model": "mtcnn", "data": options.data.name, "split": "train"}
    networks = build("mtcnn")
    for name, state in import_weights(options.weights).items():
        networks[name].load_state_dict(state)
        networks[name].eval()
    for name, network in networks.items():
        seen: list[Tensor] = []
        for how in cases():
            key = {"network": name, **how, "images": options.images // 2}
            if not options.again and common.there(file, **origin, **key):
                continue
            seen = seen or batches(name, networks, options)
            half = len(seen) // 2
            metrics = measure(network, seen[:half], seen[half:], **how)
            row = record.append(file, {**key, **metrics}, **origin, command=common.command())
            print(name, *how.values(), row["SQNR dB"], row["CPU seconds"], flush=True)


def cases() -> Iterator[dict[str, Any]]:
    """Calibrators at 8 bits, then methods on weights of fewer bits or one scale per tensor."""
    for target in ("cpu", "tensorrt"):
        for calibrator, settings in CALIBRATORS:
            named = " ".join([calibrator, *(f"{value:g}" for value in settings.values())])
            yield {
                "target": target,
                "calibrator": named,
                "weight bits": 8,
                "scale per": "channel",
                "method": "plain",
            }
    for bits, granularity in ((8, "tensor"), (6, "tensor"), (4, "channel")):
        for method in METHODS:
            yield {
                "target": "cpu",
                "calibrator": "mse",
                "weight bits": bits,
                "scale per": granularity,
                "method": method,
            }


def measure(network: nn.Module, seen: list[Tensor], fresh: list[Tensor], **how: Any) -> dict[str, float]:
    calibrator, _, value = how["calibrator"].partition(" ")
    scheme = Scheme.for_target(
        how["target"],
        weight=Grid(how["weight bits"], granularity=how["scale per"], narrow=True),
        calibrator=calibrator,
        calibrator_options={"percentile": float(value)} if value else {},
    )
    start = time.process_time()
    source = equalize(network) if "equalized" in how["method"] else network
    model = prepare(source, scheme)
    calibrate(model, seen)
    if "bias corrected" in how["method"]:
        correct_bias(model, source, seen)
    if "rounding" in how["method"]:
        learn_rounding(model, source, seen)
    seconds = time.process_time() - start
    return {"SQNR dB": round(sqnr(model, network, fresh), 2), "CPU seconds": round(seconds, 1)}


@torch.no_grad()
def sqnr(model: nn.Module, network: nn.Module, batches: list[Tensor]) -> float:
    signal = noise = 0.0
    for batch in batches:
        for got, wanted in zip(model(batch), network(batch), strict=True):
            signal += float(wanted.square().sum())
            noise += float((got - wanted).square().sum())
    return 10 * math.log10(signal / noise)


def batches(name: str, networks: dict[str, nn.Module], options: Any) -> list[Tensor]:
    """What a network meets in the cascade, normalised; of P-Net's pyramid levels every second one."""

    def runner(network: nn.Module) -> Any:
        @torch.no_grad()
        def run(pixels: Any) -> tuple[Any, ...]:
            return tuple(y.numpy() for y in network((torch.from_numpy(pixels).float() - 128) / 128))

        return run

    run = {key: runner(network) for key, network in networks.items()}
    found = calibration_batches(name, options.data, run, Settings(), options.images)
    tensors = [(torch.from_numpy(pixels.copy()).float() - 128) / 128 for pixels in found]
    return tensors[::2] if name == "pnet" else tensors


if __name__ == "__main__":
    main()
