"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

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
