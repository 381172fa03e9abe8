"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and weights that stands beside the checkout (or at $OCTAVO_SHARED)."""
    folder = Path(os.environ.get("OCTAVO_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data, and {folder / 'data'} is not there (set OCTAVO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photographs as a data set in WIDER FACE layout, train and val the same: an event for each.

    Faces and landmarks are what the embedded float model is sure of: enough to see whether numbers are passed on
    rightly, and nothing to judge a model by.
    """
    from octavo import load, verbs

    model = load("mtcnn-relu-float", backend="onnxruntime")
    root = tmp_path_factory.mktemp("annotated")
    for split in ("train", "val"):
        boxes, landmarks = [], []
        for number, path in enumerate(verbs.samples()):
            found = model(path, confidence=0.95)
            name = f"{number}--{path.stem.title()}/{path.name}"
            file = root / f"WIDER_{split}" / "images" / name
            file.parent.mkdir(parents=True)
            file.symlink_to(path)
            corners = found.xyxy.round().astype(int)
            rows = [f"{x1} {y1} {x2 - x1} {y2 - y1}" for x1, y1, x2, y2 in corners.tolist()]
            assert rows
            assert found.keypoints is not None
            boxes += [name, str(len(rows)), *(f"{row} 0 0 0 0 0 0" for row in rows)]
            points = [" ".join(f"{x:.2f} {y:.2f} 0.0" for x, y in face) for face in found.keypoints.tolist()]
            landmarks += [f"# {name}", *(f"{r} {p} 1.0" for r, p in zip(rows, points, strict=True))]
        for file, lines in (
            (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", boxes),
            (root / "landmarks" / f"{split}_label.txt", landmarks),
        ):
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy training images of 64x80 with a face each; three have names that training keeps out."""
    from octavo.data.split import is_held_out
    from octavo.data.widerface import Entry

    root = tmp_path_factory.mktemp("noise")
    rng, lines = np.random.default_rng(0), []

    def held_out(name: str) -> bool:
        return is_held_out(Entry(Path(name), name, "", *[np.zeros(0)] * 4), 0.04)  # type: ignore[arg-type]

    names = [f"0--Noise/{i}.png" for i in range(2000)]
    names = [n for n in names if held_out(n)][:3] + [n for n in names if not held_out(n)][:5]
    for name in names:
        path = root / "WIDER_train" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (80, 64), interpolation=cv2.INTER_CUBIC))
        lines += [name, "1", "20 10 30 40 0 0 0 0 0 0"]
    annotation = root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    annotation.parent.mkdir()
    annotation.write_text("\n".join(lines) + "\n")
    return root
