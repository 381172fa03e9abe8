"""The whole flow once, on a dozen drawn faces: every verb does its work and hands on to the next.

Nothing is learned here; whether a step computes the right thing is tested where that step is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import cli, folder

pytest.importorskip("torch")

EVENTS = ("0--Near", "1--Far")
TINY = [
    "stages.{}.schedule.epochs=1",
    "stages.{}.schedule.steps=2",
    "stages.{}.schedule.batch_size=8",
    "stages.{}.sampling.held_out=0.4",
]


def draw_face(image: np.ndarray, x: int, y: int, side: int) -> list[tuple[float, float]]:
    """A head with eyes, nose and mouth in the square at (x, y); returns the five landmarks."""
    at = [
        (x + u * side, y + v * side)
        for u, v in ((0.33, 0.4), (0.67, 0.4), (0.5, 0.58), (0.36, 0.75), (0.64, 0.75))
    ]
    points = [(round(u), round(v)) for u, v in at]
    centre = (x + side // 2, y + side // 2)
    cv2.ellipse(image, centre, (round(side * 0.4), side // 2), 0, 0, 360, (230, 190, 160), -1)
    for eye in points[:2]:
        cv2.circle(image, eye, max(1, side // 14), (40, 30, 30), -1)
    cv2.circle(image, points[2], max(1, side // 18), (190, 140, 120), -1)
    cv2.line(image, points[3], points[4], (150, 60, 60), max(1, side // 20))
    return at


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in WIDER FACE layout: 12 images of 96x128 to train on, 4 to validate, two faces in each."""
    root = tmp_path_factory.mktemp("faces")
    (root / "wider_face_split").mkdir()
    (root / "landmarks").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        boxes, landmarks = [], []
        for number in range(count):
            event = EVENTS[number % 2]
            name = f"{event}/{number}.png"
            image = np.full((96, 128, 3), rng.integers(60, 140, 3), np.uint8)
            image = cv2.add(image, rng.integers(0, 40, image.shape, dtype=np.uint8))
            rows, points = [], []
            for left in (4, 68):
                side = int(rng.integers(30, 56)) if event == EVENTS[0] else int(rng.integers(14, 28))
                x, y = left + int(rng.integers(0, 56 - side + 1)), int(rng.integers(0, 96 - side))
                marks = draw_face(image, x, y, side)
                rows.append(f"{x} {y} {side} {side} 0 0 0 0 0 0")
                points.append(" ".join(f"{u:.1f} {v:.1f} 0.0" for u, v in marks))
            path = root / f"WIDER_{split}" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image[:, :, ::-1])
            boxes += [name, "2", *rows]
            landmarks += [
                f"# {name}",
                *(f"{' '.join(r.split()[:4])} {p} 1.0" for r, p in zip(rows, points, strict=True)),
            ]
        (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text("\n".join(boxes) + "\n")
        (root / "landmarks" / f"{split}_label.txt").write_text("\n".join(landmarks) + "\n")
    return root


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`octavo ...`, which must succeed; returns what it prints."""

    def call(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert not stopped.value.code, printed.err
        return printed.out

    return call


def test_every_verb_in_turn(
    octavo: Callable[..., str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, quantized = tmp_path / "runs" / "tiny", tmp_path / "runs" / "tiny-int8"
    learned = tmp_path / "runs" / "tiny-qat"

    report = json.loads(octavo("data", data, "--sheet", tmp_path / "sheet.jpg", "--json"))
    assert report["ok"]
    assert report["total"]["train"]["faces"] == 24
    assert report["total"]["val"]["landmarks"] == 8

    changes = [c.format(stage) for stage in ("pnet", "rnet", "onet") for c in TINY]
    options = [word for change in changes for word in ("--set", change)]
    recipe = json.loads(octavo("recipe", "mtcnn-relu", *options, "--json"))
    octavo("train", "mtcnn-relu", "--data", data, "--out", trained, *options)
    kept = json.loads((trained / "recipe.json").read_text())
    assert kept["stages"] == recipe["stages"]
    info = folder.read_info(trained)
    assert (info["variant"], info["precision"]) == ("mtcnn-relu", "float")
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["network"] for line in log] == ["pnet", "rnet", "onet"]

    # Two steps teach nothing, so let everything through, else the later networks would see nothing below.
    folder.write_info(trained, info | {"settings": info["settings"] | {"thresholds": [0.01, 0.01, 0.01]}})
    octavo("quantize", trained, "--data", data, "--out", quantized, "--images", "4")
    assert folder.read_info(quantized)["calibration"]["images"] == 4
    octavo("train", quantized, "--data", data, "--out", learned, *options, "--set", "qat.outputs=1")
    assert folder.read_info(learned)["scheme"] == folder.read_info(quantized)["scheme"]
    assert json.loads((learned / "recipe.json").read_text())["qat"]["outputs"] == 1
    assert (learned / "rnet.pt").read_bytes() != (quantized / "rnet.pt").read_bytes()
    photos = data / "WIDER_val" / "images"
    octavo("export", trained, "--images", photos)
    exported = json.loads(octavo("export", quantized, "--images", photos, "--json"))
    assert exported["parity"].keys() == {"pnet", "rnet", "onet"}
    assert 0 < folder.size(quantized, ".onnx") < folder.size(trained, ".onnx")

    listed = json.loads(octavo("ls", tmp_path / "runs", "--json"))
    assert {m["name"]: m["precision"] for m in listed if "tiny" in m["name"]} == {
        str(trained): "float",
        str(quantized): "int8",
        str(learned): "int8",
    }

    lines = octavo("predict", quantized, photos, "--json", "--save", tmp_path / "out", "--min-face", "14")
    found = [json.loads(line) for line in lines.splitlines()]
    assert [len(f["keypoints"]) == len(f["xyxy"]) for f in found] == [True] * 4
    assert any(f["xyxy"] for f in found)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4

    measured = evaluate(octavo, quantized, data, tmp_path)
    assert set(measured["ap"]) == {*EVENTS, "all"}
    assert measured["faces"] == 8
    assert len(list((tmp_path / "wider").rglob("*.txt"))) == 4

    chosen = ("--by", "f1", "--share", "0.4", "--steps", "2", "--nms-span", "0")
    tuned = json.loads(octavo("tune", quantized, "--data", data, *chosen, "--json"))
    assert folder.read_info(quantized)["tuned"] == tuned["tuned"]
    assert folder.read_info(quantized)["settings"] == tuned["settings"]

    assert validate(trained, quantized, data, capsys)["agreement"]["images"] == 4

    timed = json.loads(
        octavo("bench", trained, quantized, "--size", "96x64", "--json", "--repeats", "2", "--no-memory")
    )
    assert timed

    page = tmp_path / "report.html"
    quick = ("--size", "96x64", "--repeats", "1", "--images", "2", "--no-layers", "--json")
    shown = ("--data", data, "--pictures", photos / EVENTS[0])
    told = json.loads(octavo("report", trained, quantized, *shown, "--out", page, *quick))
    assert {n["label"] for n in told["numbers"]} == {"tiny", "tiny-int8"}
    assert {"Average precision", "Latency by stage"} <= {n["section"] for n in told["numbers"]}
    assert page.read_text().count('src="data:image/jpeg') == 4  # two photographs by two models


def evaluate(octavo: Callable[..., str], model: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "val.json"
    octavo("evaluate", model, "--data", data, "--save-predictions", tmp_path / "wider", "--json", file)
    return json.loads(file.read_text())


def validate(
    trained: Path, quantized: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Passed or not: two steps of training may find nothing that could be kept."""
    words = ["validate", trained, quantized, "--data", data, "--timed-images", "1", "--repeats", "1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*map(str, words), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert stopped.value.code == (0 if told["passed"] else 1)
    return told["results"][0]


def test_training_goes_on_where_it_stopped(octavo: Callable[..., str], data: Path, tmp_path: Path) -> None:
    options = [word for c in TINY for word in ("--set", c.format("pnet"))]
    command = ("train", "mtcnn-relu", "--data", data, "--out", tmp_path, "--stage", "pnet", *options)
    octavo(*command)
    assert not (tmp_path / "model.json").exists()  # no model before all its networks are there
    before = (tmp_path / "pnet.pt").read_bytes()
    octavo(*command)
    assert (tmp_path / "pnet.pt").read_bytes() == before
