"""Samples and losses of MTCNN: labels by their definition, mirrors by mirroring the annotation itself."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from octavo.boxes import iom, iou
from octavo.data.widerface import Entry
from octavo.models.mtcnn import data
from octavo.models.mtcnn.data import NEGATIVE, PART, POSITIVE, TrainSet, augment, label, throw, train_set
from octavo.models.mtcnn.loss import LANDMARK, face_loss, loss
from octavo.models.mtcnn.recipe import RECIPES, Weights
from octavo.recipe import change

SAMPLING = RECIPES["mtcnn-relu"].stages["rnet"].sampling
POINTS = np.array([[40, 40], [60, 40], [50, 50], [42, 60], [58, 60]], np.float32)


def entry(
    faces: list[list[float]], invalid: list[bool], points: np.ndarray | None = None, path: Path = Path("x")
) -> Entry:
    count = len(faces)
    keypoints = np.full((count, 5, 2), np.nan, np.float32)
    if points is not None:
        keypoints[0] = points
    return Entry(
        path=path,
        name="0--Crowd/x.jpg",
        event="0--Crowd",
        xyxy=np.array(faces, np.float32).reshape(-1, 4),
        invalid=np.array(invalid, bool),
        keypoints=keypoints,
        attributes=np.zeros((count, 6), np.int8),
    )


FACE = [30.0, 30.0, 70.0, 70.0]


@pytest.mark.parametrize(
    ("window", "kind"),
    [
        pytest.param([30, 30, 70, 70], POSITIVE, id="on the face"),
        pytest.param([36, 30, 76, 70], POSITIVE, id="IoU .74"),
        pytest.param([42, 30, 82, 70], PART, id="IoU .54"),
        pytest.param([50, 30, 90, 70], None, id="IoU .33 is neither"),
        pytest.param([60, 30, 100, 70], NEGATIVE, id="IoU .14"),
        pytest.param([45, 45, 55, 55], NEGATIVE, id="a nose is no face"),
    ],
)
def test_kind_by_overlap(window: list[int], kind: int | None) -> None:
    made = label(np.array([window], float), entry([FACE], [False]), SAMPLING)
    assert made.kind.tolist() == ([] if kind is None else [kind])


def test_a_narrow_face_has_positives_too() -> None:
    """A 30x60 face at the left border: no square reaches IoU .65, the best one is a positive all the same."""
    face = np.array([[0, 20, 30, 80]], float)
    side = np.sqrt(30 * 60)
    best = np.array([[0, 50 - side / 2, side, 50 + side / 2]])
    assert iou(best, face)[0, 0] == pytest.approx(np.sqrt(0.5) / (2 - np.sqrt(0.5)), abs=1e-6)
    assert label(best, entry([face[0].tolist()], [False]), SAMPLING).kind.tolist() == [POSITIVE]


def test_nothing_is_learned_from_invalid_faces() -> None:
    windows = np.array([[30, 30, 70, 70], [35, 35, 50, 50], [150, 150, 190, 190]], float)
    made = label(windows, entry([FACE], [True]), SAMPLING)
    assert made.xyxy.tolist() == [[150, 150, 190, 190]]
    assert made.kind.tolist() == [NEGATIVE]


def test_targets_lead_back_to_the_annotation() -> None:
    window = np.array([[34, 28, 74, 68]], float)
    made = label(window, entry([FACE], [False], POINTS), SAMPLING)
    side = 40
    corners = window[0] + made.box[0] * side
    spots = window[0, :2] + made.landmarks[0].reshape(2, 5).T * side
    assert np.allclose(corners, FACE, atol=1e-4)
    assert np.allclose(spots, POINTS, atol=1e-4)


def test_thrown_windows_cover_all_kinds() -> None:
    rng = np.random.default_rng(0)
    target = entry([FACE, [100, 20, 130, 60]], [False, True])
    windows = throw(target, SAMPLING, rng, 200, 150)
    made = label(windows, target, SAMPLING)
    best = iou(made.xyxy, target.xyxy[:1]).max(1)
    assert (best[made.kind == POSITIVE] >= 0.65).all()
    assert ((best[made.kind == PART] >= 0.4) & (best[made.kind == PART] < 0.65)).all()
    assert (best[made.kind == NEGATIVE] < 0.3).all()
    assert (iom(made.xyxy[made.kind == NEGATIVE], target.xyxy[1:]) <= 0.3).all()
    assert min(np.bincount(made.kind, minlength=3)) > 5


def test_mirrored_targets_are_those_of_the_mirrored_annotation() -> None:
    """In a 100 pixel wide picture x becomes 100 - x and left and right points change names."""
    window = np.array([[34, 28, 74, 68]], float)
    swapped = POINTS[[1, 0, 2, 4, 3]] * [-1, 1] + [100, 0]
    plain = label(window, entry([FACE], [False], POINTS), SAMPLING)
    mirrored_face = [100 - FACE[2], FACE[1], 100 - FACE[0], FACE[3]]
    mirrored_window = np.array([[100 - 74, 28, 100 - 34, 68]], float)
    expected = label(mirrored_window, entry([mirrored_face], [False], swapped), SAMPLING)

    pixels = (100 + torch.arange(48, dtype=torch.uint8)).expand(200, 3, 48, 48)
    targets = {
        "kind": torch.ones(200, dtype=torch.long),
        "box": torch.from_numpy(plain.box).repeat(200, 1),
        "landmarks": torch.from_numpy(plain.landmarks).repeat(200, 1),
    }
    x, made = augment(pixels, targets, torch.Generator().manual_seed(0))
    flipped = x[:, 0, 0, 0] > x[:, 0, 0, -1]
    assert 60 < int(flipped.sum()) < 140
    for which, reference in ((flipped, expected), (~flipped, plain)):
        assert np.allclose(made["box"][which].numpy(), reference.box, atol=1e-5)
        assert np.allclose(made["landmarks"][which].numpy(), reference.landmarks, atol=1e-5)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 127 / 128


def test_hard_examples_by_sorting() -> None:
    face, kind = (
        torch.randn(10, 2, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 1, 2, 3, 0, 1, 0, 0, 1, 0]),
    )
    judged = [i for i in range(10) if kind[i] in (0, 1)]
    each = sorted((float(F.cross_entropy(face[i : i + 1], kind[i : i + 1])) for i in judged), reverse=True)
    hardest = each[: int(len(each) * 0.7)]
    assert float(face_loss(face, kind, Weights(hardest=0.7))) == pytest.approx(
        sum(hardest) / len(hardest), rel=1e-5
    )


def test_part_and_landmark_faces_teach_no_class_and_unknown_points_nothing() -> None:
    face = torch.zeros(4, 2, requires_grad=True)
    box = torch.zeros(4, 4, requires_grad=True)
    points = torch.zeros(4, 10, requires_grad=True)
    targets = {
        "kind": torch.tensor([NEGATIVE, POSITIVE, PART, LANDMARK]),
        "box": torch.ones(4, 4),
        "landmarks": torch.ones(4, 10),
    }
    targets["landmarks"][1] = float("nan")
    sum(loss((face, box, points), targets, Weights(hardest=1.0)).values()).backward()
    assert (face.grad.abs().sum(1) > 0).tolist() == [True, True, False, False]
    assert (box.grad.abs().sum(1) > 0).tolist() == [False, True, True, False]
    assert (points.grad.abs().sum(1) > 0).tolist() == [True, False, True, True]


def test_a_teacher_is_heard_of_every_window_and_only_the_logit_counts() -> None:
    """Face logits are a pair of which only the difference has a meaning: .2 |3| - .1 for a difference of 3."""
    face, box = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.zeros(2, 4)
    targets = {
        "kind": torch.tensor([PART, LANDMARK]),
        "box": torch.zeros(2, 4),
        "landmarks": torch.zeros(2, 10),
        "teacher": (torch.tensor([[5.0, 9.0], [-1.0, -1.0]]), box),
    }
    parts = loss((face, box), targets, Weights(teacher=0.2))
    assert float(parts["teacher"]) == pytest.approx(0.2 * (3 - 0.5) / 2)


@pytest.fixture
def small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSet:
    """A pool made from twelve drawn pictures."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(12):
        picture = rng.integers(0, 256, (120, 140, 3), np.uint8)
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), picture)
        made = entry([FACE], [False], POINTS, path)
        entries.append(
            Entry(
                path,
                f"0--Crowd/{number}.png",
                made.event,
                made.xyxy,
                made.invalid,
                made.keypoints,
                made.attributes,
            )
        )
    monkeypatch.setattr(data, "read", lambda root, split: entries)
    recipe = change(RECIPES["mtcnn-relu"], "stages.pnet.sampling.held_out=0.3")
    return train_set("pnet", recipe, tmp_path, tmp_path / "samples", {}, "")


def test_pool_batches_are_balanced_repeatable_and_held_apart(small_set: TrainSet) -> None:
    x, targets = small_set.batch((0, 0, 5), 100)
    again, _ = small_set.batch((0, 0, 5), 100)
    other, _ = small_set.batch((0, 0, 6), 100)
    assert x.shape == (100, 3, 12, 12)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert np.bincount(targets["kind"]).tolist() == [60, 20, 20]  # negative 3 : positive 1 : part 1
    for kind in (POSITIVE, NEGATIVE):
        ours, theirs = small_set.pool.members[kind], small_set.held_out.members[kind]
        assert len(ours)
        assert len(theirs)
        assert not set(ours.tolist()) & set(theirs.tolist())
