"""How large and how fast are the readers, float beside their parts in integers?

    python benchmarks/vietocr_speed.py vietocr-seq2seq vietocr-transformer runs/vietocr-small

A variant's name stands for untrained weights: size and time don't depend on them. Each is measured in four forms

    float      as trained
    cnn        the CNN on integer grids, encoder and decoder in float
    sequence   the CNN in float, of encoder and decoder the linear layers multiply integers whose range is found at
               each call, and the GRU stores integers
    all        both

on one line of 32x512 pixels, of which --characters are written whatever the weights say: ms for each part and for the
line (median; forms in turn, one thread, the process's own time, so that neighbours count little), times faster than
float in the same runtime, bytes of the networks' files and the share of float's. -> results/vietocr_speed.csv
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from octavo import folder, images, verbs
from octavo.evaluate import record
from octavo.models import save_module
from octavo.models.vietocr.net import build
from octavo.models.vietocr.predict import looks_at
from octavo.models.vietocr.vocabulary import END
from octavo.run.bench import Candidate, bench
from octavo.verbs.float_model import float_info
from octavo.verbs.recipe import recipe

FORMS = {"float": None, "cnn": ("encoder/*", "decoder/*"), "sequence": ("cnn/*",), "all": ()}
PARTS = ("cnn", "encoder", "decoder")
LINE = (32, 512)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="+", help="variants, untrained, or folders of float models")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--characters", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--forms", type=Path, default=Path("runs/vietocr-forms"), help="where the forms are kept"
    )
    options = parser.parse_args()
    for model in options.models:
        forms = {form: made(model, form, keep, options.forms) for form, keep in FORMS.items()}
        for backend in options.backends.split(","):
            measure(model, forms, backend, options)


def made(model: str, form: str, keep: tuple[str, ...] | None, place: Path) -> Path:
    """The folder of a model's form, made if it isn't there."""
    name = Path(model).name
    source, out = place / f"{name}-float", place / f"{name}-{form}"
    if not (source / "cnn.onnx").is_file():
        if Path(model).is_dir():
            networks = {path.stem: path.read_bytes() for path in Path(model).glob("*.pt")}
            with folder.staged(source) as stage:
                for network, data in networks.items():
                    (stage / f"{network}.pt").write_bytes(data)
                folder.write_info(stage, folder.read_info(model))
        else:
            torch.manual_seed(0)
            with folder.staged(source) as stage:
                for network, module in build(model).items():
                    save_module(module, stage / f"{network}.pt")
                folder.write_info(stage, float_info(model, list(PARTS), recipe(model), "untrained"))
        verbs.export(source)
    if keep is not None and not (out / "cnn.onnx").is_file():
        verbs.quantize(source, out=out, level=1, images=8, keep_float=keep)
        verbs.export(out)
    return out


def measure(model: str, forms: dict[str, Path], backend: str, options: Any) -> None:
    line = line_of(LINE)
    opened = {form: verbs.load(path, backend) for form, path in forms.items()}
    # places=0: what is written is without end, so that the second opinion would differ always and not now and then;
    # and one look
    settings = next(iter(opened.values())).settings(longest=options.characters, places=0)

    def look(pixels: np.ndarray, run: Any) -> list[int]:
        """As many characters as wanted: the end is not listened to."""
        endless = {**run, "decoder": never_ending(run["decoder"])}
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return looks_at(planes, endless, settings)[0].written.numbers

    candidates = [Candidate(form, backend, look, m.run, m.folder) for form, m in opened.items()]
    rows = bench(candidates, line, repeats=options.repeats, warmup=5, memory=False, clock=time.process_time)
    base = rows[0]
    for row in rows:
        record.append(
            options.out / "vietocr_speed.csv",
            {
                "form": row.name,
                "weights": common.weights(forms[row.name]),
                "backend": backend,
                "threads": 1,
                "size": "x".join(map(str, LINE)),
                "characters": row.detections,
                "repeats": row.repeats,
                **{name: row.stages[name].p50 for name in (*PARTS, "other")},
                "line": row.total.p50,
                "times cnn": base.stages["cnn"].p50 / row.stages["cnn"].p50,
                "times line": base.total.p50 / row.total.p50,
                "MB": row.file_bytes / 1e6,
                "share": row.file_bytes / base.file_bytes,
                "integer layers": f"{row.integers.integer}/{row.integers.layers}" if row.integers else "",
            },
            model=Path(model).name,
            data="group.jpg",
            command=common.command(),
        )
        times = base.stages["cnn"].p50 / row.stages["cnn"].p50, base.total.p50 / row.total.p50
        print(
            model,
            backend,
            row.name,
            f"{row.file_bytes / 1e6:.2f} MB, cnn {times[0]:.2f}, line {times[1]:.2f}",
        )


def never_ending(decoder: Any) -> Any:
    """The decoder, which never finds the end likeliest."""

    def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        logits, state = decoder(*arrays)
        logits[:, END] = -1e9
        return logits, state

    return call


def line_of(size: tuple[int, int]) -> np.ndarray:
    """(32, 512, 3): a strip of the sample photograph."""
    picture = images.read(next(path for path in verbs.samples() if path.name == "group.jpg"))
    height, width = size
    top = picture.shape[0] // 2
    return np.ascontiguousarray(picture[top : top + height, :width])


if __name__ == "__main__":
    main()
