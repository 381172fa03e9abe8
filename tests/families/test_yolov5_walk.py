"""Every verb once on YOLOv5 and a made-up data set in COCO's layout: each does its work and hands on to the next.

Nothing is learned here; whether a step computes the right thing is tested where that step is. The network is the real
one with fresh weights, looking at pictures of 96 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from octavo import folder, verbs
from octavo.models.yolov5.predict import CLASSES

pytest.importorskip("torch")

TINY = [
    "stages.detector.schedule.epochs=1",
    "stages.detector.schedule.steps=1",
    "stages.detector.schedule.batch_size=2",
    "stages.detector.sampling.size=96",
    "stages.detector.sampling.held_out=0.4",
]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawings of 96x64 to train on, four for val: a box or a ball in each."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        (root / "images" / f"{split}2017").mkdir(parents=True)
        for number in range(count):
            name = f"{split}{number}.png"
            picture = rng.integers(60, 140, (64, 96, 3)).astype(np.uint8)
            x, y, side = (int(v) for v in (rng.integers(0, 50), rng.integers(0, 30), rng.integers(16, 34)))
            cv2.rectangle(picture, (x, y), (x + side, y + side), (250, 30, 30), -1)
            cv2.imwrite(str(root / "images" / f"{split}2017" / name), picture)
            images.append({"id": number + 1, "file_name": name, "width": 96, "height": 64})
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append(
                {"id": number + 1, "image_id": number + 1, "category_id": 1 + number % 2, **box}
            )
        categories = [{"id": place + 1, "name": name} for place, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_the_whole_flow(coco: Path, tmp_path: Path) -> None:
    assert verbs.data(coco).ok
    made = verbs.train("yolov5n", coco, tmp_path / "float", changes=TINY, accelerator="cpu")
    assert made is not None
    assert folder.read_info(made)["preprocessing"] == {"color": "RGB", "offset": 0.0, "scale": 1 / 255}
    info = folder.read_info(made)
    folder.write_info(made, info | {"settings": info["settings"] | {"long_side": 96}})
    further = verbs.train(made, coco, tmp_path / "further", changes=TINY, accelerator="cpu")
    assert further is not None

    int8 = verbs.quantize(made, coco, tmp_path / "int8", images=2)
    qat = verbs.train(int8, coco, tmp_path / "qat", changes=TINY, accelerator="cpu")
    assert qat is not None
    assert folder.read_info(qat)["precision"] == "int8"
    mixed = verbs.sensitivity(
        int8, coco, depth=1, images=1, budget=1000, out=tmp_path / "mixed", chart=tmp_path / "bars.png"
    )
    assert mixed.kept
    assert {row.layer for row in mixed.tables["detector"].rows} >= {"stem", "stage4", "heads"}
    assert (tmp_path / "bars.png").is_file()

    _, parities, lowered = verbs.export(qat)
    assert parities["detector"].ok
    assert "3x3 on 12 channels" in lowered["detector.onnxruntime"].done[0]
    assert lowered["detector.onnxruntime"].parity.ok
    assert not any(finding.level == "error" for report in verbs.check(qat).values() for finding in report)

    picture = coco / "images" / "val2017" / "val0.png"
    plain = verbs.load(qat, "onnxruntime")(picture, confidence=0.0, nms=1.0, most=1000, long_side=96)
    verbs.export(qat, tmp_path / "decoded", decode=True)
    decoded = verbs.load(tmp_path / "decoded", "onnxruntime")(
        picture, confidence=0.0, nms=1.0, most=1000, long_side=96
    )
    assert len(plain) == len(decoded) > 0
    # Fresh weights say nearly the same everywhere: what order and NMS make of equal scores is chance.
    assert np.allclose(np.sort(plain.confidence), np.sort(decoded.confidence), atol=1e-4)
    assert all(np.abs(decoded.xyxy - box).max(axis=1).min() < 0.1 for box in plain.xyxy)
    plain.save(tmp_path / "out.png")
    measured = verbs.evaluate(qat, coco, backend="onnxruntime", long_side=96)
    assert set(measured["ap"]) == {"all", "AP50", "AP75"}
    assert measured["objects"] == 4


def test_a_target_of_tensorrt_passes_its_rules(coco: Path, tmp_path: Path) -> None:
    """Fresh weights, ranges without data: only the graph counts."""
    from octavo.models import part, save_module
    from octavo.verbs.float_model import float_info

    for name, module in part("yolov5", "net").build("yolov5n").items():
        save_module(module.eval(), tmp_path / "float" / f"{name}.pt")
    folder.write_info(
        tmp_path / "float", float_info("yolov5n", ["detector"], verbs.recipe("yolov5n"), "none")
    )
    int8 = verbs.quantize(tmp_path / "float", coco, tmp_path / "trt", target="tensorrt", images=1, changes=())
    verbs.export(int8, images=[coco / "images" / "val2017" / "val0.png"])
    assert not any(finding.level == "error" for report in verbs.check(int8).values() for finding in report)
