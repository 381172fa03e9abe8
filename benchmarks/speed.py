"""How fast, how large, how much memory: float beside INT8, ONNX Runtime beside OpenVINO?

    python benchmarks/speed.py mtcnn-relu-float mtcnn-relu runs/mtcnn-published --set min_face=20
    python benchmarks/speed.py slim-float slim --size 320x240

What `octavo bench` measures, all models in all runtimes in turn, on one thread, 640x480, settings as each model has
them but for what is --set: ms an image (median; "p95" of the whole), the parts of it per network and between them
("other"), megabytes of a fresh process at its peak and with the bare runtime, bytes of the networks' files,
layers that run in integers. "times" is the speed against the first model in the same runtime. The images: the
wall of eleven faces and one portrait that ship with Octavo, and what --image adds. -> results/FAMILY_speed.csv

Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

from octavo import folder, verbs
from octavo.evaluate import record
from octavo.run.bench import Row

SHOWN = ("min_face", "thresholds", "long_side")  # settings that time depends on
SAMPLES = ("group.jpg", "astronaut.jpg")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="embedded names or folders with .onnx files")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--image", type=Path, action="append", default=[], help="one more photograph")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="a setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    settings: dict[str, Any] = dict(common.setting(text) for text in options.set)
    shipped = [path for path in verbs.samples() if path.name in SAMPLES]
    for image in [*shipped, *options.image]:
        rows = verbs.bench(
            options.models,
            size=(width, height),
            image=image,
            backends=options.backends.split(","),
            threads=options.threads,
            repeats=options.repeats,
            **settings,
        )
        base = {row.backend: row.total.p50 for row in reversed(rows)}  # the first model's is written last
        for row in rows:
            write(options.out, row, image, settings, base[row.backend])


def write(out: Path, row: Row, image: Path, settings: dict[str, Any], base: float) -> None:
    model = folder.find(row.name)
    info = folder.read_info(model)
    shown = {name: info["settings"][name] for name in SHOWN if name in info["settings"]}
    made = record.append(
        out / f"{info['family']}_speed.csv",
        {
            "precision": info["precision"],
            "weights": common.weights(model),
            "backend": row.backend,
            "threads": row.threads,
            "size": f"{row.width}x{row.height}",
            **common.cells(shown | settings),
            "repeats": row.repeats,
            "ms": row.total.p50,
            "p95": row.total.p95,
            **{stage: spread.p50 for stage, spread in row.stages.items()},
            "times": base / row.total.p50,
            **{f"{name} calls": calls for name, calls in row.calls.items()},
            "faces": row.detections,
            "MB": row.memory.peak if row.memory else None,
            "MB runtime": row.memory.runtime if row.memory else None,
            "kB": row.file_bytes / 1000,
            "integer layers": f"{row.integers.integer}/{row.integers.layers}" if row.integers else None,
            "integer work": row.integers.of_multiply_adds if row.integers else None,
        },
        model=model.name,
        data=image.name,
        command=common.command(),
    )
    print(
        *(f"{name} {made[name]}" for name in ("data", "model", "backend", "ms", "times", "faces", "MB")),
        flush=True,
    )


if __name__ == "__main__":
    main()
