"""Which numbers stand in README.md, docs/ and the model cards? Those of results/, put there by this script.

    python benchmarks/tables.py            writes the tables
    python benchmarks/tables.py --check    fails where a text and the results differ, and changes nothing

A text marks the place, and may keep rows to those with a value:

    <!-- table:accuracy backend=onnxruntime -->
    (replaced)
    <!-- end -->

Names are those of TABLES; `<!-- table:model name=mtcnn-relu -->` is what model.json of an embedded model says.
Below each table stands where its rows are, and when and on what they were measured.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo import folder
from octavo.evaluate import record

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("README.md", "docs/*.md", "src/octavo/weights/*/README.md", "src/octavo/models/*/README.md")
OPEN = "<!-- table:"
MARKED = re.compile(rf"({OPEN}([\w-]+)((?: [^\s=]+=\S+)*) -->\n)(?:(?!{OPEN}).)*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Columns of a file of results, and which of them tell rows apart (the last row of each counts).

    over: a column that tells repetitions apart, whose medians are shown; a column of its plural says of how many.
    """

    file: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    digits: int = 3
    over: str = ""


# What tells quantized models of one float model apart.
QUANTIZED = (
    *("model", "question", "target", "scale per", "calibrator", "weight bits", "weight calibrator", "method"),
    *("calibrated on", "calibration", "images"),
)
TABLES = {
    "accuracy": Table(
        "mtcnn_accuracy.csv",
        ("model", "precision", "backend", "Crowd", "Web", "Portrait", "all", "NME all"),
        ("model", "backend", "data", "split"),
    ),
    "sizes": Table(
        "mtcnn_accuracy.csv",
        ("model", "backend", "0-16", "16-32", "32-64", "64-128", "128-256", "256+"),
        ("model", "backend", "data", "split"),
    ),
    "settings": Table(
        "mtcnn_settings.csv",
        ("model", "min face", "thresholds", "ms", "precision", "recall", "Crowd", "Web", "Portrait", "all"),
        ("model", "backend", "min face", "thresholds"),
    ),
    "calibrators": Table(
        "mtcnn_quantization.csv",
        ("target", "scale per", "calibrator", "held out all", "Crowd", "Web", "Portrait", "all", "NME"),
        QUANTIZED,
    ),
    "weights": Table(
        "mtcnn_quantization.csv",
        ("weight bits", "scale per", "weight calibrator", "method", "Crowd", "Web", "Portrait", "all", "NME"),
        QUANTIZED,
    ),
    "levels": Table(
        "mtcnn_quantization.csv",
        ("calibrated on", "weight bits", "method", "Crowd", "Web", "Portrait", "all", "NME"),
        QUANTIZED,
    ),
    "qat": Table(
        "mtcnn_qat.csv",
        ("model", "target", "method", "seeds", "held out all", "Crowd", "Web", "Portrait", "all", "NME"),
        ("model", "weights", "target", "method", "steps"),
        digits=4,
        over="seed",
    ),
    "misses": Table(
        "mtcnn_misses.csv",
        ("model", "by", "value", "faces", "missed", "lost by pnet", "lost by rnet", "lost by onet"),
        ("model", "split", "by", "value"),
    ),
    "sensitivity": Table(
        "sensitivity_mtcnn.csv",
        ("network", "layer", "kind", "parameters", "alone", "all but it"),
        ("model", "data", "by", "network", "layer"),
        digits=1,
    ),
    "dynamic": Table(
        "dynamic_layers.csv",
        ("network", "form", "kB", "ms", "times", "error"),
        ("model", "form"),
        digits=4,
    ),
    "speed": Table(
        "mtcnn_speed.csv",
        ("model", "backend", "ms", "p95", "pnet", "rnet", "onet", "other", "times", "faces"),
        ("model", "backend", "data", "size", "min face", "threads"),
        digits=2,
    ),
    "memory": Table(
        "mtcnn_speed.csv",
        ("model", "backend", "kB", "MB", "MB runtime", "integer layers", "integer work"),
        ("model", "backend", "data", "size", "min face", "threads"),
        digits=2,
    ),
    "evaluator": Table(
        "wider_evaluator.csv",
        ("model", "predictions", "easy", "medium", "hard", "largest error", "seconds", "seconds from files"),
        ("model",),
        digits=4,
    ),
    "peers": Table(
        "peers.csv",
        ("model", "data", "threads", "ms", "p95", "times", "faces", "MB", "cold s", "cli s", "install MB"),
        ("model", "data", "threads"),
        digits=2,
    ),
    "peers-accuracy": Table(
        "peers.csv",
        ("model", "min face", "images", "Crowd", "Web", "Portrait", "all"),
        ("model", "data", "split"),
    ),
    "growth": Table(
        "growth.csv",
        ("of", "value", "result", "in", "found"),
        ("model", "backend", "question", "value"),
        digits=2,
    ),
    "cascade": Table(
        "mtcnn_cascade.csv",
        (
            "factor",
            "thresholds",
            "nms",
            "rnet windows",
            "onet windows",
            "ms",
            "Crowd",
            "Web",
            "Portrait",
            "all",
        ),
        ("model", "weights", "factor", "thresholds", "nms"),
    ),
    "slim-accuracy": Table(
        "slim_accuracy.csv",
        ("model", "precision", "backend", "long side", "Crowd", "Web", "Portrait", "all", "NME all"),
        ("model", "backend", "data", "split", "long side"),
    ),
    "slim-calibrators": Table(
        "slim_quantization.csv",
        ("model", "target", "calibrator", "method", "held out all", "Crowd", "Web", "Portrait", "all", "NME"),
        QUANTIZED,
    ),
    "slim-qat": Table(
        "slim_qat.csv",
        ("model", "target", "method", "seeds", "held out all", "Crowd", "Web", "Portrait", "all", "NME"),
        ("model", "weights", "target", "method", "steps"),
        over="seed",
    ),
    "slim-sensitivity": Table(
        "sensitivity_slim.csv",
        ("layer", "kind", "parameters", "alone", "all but it"),
        ("model", "data", "by", "network", "layer"),
        digits=1,
    ),
    "shares": Table(
        "shares.csv",
        (
            *("share", "held out Crowd", "held out Web", "held out Portrait", "held out all"),
            *("Crowd", "Web", "Portrait", "all", "NME"),
        ),
        ("model", "before", "after", "share"),
    ),
    "agreement": Table(
        "agreement.csv",
        (
            "model",
            "backend",
            "reference",
            "found",
            "confirmed",
            "iou",
            "score_mean",
            "score_max",
            "keypoints",
        ),
        ("model", "backend", "data", "confidence"),
        digits=5,
    ),
    "yolov5-ptq": Table(
        "yolov5_ptq.csv",
        (
            *("question", "target", "calibrator", "method", "outputs", "kept"),
            *("other AP", "AP", "AP50", "AP75", "AP in OpenVINO"),
        ),
        (
            *("model", "question", "target", "calibrator", "method", "outputs", "silu", "kept"),
            *("calibration", "images"),
        ),
        digits=4,
    ),
    "yolov5-sensitivity": Table(
        "sensitivity_yolov5.csv",
        ("layer", "kind", "parameters", "alone", "all but it"),
        ("model", "data", "by", "network", "layer"),
        digits=4,
    ),
    "yolov5-qat": Table(
        "yolov5_qat.csv",
        (
            *(
                "model",
                "way",
                "scales",
                "pictures",
                "steps",
                "size",
                "rate in millionths",
                "corrected",
                "held out dB",
            ),
            *("AP", "AP50", "AP in OpenVINO", "AP50 in OpenVINO"),
        ),
        (
            "model",
            "way",
            "scales",
            "pictures",
            "steps",
            "batch",
            "size",
            "rate in millionths",
            "corrected",
            "start",
        ),
        digits=4,
    ),
    "yolov5-start": Table(
        "yolov5_qat.csv",
        ("model", "held out dB", "AP", "AP in OpenVINO"),
        ("model", "start"),
        digits=4,
    ),
    "yolov5-accuracy": Table(
        "yolov5_accuracy.csv",
        ("model", "precision", "backend", "AP50", "AP50:95", "ms", "times", "kB", "integer layers"),
        ("model", "backend", "data", "split"),
        digits=4,
    ),
    "yolov5-speed": Table(
        "yolov5_speed.csv",
        ("model", "backend", "ms", "p95", "detector", "other", "times", "kB", "MB", "integer layers"),
        ("model", "backend", "data", "size", "threads"),
        digits=2,
    ),
    "slim-lowering": Table(
        "lowering.csv",
        ("form", "backend", "p20", "times", "times float"),
        ("network", "backend", "form"),
        digits=2,
    ),
    "slim-speed": Table(
        "slim_speed.csv",
        ("model", "backend", "size", "ms", "p95", "detector", "other", "times", "kB", "MB", "integer layers"),
        ("model", "backend", "data", "size", "threads"),
        digits=2,
    ),
    "readers": Table(
        "vietocr_accuracy.csv",
        (
            "model",
            "data",
            "split",
            "lines",
            "exact",
            "CER",
            "WER",
            "as the first",
            "beams",
            "places",
            "doubt",
            "MB",
        ),
        ("model", "data", "split", "backend", "beams", "places", "doubt"),
        digits=4,
    ),
    "reader-doubt": Table(
        "vietocr_doubt.csv",
        ("doubt", "exact", "CER", "again"),
        ("model", "doubt", "lines"),
    ),
    "reader-forms": Table(
        "vietocr_speed.csv",
        (
            "model",
            "form",
            "backend",
            "cnn",
            "encoder",
            "decoder",
            "line",
            "times cnn",
            "times line",
            "MB",
            "share",
        ),
        ("model", "form", "backend", "size", "characters"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 where they differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args()
    differing = [file for file in texts(options.root) if refresh(file, options.root, not options.check)]
    for file in differing:
        print(f"{file}: {'differs from the results' if options.check else 'written'}")
    if options.check and differing:
        sys.exit("The tables are not those of results/: run python benchmarks/tables.py")


def texts(root: Path) -> list[Path]:
    """The files that may hold tables."""
    return [file for pattern in TEXTS for file in sorted(root.glob(pattern))]


def refresh(file: Path, root: Path, write: bool) -> bool:
    """Put the tables into a file; whether that changes it."""
    before = file.read_text(encoding="utf-8")
    try:
        after = fill(before, root)
    except ValueError as error:
        raise SystemExit(f"{file}: {error}") from None
    if write and after != before:
        file.write_text(after, encoding="utf-8")
    return after != before


def fill(text: str, root: Path) -> str:
    """The text with all its tables made anew. ValueError for a mark that is not closed or names no table."""
    closed = {match.start() for match in MARKED.finditer(text)}
    for match in re.finditer(f"{OPEN}.*", text):
        if match.start() not in closed:
            raise ValueError(f"{match[0]} is no mark of a table, or has no <!-- end --> behind it")

    def made(match: re.Match[str]) -> str:
        where = dict(pair.split("=", 1) for pair in match[3].split())
        return match[1] + table(match[2], where, root) + match[4]

    return MARKED.sub(made, text)


def table(name: str, where: Mapping[str, str], root: Path) -> str:
    """Markdown, or a line that says what has not been measured yet."""
    if name == "model":
        return facts(root / "src/octavo/weights" / where["name"])
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: there are model, {', '.join(TABLES)}")
    chosen = TABLES[name]
    path = root / "results" / chosen.file
    body = (
        record.table(path, chosen.columns, chosen.key, chosen.digits, where, chosen.over)
        if path.is_file()
        else ""
    )
    rows = record.last(record.read(path), chosen.key, where) if body else []
    if not rows:
        return f"*Not measured yet: results/{chosen.file}.*\n"
    days = sorted({row["date"][:10] for row in rows})
    machines = dict.fromkeys(row["machine"] for row in rows)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{body}\n*results/{chosen.file}: {'; '.join(machines)}; {when}.*\n"


def facts(model: Path) -> str:
    """What model.json says, for a model card."""
    if not (model / "model.json").is_file():
        return f"*No {model.name}/model.json yet.*\n"
    info = folder.read_info(model)
    sizes = ", ".join(
        f"{file.name} {file.stat().st_size / 1000:.0f} kB" for file in sorted(model.glob("*.onnx"))
    )
    settings = ", ".join(f"{k} {_said(v)}" for k, v in info["settings"].items())
    calibration = info["calibration"]
    lines = {
        "variant": info["variant"],
        "precision": info["precision"] + (f", target {info['target']}" if info["target"] else ""),
        "files": sizes,
        "settings": settings,
        "data": info["data"],
        "calibration": calibration and f"{calibration['method']}, {calibration['images']} images",
        "made by": info["command"] and f"`{info['command']}`",
        "commit": info["commit"],
        "date": info["created"],
    }
    return "".join(["| | |\n| --- | --- |\n", *(f"| {k} | {v} |\n" for k, v in lines.items() if v)])


def _said(value: object) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, list) else f"{value}"


if __name__ == "__main__":
    main()
