"""slim and RFB against their published graph in plain functions, and their learning against loops and paint."""

from __future__ import annotations

import subprocess
import sys
from math import ceil, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo import folder, verbs
from octavo.boxes import iou
from octavo.data.pixels import normalise
from octavo.data.widerface import Entry
from octavo.images import read
from octavo.models import load_modules
from octavo.models.slim import data, net
from octavo.models.slim.data import in_frame, look, train_set
from octavo.models.slim.loss import IGNORED, NEGATIVE, POSITIVE, encode, encode_points, face_loss, loss, match
from octavo.models.slim.predict import (
    LEVELS,
    MEAN,
    Settings,
    decode,
    decode_points,
    framed,
    predict,
    priors,
    resized,
)
from octavo.models.slim.recipe import RECIPES, Matching, Sampling, Weights
from octavo.recipe import change

VARIANTS = {"slim": "slim_Final.pth", "rfb": "RBF_Final.pth"}
State = dict[str, Tensor]


def published(w: State, image: np.ndarray) -> tuple[Tensor, ...]:
    """The published graph on its own tensors, straight from the topology: BGR less its mean, zeros around it."""
    x = torch.from_numpy(image[:, :, ::-1].astype(np.float32) - np.float32([104, 117, 123]))
    x = x.permute(2, 0, 1)[None]

    def norm(key: str, x: Tensor) -> Tensor:
        values = (w[f"{key}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, eps=1e-5)

    def conv(key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = w[f"{key}.weight"]
        return F.conv2d(x, weight, w.get(f"{key}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def separable(key: str, x: Tensor, stride: int) -> Tensor:
        x = F.relu(norm(f"{key}.1", conv(f"{key}.0", x, stride, x.shape[1])))
        return F.relu(norm(f"{key}.4", conv(f"{key}.3", x)))

    def basic(key: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = w[f"{key}.conv.weight"]
        padding = weight.shape[-1] // 2 * dilation
        return norm(f"{key}.bn", F.conv2d(x, weight, padding=padding, dilation=dilation))

    def block(x: Tensor) -> Tensor:
        near = F.relu(basic("conv8.branch0.1", basic("conv8.branch0.0", x)))
        middle = F.relu(basic("conv8.branch1.1", basic("conv8.branch1.0", x)))
        far = F.relu(basic("conv8.branch2.1", basic("conv8.branch2.0", x)))
        far = F.relu(basic("conv8.branch2.2", far))
        ends = [
            basic("conv8.branch0.2", near, 2),
            basic("conv8.branch1.2", middle, 3),
            basic("conv8.branch2.3", far, 5),
        ]
        return F.relu(basic("conv8.ConvLinear", torch.cat(ends, 1)) + basic("conv8.shortcut", x))

    x = F.relu(norm("conv1.1", conv("conv1.0", x, 2)))
    features = []
    for number in range(2, 14):
        is_block = number == 8 and "conv8.shortcut.conv.weight" in w
        x = block(x) if is_block else separable(f"conv{number}", x, 2 if number in (3, 5, 9, 12) else 1)
        if number in (8, 11, 13):
            features.append(x)
    x = F.relu(conv("conv14.0", x))
    features.append(F.relu(conv("conv14.2.2", F.relu(conv("conv14.2.0", x, 2, 64)))))

    def head(name: str, width: int) -> Tensor:
        answers = []
        for i, x in enumerate(features):
            if i < 3:
                x = F.relu(conv(f"{name}.{i}.0", x, 1, x.shape[1]))
            x = conv(f"{name}.{i}.2" if i < 3 else f"{name}.3", x)
            answers.append(x[0].permute(1, 2, 0).reshape(-1, width))
        return torch.cat(answers)

    return head("conf", 2), head("loc", 4), head("landm", 10)


def made(variant: str) -> State:
    """A state dict under the published names with the published shapes, of noise that keeps values moderate."""
    generator = torch.Generator().manual_seed(1)
    names = {ours: theirs for theirs, ours in net.PUBLISHED.items()}
    inside = {".near": ".branch0", ".middle": ".branch1", ".far": ".branch2", ".join": ".ConvLinear"}
    state = {}
    for key, tensor in net.build(variant)["detector"].state_dict().items():
        ours = max((prefix for prefix in names if key.startswith(prefix)), key=len)
        layer = names[ours] + key.removeprefix(ours)
        if variant == "rfb" and layer.startswith("conv8."):
            for our, their in inside.items():
                layer = layer.replace(our, their)
            head, _, tail = layer.rpartition(".")
            layer = f"{head[:-1]}{'conv' if head[-1] == '0' else 'bn'}.{tail}"
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var"):
            noise = noise.abs() + (100 if key.startswith("stem") else 0.5)
        elif tensor.ndim == 4:
            noise = noise * (2 / tensor[0].numel()) ** 0.5
        state[layer] = noise.to(tensor.dtype) if tensor.is_floating_point() else tensor
    return state


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def weights(variant: str, source: str, shared: Path | None) -> State:
    if source == "made":
        return made(variant)
    assert shared is not None
    return torch.load(shared / "weights" / VARIANTS[variant], map_location="cpu", weights_only=True)


@pytest.mark.parametrize("source", ["made", "shared"])
def test_imported_weights_compute_the_published_graph(
    variant: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every size modulo 2 and 64; the frame stands in for the zeros around BGR less its mean, at the border too."""
    theirs = weights(variant, source, request.getfixturevalue("shared") if source == "shared" else None)
    torch.save(theirs, tmp_path / "weights.pth")
    module = net.build(variant)["detector"].eval()
    module.load_state_dict(net.import_weights(tmp_path / "weights.pth")["detector"])
    image = read(verbs.samples()[1])
    for height, width in ((96, 128), (97, 131), (130, 65)):
        picture = np.ascontiguousarray(image[-height:, -width:])
        with torch.inference_mode():
            ours = [o[0] for o in module(normalise(torch.from_numpy(framed(picture))))]
            expected = published(theirs, picture)
        for mine, wanted in zip(ours, expected, strict=True):
            assert mine.shape == wanted.shape
            assert (mine - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            lambda s: s.pop("conv5.3.weight"), r"missing.*stages\.0\.3\.3\.weight", id="one missing"
        ),
        pytest.param(lambda s: s.update(extra=torch.zeros(1)), "unknown.*extra", id="one too many"),
        pytest.param(
            lambda s: s.update({"loc.3.bias": torch.zeros(13)}), r"misshaped box\.3\.bias", id="a wrong shape"
        ),
        pytest.param(lambda s: s.update(epoch=3), "no state dict", id="a checkpoint"),
    ],
)
def test_a_file_that_does_not_fit_says_what(spoil, says: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = made("slim")
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=says):
        net.import_weights(tmp_path / "w.pth")


def test_import_tells_the_variants_apart(tmp_path: Path) -> None:
    torch.save({f"module.{key}": value for key, value in made("rfb").items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="do not fit slim; they fit rfb"):
        verbs.import_("slim", tmp_path / "w.pth", tmp_path / "out")
    made_folder = verbs.import_("rfb", tmp_path / "w.pth", tmp_path / "out")
    assert folder.read_info(made_folder)["variant"] == "rfb"
    with pytest.raises(ValueError, match=r"is no file: the published weights are one, slim_Final\.pth"):
        verbs.import_("slim", tmp_path, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "crowd", "web"), [("slim", 0.665, 0.991), ("rfb", 0.726, 0.993)])
def test_imported_weights_find_what_a_third_party_finds(
    name: str, crowd: float, web: float, shared: Path, tmp_path: Path
) -> None:
    """AP on data/faces val, as another implementation measured it with the same weights."""
    model = verbs.import_(name, shared / "weights" / VARIANTS[name], tmp_path / name)
    verbs.export(model)
    found = verbs.evaluate(model, shared / "data" / "faces", backend="onnxruntime")["ap"]
    assert found["0--Crowd"] == pytest.approx(crowd, abs=0.002)
    assert found["1--Web"] == pytest.approx(web, abs=0.002)
    assert found["2--Portrait"] == pytest.approx(1, abs=0.002)


# Priors and boxes


@pytest.mark.parametrize(("height", "width"), [(240, 320), (1, 1), (97, 131), (64, 65)])
def test_priors_lie_as_the_network_answers(height: int, width: int, variant: str) -> None:
    count = sum(ceil(height / stride) * ceil(width / stride) * len(sides) for stride, sides in LEVELS)
    places = priors(height, width)
    assert places.shape == (count, 3)
    assert (height, width) != (240, 320) or count == 4420  # as published
    module = net.build(variant)["detector"].eval()
    with torch.inference_mode():
        outputs = module(torch.zeros(framed(np.zeros((height, width, 3), np.uint8)).shape))
    assert [o.shape for o in outputs] == [(1, count, 2), (1, count, 4), (1, count, 10)]


def test_priors_are_in_the_order_level_row_column_side() -> None:
    places = priors(16, 24)
    assert places[:4].tolist() == [[4, 4, 10], [4, 4, 16], [4, 4, 24], [12, 4, 10]]
    assert places[9].tolist() == [4, 12, 10]  # the second row of three cells
    assert places[18].tolist() == [8, 8, 32]  # the next level: one row of two cells
    assert places[-3:].tolist() == [[32, 32, 128], [32, 32, 192], [32, 32, 256]]


def test_decode_by_hand() -> None:
    prior = np.array([[50.0, 60.0, 20.0]], np.float32)
    offsets = np.array([[1.0, -0.5, log(2) / 0.2, 0]], np.float32)
    assert decode(offsets, prior) == pytest.approx(np.array([[52 - 20, 59 - 10, 52 + 20, 59 + 10]]), abs=1e-4)
    points = np.zeros((1, 10), np.float32)
    points[0, 2:4] = 2, 3
    assert decode_points(points, prior)[0, :2].tolist() == [[50, 60], [54, 66]]


def test_encode_is_the_inverse_of_decode() -> None:
    rng = np.random.default_rng(0)
    places = priors(128, 128)
    offsets = rng.normal(0, 1, (len(places), 4)).astype(np.float32)
    points = rng.normal(0, 1, (len(places), 10)).astype(np.float32)
    assert np.abs(encode(decode(offsets, places), places) - offsets).max() < 1e-3
    assert np.abs(encode_points(decode_points(points, places), places) - points).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_the_frame_is_of_mean_colour_and_even(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    planes = framed(image)
    assert planes.shape[2] % 2 == planes.shape[3] % 2 == 0
    assert planes.flags.c_contiguous
    assert (planes[0, :, 1 : height + 1, 1 : width + 1] == image.transpose(2, 0, 1)).all()
    frame = np.ones(planes.shape[2:], bool)
    frame[1 : height + 1, 1 : width + 1] = False
    assert (planes[0, :, frame] == MEAN).all()


@pytest.mark.parametrize("long_side", [0, 100, 640])
def test_boxes_are_in_pixels_of_the_image_whatever_size_it_is_looked_at_in(long_side: int) -> None:
    """One prior is made to answer: its square must come back scaled, and its landmarks with it."""
    image = np.zeros((240, 320, 3), np.uint8)
    scaled, scale = resized(image, long_side)
    places = priors(*scaled.shape[:2])
    number = len(places) // 3

    def detector(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        face = np.tile(np.float32([5, -5]), (1, len(places), 1))
        face[0, number] = -5, 5
        return (
            face,
            np.zeros((1, len(places), 4), np.float32),
            np.zeros((1, len(places), 10), np.float32),
        )

    found = predict(image, {"detector": detector}, Settings(long_side=long_side))
    x, y, side = places[number]
    expected = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2]) / np.tile(scale, 2)
    assert found.xyxy == pytest.approx(expected[None], abs=1e-3)
    assert found.keypoints == pytest.approx(np.tile([x, y] / scale, (1, 5, 1)), abs=1e-3)
    assert found.confidence == pytest.approx([1 / (1 + np.exp(-10))])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"confidence": 1.5}, "confidence is a number from 0 to 1"),
        ({"long_side": 5}, "long_side is 16 to 16384"),
        ({"most": 0}, "most is how many"),
        ({"min_face": 12}, "have no setting min_face; they have confidence, nms"),
    ],
)
def test_wrong_settings_say_what_is_possible(given: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings.of({}, **given)


def test_the_embedded_model_is_small_and_finds_who_is_there() -> None:
    """INT8: below 450 kB with the form for ONNX Runtime; ten of the wall of eleven at the usual confidence."""
    assert sum(file.stat().st_size for file in folder.find("slim").glob("*.onnx")) < 450_000
    model = verbs.load("slim", "onnxruntime")
    counts = {path.stem: len(model(path)) for path in verbs.samples()}
    assert counts == {"astronaut": 1, "group": 10, "hopper": 1}


# Learning


def plain_match(
    places: np.ndarray, faces: np.ndarray, unsure: np.ndarray, matching: Matching
) -> tuple[list[int], list[int]]:
    """Kind of each prior and the face it learns, in loops: the definition in words."""
    squares = [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s in places]

    def inside(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

    def size(a: tuple[float, ...]) -> float:
        return (a[2] - a[0]) * (a[3] - a[1])

    def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return inside(a, b) / (size(a) + size(b) - inside(a, b))

    best = [max(overlap(square, face) for square in squares) for face in faces]
    unsure = [*unsure, *(face for face, top in zip(faces, best, strict=True) if top < matching.claimed)]
    claimed: dict[int, int] = {}
    for face in sorted(range(len(faces)), key=lambda f: -best[f]):
        if best[face] < matching.claimed:
            continue
        free = [i for i in range(len(squares)) if i not in claimed]
        claimed[max(free, key=lambda i: overlap(squares[i], faces[face]))] = face
    kinds, chosen = [], []
    for i, square in enumerate(squares):
        learnable = [f for f in range(len(faces)) if best[f] >= matching.claimed]
        tops = {f: overlap(square, faces[f]) for f in learnable}
        mine = claimed.get(i, max(tops, key=tops.__getitem__) if tops else -1)
        if i in claimed or (tops and tops[mine] >= matching.positive):
            kinds.append(POSITIVE)
        else:
            hidden = any(inside(square, u) / size(square) >= matching.ignored for u in unsure)
            kinds.append(IGNORED if hidden else NEGATIVE)
        chosen.append(mine)
    return kinds, chosen


@pytest.mark.parametrize("seed", range(6))
def test_matching_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = priors(96, 128)
    corner, side = rng.uniform(0, 100, (9, 2)), np.exp(rng.uniform(log(3), log(90), (9, 1)))
    boxes = np.concatenate([corner, corner + side * [[0.8, 1.1]]], 1).astype(np.float32)
    faces, unsure = boxes[:6], boxes[6:]
    points = rng.uniform(0, 100, (6, 5, 2)).astype(np.float32)
    points[0] = np.nan
    made = match(places, faces, points, unsure, Matching())
    kinds, chosen = plain_match(places, faces, unsure, Matching())
    assert made.kind.tolist() == kinds
    positive = np.flatnonzero(made.kind == POSITIVE)
    assert len(positive)
    assert set(kinds) == {IGNORED, NEGATIVE, POSITIVE}
    learned = faces[[chosen[i] for i in positive]]
    assert decode(made.box[positive], places[positive]) == pytest.approx(learned, abs=1e-3)
    told = decode_points(made.landmarks[positive], places[positive])
    assert told == pytest.approx(points[[chosen[i] for i in positive]], abs=1e-3, nan_ok=True)


def test_a_face_has_a_prior_of_its_own() -> None:
    """Two faces that the same prior fits best: both are learned."""
    places = priors(64, 64)
    faces = np.array([[10, 10, 26, 26], [11, 11, 26, 26]], np.float32)
    squares = decode(np.zeros((len(places), 4), np.float32), places)
    assert len(set(iou(squares, faces).argmax(0).tolist())) == 1
    made = match(places, faces, np.full((2, 5, 2), np.nan, np.float32), np.empty((0, 4)), Matching())
    positive = made.kind == POSITIVE
    learned = decode(made.box[positive], places[positive]).round().astype(int).tolist()
    assert {tuple(box) for box in learned} == {tuple(box) for box in faces.astype(int).tolist()}


def test_an_image_without_faces_is_background() -> None:
    made = match(priors(64, 64), np.empty((0, 4)), np.empty((0, 5, 2)), np.empty((0, 4)), Matching())
    assert (made.kind == NEGATIVE).all()


def targets_of(kind: list[list[int]], seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    n, p = len(kind), len(kind[0])
    outputs = tuple(torch.randn(n, p, width, generator=generator).requires_grad_() for width in (2, 4, 10))
    landmarks = torch.randn(n, p, 10, generator=generator)
    landmarks[0, 0] = torch.nan
    return outputs, {
        "kind": torch.tensor(kind),
        "box": torch.randn(n, p, 4, generator=generator),
        "landmarks": landmarks,
    }


KIND = [[1, 1, 0, 0, 0, 0, -1, 0], [0, 0, 0, 0, -1, 0, 0, 0]]


def test_loss_against_loops() -> None:
    outputs, targets = targets_of(KIND)
    matching = Matching(negatives=1, fewest_negatives=1)
    parts = loss(outputs, targets, Weights(matching, face=1, box=2, landmarks=3))
    entropy = -F.log_softmax(outputs[0].detach(), 2)
    face = float(entropy[0, :2, 1].sum())
    face += float(entropy[0, [2, 3, 4, 5, 7], 0].sort().values[-2:].sum())  # one each for two positives
    face += float(entropy[1, [0, 1, 2, 3, 5, 6, 7], 0].max())  # at least one of each image

    def smooth(a: Tensor, b: Tensor) -> float:
        return sum(0.5 * d * d if d < 1 else d - 0.5 for d in (a - b).abs().flatten().tolist())

    box = smooth(outputs[1].detach()[0, :2], targets["box"][0, :2]) / 2
    landmarks = smooth(outputs[2].detach()[0, 1], targets["landmarks"][0, 1])  # the other's are not known
    wanted = {"face": face / 2, "box": 2 * box, "landmarks": 3 * landmarks}
    assert {key: float(value.detach()) for key, value in parts.items()} == pytest.approx(wanted, rel=1e-5)


def test_gradients_reach_what_is_learned_and_nothing_else() -> None:
    outputs, targets = targets_of(KIND)
    parts = loss(outputs, targets, Weights(Matching(negatives=7, fewest_negatives=3)))
    torch.stack(list(parts.values())).sum().backward()
    face, box, landmarks = ((o.grad != 0).any(2) for o in outputs if o.grad is not None)
    kind = targets["kind"]
    assert not face[kind == IGNORED].any()
    assert face[0].tolist() == (kind[0] != IGNORED).tolist()  # 14 allowed, 5 there
    assert int(face[1].sum()) == 3
    assert box.tolist() == (kind == POSITIVE).tolist()
    assert landmarks.nonzero().tolist() == [[0, 1]]


def test_a_batch_without_faces_has_a_finite_loss() -> None:
    outputs, targets = targets_of([[0, 0, 0, -1]])
    parts = loss(outputs, targets, Weights())
    assert all(torch.isfinite(value) for value in parts.values())
    assert float(parts["box"].detach()) == 0


def test_face_loss_gradient_is_the_numerical_one() -> None:
    face = torch.randn(2, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    face.requires_grad_()
    kind = torch.tensor(KIND)
    assert torch.autograd.gradcheck(lambda f: face_loss(f, kind, Matching(fewest_negatives=2)), (face,))


# What it learns from


def painted(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[np.ndarray, Entry]:
    """A black photograph (width, height) with a white face in it, its left eye red."""
    x1, y1, x2, y2 = box
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    points = np.full((1, 5, 2), np.nan, np.float32)
    points[0, :2] = (x1, y1), (x2, y1)
    return image, Entry(
        path=Path("x"),
        name="0--Crowd/x.jpg",
        event="0--Crowd",
        xyxy=np.array([box], np.float32),
        invalid=np.zeros(1, bool),
        keypoints=points,
        attributes=np.zeros((1, 6), np.int8),
    )


@pytest.mark.parametrize("zoom", [(0.4, 0.6), (1, 1), (1.5, 3)], ids=["smaller", "as it is", "larger"])
def test_boxes_follow_the_picture(zoom: tuple[float, float]) -> None:
    """Where the face was painted it is found again, whatever window, zoom and mirror were drawn."""
    image, entry = painted((70, 50, 110, 100), (180, 140))
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view = look(image, entry, 160, Sampling(zoom=zoom, room=9), rng)
        assert view.pixels.shape == (160, 160, 3)
        assert len(view.faces) == 1
        rows, columns = np.nonzero(view.pixels.min(2) > 128)
        shown = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.clip(view.faces[0], 0, 160) == pytest.approx(shown, abs=1.01)
        left, right = view.points[0, :2]
        assert left[0] < right[0]  # mirrored, the left eye is the other one
        seen.add(len(np.unique((view.pixels == MEAN).all(2))) > 1)
    assert seen  # windows were cut at all


def test_a_face_mostly_outside_is_unsure() -> None:
    image, entry = painted((0, 0, 60, 60), (400, 60))
    entry.xyxy[0, 2:] = 60
    both = Entry(
        entry.path,
        entry.name,
        entry.event,
        np.array([[0, 0, 60, 60], [300, 0, 360, 60]], np.float32),
        np.zeros(2, bool),
        np.concatenate([entry.keypoints] * 2),
        np.zeros((2, 6), np.int8),
    )
    for seed in range(10):
        view = look(image, both, 64, Sampling(zoom=(1, 1)), np.random.default_rng(seed))
        assert len(view.faces) == 1
        assert len(view.unsure) == 1


def test_in_frame_is_what_predict_frames() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    x = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert torch.equal(in_frame(x), normalise(torch.from_numpy(framed(image))))


SMALL = (
    "stages.detector.sampling.sizes=[64, 96]",
    "stages.detector.schedule.epochs=2",
    "stages.detector.schedule.steps=2",
    "stages.detector.schedule.batch_size=2",
    "stages.detector.sampling.longest=200",
    "stages.detector.sampling.held_out=0.0",
)


def test_a_batch_depends_on_its_seed_alone(annotated: Path, tmp_path: Path) -> None:
    recipe = RECIPES["slim"]
    for assignment in SMALL:
        recipe = change(recipe, assignment)
    samples = train_set("detector", recipe, annotated, tmp_path, {}, "")
    again = train_set("detector", recipe, annotated, tmp_path, {}, "")
    assert len(list(tmp_path.iterdir())) == 1  # decoded once
    assert max(max(picture.shape) for picture in samples.pictures) == 200
    (x, targets), (other, _) = samples.batch((0, 0, 7), 3), samples.batch((0, 0, 8), 3)
    y, repeated = again.batch((0, 0, 7), 3)
    assert torch.equal(x, y)
    assert all(torch.equal(targets[k].nan_to_num(9), repeated[k].nan_to_num(9)) for k in targets)
    assert x.shape != other.shape or not torch.equal(x, other)
    assert targets["kind"].shape == (3, len(priors(x.shape[2] - 2, x.shape[3] - 2)))
    assert bool((targets["kind"] == POSITIVE).any())


def test_the_whole_way_from_training_to_integers(annotated: Path, tmp_path: Path) -> None:
    """train, go on from it, quantize, export, predict: by the verbs alone, which know no family."""
    first = verbs.train("slim", annotated, tmp_path / "first", changes=SMALL)
    assert first is not None
    tuned = verbs.train(first, annotated, tmp_path / "tuned", changes=SMALL)
    assert tuned is not None
    info = folder.read_info(tuned)
    assert (info["family"], info["networks"], info["precision"]) == ("slim", ["detector"], "float")
    quantized = verbs.quantize(tuned, annotated, tmp_path / "int8", images=2)
    made, parities, lowered = verbs.export(quantized)
    assert parities["detector"].ok
    assert lowered["detector.onnxruntime"].parity.ok
    image = read(verbs.samples()[0])
    found = {
        backend: verbs.load(made, backend)(image, confidence=0.0, most=20)
        for backend in ("torch", "onnxruntime")
    }
    assert len(found["torch"]) == 20
    assert found["onnxruntime"].confidence == pytest.approx(found["torch"].confidence, abs=1e-3)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(annotated: Path, tmp_path: Path) -> None:
    """torchrun with two processes (gloo), half of each batch in each: on other batches the loss falls as far.

    The batches of a step are others than those of one process, so the weights are; within noise they are as good.
    """
    settings = dict(zip((c.split("=")[0] for c in SMALL), SMALL, strict=True))
    chosen = settings | {
        name: f"{name}={value}"
        for name, value in {
            "stages.detector.sampling.sizes": "[64]",
            "stages.detector.schedule.steps": 20,
            "stages.detector.schedule.batch_size": 4,
            "stages.detector.schedule.learning_rate": 0.01,
            "stages.detector.schedule.ema": 0.9,
        }.items()
    }
    changes = [word for change in chosen.values() for word in ("--set", change)]
    launchers = {
        "one": (),
        "two": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    }
    recipe = RECIPES["slim"]
    for assignment in chosen.values():
        recipe = change(recipe, assignment)
    samples = train_set("detector", recipe, annotated, tmp_path / "probe", {}, "")
    probes = [samples.batch((9, 0, step), 8) for step in range(4)]

    @torch.inference_mode()
    def lost(module: torch.nn.Module) -> float:
        parts = [loss(module.eval()(x), y, Weights()) for x, y in probes]
        return float(sum(value for part in parts for value in part.values())) / len(probes)

    torch.manual_seed(0)
    before = lost(net.build("slim")["detector"])
    after = {}
    for name, launcher in launchers.items():
        words = ["train", "slim", "--data", annotated, "--out", tmp_path / name, *changes]
        ran = subprocess.run(
            [sys.executable, *launcher, "-m", "octavo", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        after[name] = lost(load_modules(tmp_path / name)["detector"])
        assert len((tmp_path / name / "log.jsonl").read_text().splitlines()) == 2  # one process writes
    assert after["one"] < 0.8 * before
    assert before - after["two"] == pytest.approx(before - after["one"], rel=0.3)


def test_a_teacher_is_of_the_same_family_and_the_loss_must_listen(annotated: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mtcnn-relu-float is of the family mtcnn"):
        verbs.train("slim", annotated, tmp_path / "out", teachers=["mtcnn-relu-float"])
    slim = verbs.train("slim", annotated, tmp_path / "slim", changes=SMALL)
    assert slim is not None
    with pytest.raises(ValueError, match="learns from labels only"):
        verbs.train("slim", annotated, tmp_path / "out", teachers=[slim])
    assert not (tmp_path / "out").exists()


def test_calibration_shows_whole_photographs(annotated: Path) -> None:
    settings = Settings(long_side=100)
    batches = list(data.calibration_batches("detector", annotated, {}, settings, 2))
    assert len(batches) == 2
    assert all(b.dtype == np.uint8 and max(b.shape[2:]) == 102 for b in batches)
