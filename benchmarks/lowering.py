"""What does each exact rewrite of octavo.lower bring, in which runtime?

    python benchmarks/lowering.py runs/mtcnn-int8 --float runs/mtcnn
    python benchmarks/lowering.py src/octavo/weights/slim --float src/octavo/weights/slim-float

The plain Q/DQ graphs, then one rewrite more in each row, in ONNX Runtime and in OpenVINO: P-Net over the pyramid
of a 640x480 photograph (min face 20), R-Net on 64 crops, O-Net on 16, others on their example's shape. Milliseconds
of CPU time of one thread, median ("ms") and 20th percentile ("p20") of rounds in which every form runs once. "times"
is p20 against the plain form, "times float" against the float network. "difference" is the largest one of the outputs
from the plain form's: 0, or the rounding of float32 sums in the heads. -> results/lowering.csv

CPU time and a low percentile, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import common
import numpy as np

from octavo import folder
from octavo.evaluate import record
from octavo.lower import REWRITES, lower
from octavo.models import part

SIZE = (480, 640)
CROPS = {"rnet": 64, "onet": 16}
RUNTIMES = ("onnxruntime", "openvino")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path, help="INT8 folder for target cpu with .onnx files")
    parser.add_argument("--float", type=Path, help="its float model, exported")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    info = folder.read_info(options.model)
    networks = part(info["family"], "recipe").NETWORKS
    for name, path in folder.files(options.model, ".onnx").items():
        for runtime in RUNTIMES:
            with tempfile.TemporaryDirectory() as temporary:
                forms = make(path, networks[name].multiple, Path(temporary))
                if options.float:
                    forms["float"] = options.float / path.name
                measure(forms, name, runtime, pixels(name, networks[name].shape), options)


def make(plain: Path, multiple: int, out: Path) -> dict[str, Path]:
    """The plain file and a file for each rewrite of ONNX Runtime's list that fits, after those before it."""
    forms = {"plain": plain}
    done: list[str] = []
    for rewrite in REWRITES["onnxruntime"]:
        model, said = lower(plain, multiple=multiple, rewrites=(*done, rewrite))
        if len(said) > len(done):
            done.append(rewrite)
            forms[" + ".join(done)] = path = out / f"{len(done)}.onnx"
            path.write_bytes(model.SerializeToString())
    return forms


def measure(
    forms: dict[str, Path], name: str, runtime: str, inputs: list[np.ndarray], options: argparse.Namespace
) -> None:
    open_network = import_module(f"octavo.run.on_{runtime}").open_network
    opened = {form: open_network(path, 1) for form, path in forms.items()}
    answers = {form: [network(x) for x in inputs] for form, network in opened.items()}
    for network in opened.values():
        if hasattr(network, "settle"):
            network.settle()
    times = race({form: each(network, inputs) for form, network in opened.items()}, options.rounds)
    for form, (p20, median) in times.items():
        pairs = zip(answers[form], answers["plain"], strict=True)
        apart = max(float(np.abs(a - b).max()) for pair in pairs for a, b in zip(*pair, strict=True))
        row = record.append(
            options.out / "lowering.csv",
            {
                "network": name,
                "backend": runtime,
                "form": form,
                "chosen": form
                == ("plain" if runtime == "openvino" else [f for f in forms if f != "float"][-1]),
                "ms": median,
                "p20": p20,
                "times": times["plain"][0] / p20,
                "times float": times["float"][0] / p20 if "float" in times else None,
                "difference": apart if form != "float" else None,
                "rounds": options.rounds,
                "weights": common.weights(options.model),
            },
            model=options.model.resolve().name,
            data=f"{len(inputs)} x random pixels",
            command=common.command(),
        )
        print(
            *(row[key] for key in ("network", "backend", "form", "p20", "times", "times float", "difference"))
        )


def pixels(name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    """What the network is given: integers and ReLU networks take as long on noise as on faces."""
    rng = np.random.default_rng(0)
    if name != "pnet":
        return [rng.integers(0, 256, (CROPS.get(name, shape[0]), *shape[1:]), np.uint8)]
    predict = import_module("octavo.models.mtcnn.predict")
    levels = predict.pyramid(np.zeros((*SIZE, 3), np.uint8), predict.Settings())
    return [rng.integers(0, 256, (1, 3, *level.shape[:2]), np.uint8) for level, _ in levels]


def each(network: Callable[[np.ndarray], object], inputs: list[np.ndarray]) -> Callable[[], None]:
    def call() -> None:
        for x in inputs:
            network(x)

    return call


def race(
    calls: dict[str, Callable[[], None]], rounds: int, warmup: int = 10
) -> dict[str, tuple[float, float]]:
    """(20th percentile, median), ms of CPU time of this process; every form once a round."""
    times: dict[str, list[float]] = {form: [] for form in calls}
    for turn in range(rounds + warmup):
        for form, call in calls.items():
            started = time.process_time()
            call()
            if turn >= warmup:
                times[form].append((time.process_time() - started) * 1e3)
    return {form: tuple(np.quantile(values, (0.2, 0.5)).tolist()) for form, values in times.items()}


if __name__ == "__main__":
    main()
