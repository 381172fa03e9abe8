"""YOLOv5: the network against the published table of layers, its decoding, its loss, its pictures."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.data.coco import Entry
from octavo.images import read
from octavo.models.yolov5 import data, net, predict
from octavo.models.yolov5.loss import ciou, decoded, loss, match
from octavo.models.yolov5.predict import ANCHORS, CLASSES, STRIDES, Settings
from octavo.models.yolov5.recipe import RECIPES, Sampling, Weights

State = dict[str, Tensor]

# The table of layers as the published file carries it: from, times, kind, (outputs, kernel, stride or shortcut).
LAYERS = [
    (-1, 1, "Conv", 64, 6, 2),
    (-1, 1, "Conv", 128, 3, 2),
    (-1, 3, "C3", 128, True),
    (-1, 1, "Conv", 256, 3, 2),
    (-1, 6, "C3", 256, True),
    (-1, 1, "Conv", 512, 3, 2),
    (-1, 9, "C3", 512, True),
    (-1, 1, "Conv", 1024, 3, 2),
    (-1, 3, "C3", 1024, True),
    (-1, 1, "SPPF", 1024, 5),
    (-1, 1, "Conv", 512, 1, 1),
    (-1, 1, "Upsample"),
    ((-1, 6), 1, "Concat"),
    (-1, 3, "C3", 512, False),
    (-1, 1, "Conv", 256, 1, 1),
    (-1, 1, "Upsample"),
    ((-1, 4), 1, "Concat"),
    (-1, 3, "C3", 256, False),
    (-1, 1, "Conv", 256, 3, 2),
    ((-1, 14), 1, "Concat"),
    (-1, 3, "C3", 512, False),
    (-1, 1, "Conv", 512, 3, 2),
    ((-1, 10), 1, "Concat"),
    (-1, 3, "C3", 1024, False),
]
LAST = (17, 20, 23)  # what the three heads read


class Published:
    """The published graph, computed by functions from tensors of the published names; made at the first pass."""

    def __init__(self, width: float, depth: float) -> None:
        self.width, self.depth = width, depth
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if name not in self.state:
            value = torch.rand(shape, generator=self.generator) * (high - low) + low
            self.state[name] = value.half()  # as the file is
        return self.state[name].float()

    def conv(self, name: str, x: Tensor, outputs: int, kernel: int = 1, stride: int = 1) -> Tensor:
        bound = (6 / (x.shape[1] * kernel**2)) ** 0.5
        weight = self.tensor(f"{name}.conv.weight", (outputs, x.shape[1], kernel, kernel), -bound, bound)
        x = F.conv2d(x, weight, None, stride, kernel // 2 if kernel != 6 else 2)
        norm = {
            kind: self.tensor(f"{name}.bn.{kind}", (outputs,), low, high)
            for kind, low, high in (
                ("weight", 0.8, 1.5),
                ("bias", -0.3, 0.3),
                ("running_mean", -0.1, 0.1),
                ("running_var", 0.4, 1.5),
            )
        }
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
        x = (x - norm["running_mean"].view(-1, 1, 1)) / (norm["running_var"] + 1e-3).sqrt().view(-1, 1, 1)
        x = x * norm["weight"].view(-1, 1, 1) + norm["bias"].view(-1, 1, 1)
        return x * torch.sigmoid(x)

    def layer(self, name: str, x: Tensor, times: int, kind: str, *rest: int) -> Tensor:
        if kind == "Upsample":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        outputs = math.ceil(rest[0] * self.width / 8) * 8
        if kind == "Conv":
            return self.conv(name, x, outputs, *rest[1:])
        if kind == "SPPF":
            x = self.conv(f"{name}.cv1", x, x.shape[1] // 2)
            pools = [
                F.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13)
            ]  # three of 5, one behind the other
            return self.conv(f"{name}.cv2", torch.cat([x, *pools], 1), outputs)
        y, past = self.conv(f"{name}.cv1", x, outputs // 2), self.conv(f"{name}.cv2", x, outputs // 2)
        for i in range(max(1, round(times * self.depth))):
            inner = self.conv(f"{name}.m.{i}.cv1", y, outputs // 2)
            inner = self.conv(f"{name}.m.{i}.cv2", inner, outputs // 2, 3)
            y = y + inner if rest[1] else inner
        return self.conv(f"{name}.cv3", torch.cat([y, past], 1), outputs)

    def __call__(self, x: Tensor) -> list[Tensor]:
        values: list[Tensor] = []
        for number, (source, times, kind, *rest) in enumerate(LAYERS):
            given = [values[i] if values else x for i in (source if isinstance(source, tuple) else (source,))]
            if kind == "Concat":
                values.append(torch.cat(given, 1))
            else:
                values.append(self.layer(f"model.{number}", given[0], times, kind, *rest))
        heads = []
        for i, number in enumerate(LAST):
            shape = (255, values[number].shape[1], 1, 1)
            weight = self.tensor(f"model.24.m.{i}.weight", shape, -0.3, 0.3)
            heads.append(F.conv2d(values[number], weight, self.tensor(f"model.24.m.{i}.bias", (255,), -3, 0)))
        anchors = torch.tensor(ANCHORS) / torch.tensor(STRIDES).view(-1, 1, 1)
        self.state["model.24.anchors"] = anchors.half()
        return heads


@pytest.fixture
def save() -> Iterator[Callable[[State, Path], Path]]:
    """Writes a state as users have it: a network of classes in modules `models.*`, pickled whole."""
    module = types.ModuleType("models.yolo")
    exec("from torch import nn\nclass Model(nn.Module):\n    pass\n", module.__dict__)
    module.Model.__module__ = "models.yolo"

    def write(state: State, path: Path) -> Path:
        sys.modules |= {"models": types.ModuleType("models"), "models.yolo": module}
        network = module.Model()
        network.names = list(CLASSES)
        for name, tensor in state.items():
            *way, last = name.split(".")
            parent = network
            for step in way:
                if step not in parent._modules:
                    parent.add_module(step, module.Model())
                parent = parent._modules[step]
            if last in ("weight", "bias"):
                parent.register_parameter(last, nn.Parameter(tensor))
            else:
                parent.register_buffer(last, tensor)
        torch.save({"epoch": -1, "model": network, "ema": None}, path)
        del sys.modules["models"], sys.modules["models.yolo"]
        return path

    yield write
    for name in ("models", "models.yolo"):
        sys.modules.pop(name, None)


# The network


@pytest.mark.parametrize(("variant", "size"), [("yolov5n", (0.25, 0.33)), ("yolov5s", (0.5, 0.33))])
def test_imported_weights_compute_the_published_graph(
    variant: str, size: tuple[float, float], save: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    published = Published(*size)
    x = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    wanted = published(x)
    path = save(published.state, tmp_path / "weights.pt")
    module = net.build(variant)["detector"].eval()
    module.load_state_dict(net.import_weights(path)["detector"])
    with torch.inference_mode():
        found = module(x)
    for mine, theirs, stride in zip(found, wanted, STRIDES, strict=True):
        assert mine.shape == theirs.shape == (2, 255, 64 // stride, 96 // stride)
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert net.import_info(path)["classes"] == list(CLASSES)


@pytest.mark.parametrize(("variant", "millions"), [("yolov5n", 1.872157), ("yolov5s", 7.235389)])
def test_it_has_the_published_number_of_weights(variant: str, millions: float) -> None:
    """1.9 and 7.2 million are published."""
    assert sum(p.numel() for p in net.build(variant)["detector"].parameters()) == millions * 1e6


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            lambda s: s.pop("model.4.m.1.cv2.bn.bias"), r"stage3\.inner\.1\.conv2\.1\.bias", id="one missing"
        ),
        pytest.param(
            lambda s: s.update({"model.30.weight": torch.ones(1)}), r"30\.weight", id="one too many"
        ),
        pytest.param(
            lambda s: s.update({"model.24.m.0.bias": torch.zeros(18)}),
            r"misshaped heads\.0\.bias",
            id="one class",
        ),
        pytest.param(
            lambda s: s.update({"model.24.anchors": torch.ones(3, 3, 2)}), "other anchors", id="other anchors"
        ),
    ],
)
def test_a_file_that_does_not_fit_says_what(
    spoil: Callable[[State], None], says: str, save: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    published = Published(0.25, 0.33)
    published(torch.zeros(1, 3, 32, 32))
    spoil(published.state)
    with pytest.raises(ValueError, match=says):
        net.import_weights(save(published.state, tmp_path / "w.pt"))


def test_the_published_file_fits(shared: Path) -> None:
    source = shared / "weights" / "yolov5n.pt"
    states = net.import_weights(source)
    net.build("yolov5n")["detector"].load_state_dict(states["detector"])
    assert {tensor.dtype for tensor in states["detector"].values()} == {torch.float32, torch.int64}
    assert net.import_info(source)["classes"] == list(CLASSES)


# There and back


@pytest.mark.parametrize(
    ("width", "height", "long_side"), [(640, 480, 640), (333, 517, 640), (50, 31, 0), (1, 9, 64)]
)
def test_a_letterbox_gives_boxes_back(width: int, height: int, long_side: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    box = predict.letterbox(image, long_side)
    assert all(side % 32 == 0 for side in box.pixels.shape[2:])
    held = np.argwhere((box.pixels[0] == 0).all(0))  # where the image is: black on grey
    (top, left), (bottom, right) = held.min(0), held.max(0) + 1
    assert np.allclose(
        box.back(np.array([[left, top, right, bottom]], float)), [[0, 0, width, height]], atol=1e-4
    )
    assert abs((left + right) - box.pixels.shape[3]) <= 1
    assert max(right - left, bottom - top) == (long_side or max(width, height))


def logits(height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(-1, 2, (255, height // s, width // s)).astype(np.float32) for s in STRIDES]


@pytest.mark.parametrize("every_class", [False, True])
def test_decoding_is_the_formula(every_class: bool) -> None:
    """Cell by cell, in Python's floats; and the module that stands in an export says the same."""
    levels = logits(32, 64)
    settings = Settings(confidence=0.3, every_class=every_class)
    wanted = []
    for level, stride, anchors in zip(levels, STRIDES, ANCHORS, strict=True):
        for a, (w, h) in enumerate(anchors):
            for row, column in np.ndindex(level.shape[1:]):
                values = 1 / (1 + np.exp(-level[85 * a : 85 * a + 85, row, column].astype(float)))
                x, y = (2 * values[0] - 0.5 + column) * stride, (2 * values[1] - 0.5 + row) * stride
                dx, dy = (2 * values[2]) ** 2 * w / 2, (2 * values[3]) ** 2 * h / 2
                scores = values[5:] * values[4]
                for label in range(80) if every_class else [int(scores.argmax())]:
                    if scores[label] > 0.3:
                        wanted.append([x - dx, y - dy, x + dx, y + dy, scores[label], label])
    assert len(wanted) > 50
    rows = net.Decoded()(*(torch.from_numpy(level)[None] for level in levels))[0].numpy()
    for xyxy, confidence, class_id in (predict.decode(levels, settings), predict.rows(rows, settings)):
        found = np.column_stack([xyxy, confidence, class_id])
        order = [np.lexsort(np.array(table).T[::-1].round(3)) for table in (found, wanted)]
        assert np.allclose(found[order[0]], np.array(wanted)[order[1]], rtol=1e-4, atol=1e-3)


def test_objects_of_different_classes_do_not_compete() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.7, 0.8], np.float32), np.array([3, 1, 1, 1])
    assert predict.nms_by_class(boxes, scores, labels, 0.5).tolist() == [1, 3, 0]
    assert predict.nms_by_class(boxes[:0], scores[:0], labels[:0], 0.5).tolist() == []


def test_nothing_and_everything(rng_image: np.ndarray) -> None:
    def nothing(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(
            np.full((1, 255, *(side // s for side in pixels.shape[2:])), -9, np.float32) for s in STRIDES
        )

    assert len(predict.predict(rng_image, {"detector": nothing}, Settings())) == 0
    everything = lambda pixels: tuple(-out for out in nothing(pixels))  # noqa: E731
    found = predict.predict(rng_image, {"detector": everything}, Settings(most=20))
    assert len(found) == 20
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= [70, 45, 70, 45]).all()


@pytest.fixture
def rng_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (45, 70, 3)).astype(np.uint8)


# The loss


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        pytest.param((3, 4, 2, 5), (3, 4, 2, 5), 1, id="the same"),
        pytest.param((0, 0, 2, 2), (4, 0, 2, 2), -16 / 40, id="apart: the distance alone"),
        pytest.param((0, 0, 4, 4), (0, 0, 2, 2), 0.25, id="one inside, of the same shape"),
        pytest.param((0, 0, 2, 2), (1, 0, 2, 2), 1 / 3 - 1 / 13, id="half covered"),
    ],
)
def test_ciou_by_hand(a: tuple[float, ...], b: tuple[float, ...], wanted: float) -> None:
    assert float(
        ciou(torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32))
    ) == pytest.approx(wanted, abs=1e-5)


def test_ciou_counts_the_shape() -> None:
    wide, tall = torch.tensor([[0.0, 0, 4, 2]]), torch.tensor([[0.0, 0, 2, 4]])
    iou, v = 4 / 12, 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    assert float(ciou(wide, tall)) == pytest.approx(iou - v * v / (1 - iou + v), abs=1e-5)


def test_matching_is_what_the_text_says() -> None:
    """Against loops over all cells and anchors."""
    rng = np.random.default_rng(3)
    rows, columns, stride = 6, 9, 16
    objects = np.column_stack(
        [
            rng.integers(0, 2, 12),
            rng.integers(0, 80, 12),
            rng.uniform(0, (columns * 16, rows * 16), (12, 2)),
            rng.uniform(8, 200, (12, 2)),
        ]
    )
    anchors = np.array(ANCHORS[1]) / stride
    wanted = set()
    for image, label, x, y, w, h in objects:
        x, y, w, h = x / stride, y / stride, w / stride, h / stride
        for a, (aw, ah) in enumerate(anchors):
            if max(w / aw, aw / w, h / ah, ah / h) >= 4:
                continue
            across = int(x) + (1 if x % 1 >= 0.5 else -1), int(y)
            down = int(x), int(y) + (1 if y % 1 >= 0.5 else -1)
            for column, row in ((int(x), int(y)), across, down):
                if 0 <= column < columns and 0 <= row < rows:
                    wanted.add((int(image), a, row, column, int(label), round(w, 3)))
    found = match(torch.tensor(objects).float(), torch.tensor(anchors).float(), stride, (rows, columns), 4.0)
    keys = zip(found.image, found.anchor, found.row, found.column, found.label, found.box[:, 2], strict=True)
    assert {(*(int(k) for k in key[:5]), round(float(key[5]), 3)) for key in keys} == wanted
    assert len(found.image) >= len(wanted) > 20
    assert (found.box[:, :2] >= -0.5).all()  # what the decoding reaches: -.5 to 1.5
    assert (found.box[:, :2] <= 1.5).all()


def test_the_loss_is_least_where_the_answer_is_right() -> None:
    """Logits that decode to the object: the box costs nothing, wrong classes and objects cost."""
    targets = {"objects": torch.tensor([[0.0, 7, 40, 24, 60, 50]])}
    right = [torch.full((1, 255, 64 // s, 64 // s), -12.0) for s in STRIDES]
    for level, stride, anchors in zip(right, STRIDES, ANCHORS, strict=True):
        sizes = torch.tensor(anchors) / stride
        found = match(targets["objects"], sizes, stride, (64 // stride, 64 // stride), 4.0)
        for a, row, column, box in zip(found.anchor, found.row, found.column, found.box, strict=True):
            values = torch.cat([(box[:2] + 0.5) / 2, (box[2:] / sizes[a]).sqrt() / 2])
            first = int(a) * 85
            level[0, first : first + 4, row, column] = torch.logit(values.clamp(1e-4, 1 - 1e-4))
            level[0, first + 4, row, column] = level[0, first + 5 + 7, row, column] = 12
            assert torch.allclose(
                decoded(level[0, first : first + 4, row, column][None], sizes[a][None])[0], box, atol=1e-2
            )
    parts = loss(tuple(right), targets, Weights())
    assert all(float(part) < 1e-3 for part in parts.values()), parts
    wrong = loss(tuple(level.roll(1, 1) for level in right), targets, Weights())
    assert all(float(wrong[name]) > 30 * float(part) for name, part in parts.items()), wrong
    empty = loss(tuple(right), {"objects": torch.zeros(0, 6)}, Weights())
    assert float(empty["box"]) == float(empty["classes"]) == 0 < float(empty["object"])


# The pictures


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> data.View:
    """A grey photograph with one red object."""
    pixels = np.full((height, width, 3), 114, np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = (250, 0, 0)
    return data.View(pixels, np.array([box], np.float32), np.array([5]))


@pytest.mark.parametrize("seed", range(8))
def test_boxes_go_where_their_pixels_go(seed: int) -> None:
    """Through mosaic, window and mirror: what is red is in a box, and the boxes are full of red."""
    rng = np.random.default_rng(seed)
    views = [
        marked(96, 64, (10, 20, 60, 50)),
        marked(64, 96, (30, 5, 60, 90)),
        marked(96, 96, (1, 1, 40, 40)),
    ]
    joined = data.mosaic([*views, views[0]], 96, rng)
    assert joined.pixels.shape == (192, 192, 3)
    picture = data.mirrored(data.window(joined, 96, Sampling(size=96), rng))
    red = picture.pixels[:, :, 1] < 50
    covered = np.zeros_like(red)
    for box in picture.xyxy:
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        covered[y1:y2, x1:x2] = True
        assert red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > 0.95 if min(x2 - x1, y2 - y1) > 6 else True
    lost = red & ~covered
    assert lost.mean() < 0.02, "a strip beside a box at most: objects cut to less than a tenth are left out"


def test_colours_change_as_asked() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    rng = np.random.default_rng(1)
    assert np.abs(data.recoloured(image, (0, 0, 0), rng).astype(int) - image).max() <= 6  # HSV's own rounding
    darker = data.recoloured(image, (0, 0, 0.9), np.random.default_rng(4))
    assert abs(darker.mean() - image.mean()) > 5


def test_a_batch_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), marked(80, 60, (10, 10, 50, 40)).pixels)
    entry = Entry(
        *(
            path,
            "a.png",
            1,
            (80, 60),
            np.array([[10, 10, 50, 40], [0, 0, 9, 9]], np.float32),
            np.array([5, 2]),
        ),
        *(np.array([False, True]), np.array([1200.0, 81.0], np.float32), CLASSES, tuple(range(1, 81))),
    )
    stage = RECIPES["yolov5n"].stages["detector"]
    stage = stage.__class__(Sampling(size=64), stage.schedule)
    pictures = [read(path)]
    made = data.TrainSet([entry], pictures, stage, np.array([0]), np.array([], int))  # type: ignore[arg-type]
    one, other, next_one = made.batch((0, 1), 3), made.batch((0, 1), 3), made.batch((0, 2), 3)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1]["objects"], other[1]["objects"])
    assert not torch.equal(one[0], next_one[0])
    assert one[0].shape == (3, 3, 64, 64)
    assert 0 <= float(one[0].min()) <= float(one[0].max()) <= 1
    assert set(one[1]["objects"][:, 1].tolist()) == {5.0}, "crowds are nothing to learn"
