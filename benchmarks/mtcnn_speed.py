"""How fast, how large, how much memory: float beside INT8, ONNX Runtime beside OpenVINO?

    python benchmarks/mtcnn_speed.py mtcnn-relu-float mtcnn-relu runs/mtcnn-published

What `octavo bench` measures, all models in all runtimes in turn, on one thread, 640x480, min face 20, thresholds
as each model has them: ms an image (median; "p95" of the whole), the parts of it per network and between them
("other"), megabytes of a fresh process at its peak and with the bare runtime, bytes of the networks' files,
layers that run in integers. "times" is the speed against the first model in the same runtime. The images: the
wall of eleven faces and one portrait that ship with Octavo, and what --image adds. -> results/mtcnn_speed.csv

Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import common

from octavo import folder, verbs
from octavo.evaluate import record
from octavo.run.bench import Row

SAMPLES = ("group.jpg", "astronaut.jpg")
STAGES = ("pnet", "rnet", "onet", "other")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="embedded names or folders with .onnx files")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--image", type=Path, action="append", default=[], help="one more photograph")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--min-face", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    shipped = [path for path in verbs.samples() if path.name in SAMPLES]
    for image in [*shipped, *options.image]:
        rows = verbs.bench(
            options.models,
            size=(width, height),
            image=image,
            backends=options.backends.split(","),
            threads=options.threads,
            repeats=options.repeats,
            min_face=options.min_face,
        )
        base = {row.backend: row.total.p50 for row in reversed(rows)}  # the first model's is written last
        for row in rows:
            write(options.out / "mtcnn_speed.csv", row, image, options.min_face, base[row.backend])


def write(file: Path, row: Row, image: Path, min_face: float, base: float) -> None:
    model = folder.find(row.name)
    info = folder.read_info(model)
    made = record.append(
        file,
        {
            "precision": info["precision"],
            "weights": common.weights(model),
            "backend": row.backend,
            "threads": row.threads,
            "size": f"{row.width}x{row.height}",
            "min face": min_face,
            "thresholds": common.said(info["settings"]["thresholds"]),
            "repeats": row.repeats,
            "ms": row.total.p50,
            "p95": row.total.p95,
            **{stage: row.stages[stage].p50 for stage in STAGES},
            "times": base / row.total.p50,
            **{f"{name} calls": row.calls[name] for name in STAGES[:-1]},
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
