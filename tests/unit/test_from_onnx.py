"""Float weights read back from exported files, against ONNX Runtime on the same file; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from octavo import folder, images, verbs  # noqa: E402
from octavo.export import export, from_onnx  # noqa: E402
from octavo.folder import FolderError  # noqa: E402
from octavo.models import load_modules, networks, part, save_module, variants  # noqa: E402
from octavo.quantize.prepare import fold  # noqa: E402
from octavo.quantize.unfold import settle  # noqa: E402
from octavo.run.on_onnxruntime import open_network  # noqa: E402
from octavo.verbs.float_model import float_info  # noqa: E402

PIXELS = {"offset": 128.0, "scale": 1 / 128}
Made = Callable[[str], Path]


def stir(module: nn.Module) -> nn.Module:
    """Fresh weights with biases, slopes and statistics as training leaves them: none is zero, no two are alike."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.weight, 1, 0.1)
            nn.init.normal_(layer.bias, 0, 0.3)
            layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.3, 1)  # type: ignore[union-attr]
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.5, 1.2)
    return module.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder of made weights of a variant that holds ONNX files alone."""
    places = tmp_path_factory.mktemp("exported")

    def make(variant: str) -> Path:
        place = places / variant
        if not place.exists():
            torch.manual_seed(0)
            modules = part(variants()[variant], "net").build(variant)
            for name, module in modules.items():
                save_module(stir(module), place / f"{name}.pt")
            folder.write_info(place, float_info(variant, list(modules), verbs.recipe(variant), "nowhere"))
            verbs.export(place)
            for state in place.glob("*.pt"):
                state.unlink()
        return place

    return make


def largest_difference(place: Path) -> float:
    """Between torch and ONNX Runtime, over all networks and outputs, in units of each output's largest value."""
    worst = 0.0
    for name, module in load_modules(place).items():
        pixels = np.random.default_rng(0).integers(0, 256, networks(_variant(place))[name].shape, np.uint8)
        with torch.no_grad():
            ours = module((torch.from_numpy(pixels).float() - PIXELS["offset"]) * PIXELS["scale"])
        theirs = open_network(place / f"{name}.onnx", 1)(pixels)
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, float(np.abs(a.numpy() - b).max() / max(1, np.abs(b).max())))
    return worst


def _variant(place: Path) -> str:
    return str(folder.read_info(place)["variant"])


@pytest.mark.parametrize("name", ["mtcnn-relu-float", "slim-float"])
def test_embedded_models_are_read_back(name: str) -> None:
    assert largest_difference(folder.find(name)) < 1e-5


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        ("mtcnn", 1e-5),
        ("mtcnn-relu", 1e-5),
        ("rfb", 1e-5),
        # 60 layers of random weights make that of float's rounding.
        pytest.param("yolov5n", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_made_models_are_read_back(exported: Made, variant: str, error: float) -> None:
    assert largest_difference(exported(variant)) < error


class Mixed(nn.Module):
    """What the families have not: a transposed convolution, a norm behind a layer with a bias, 1-d norms."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 2, 2, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.PReLU()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(6 * 64, 5)
        self.norm1 = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm1(self.fc(self.flat(self.act(self.norm(self.up(x)))))))


def test_other_layers_are_read_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module, path, x = stir(Mixed()), tmp_path / "mixed.onnx", torch.randn(7, 3, 4, 4)
    export(module, path, torch.zeros(2, 3, 4, 4), dynamic={0: "n"}, outputs=["out"], preprocessing=PIXELS)
    again = Mixed()
    from_onnx.read(again, path)
    with torch.no_grad():
        torch.testing.assert_close(again(x), module(x), rtol=0, atol=1e-5)
    assert not again.up.bias.any()  # the norm's shift has it


def test_settled_norms_leave_training_near_what_was_read() -> None:
    """In training mode norms use the batch's own mean and var; in evaluation mode nothing may change."""
    module, other = (load_modules(folder.find("mtcnn-relu-float"))["rnet"] for _ in range(2))
    pixels = np.stack([window for path in verbs.samples() for window in windows(path)])
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - PIXELS["offset"]) * PIXELS["scale"]
    settle(module, batch[::2])
    with torch.no_grad():
        read, same = other(batch[1::2])[0], module(batch[1::2])[0]
        far, near = other.train()(batch[1::2])[0], module.train()(batch[1::2])[0]
    torch.testing.assert_close(same, read, rtol=1e-4, atol=1e-4)
    settled, unsettled_ = ((out - read).square().mean() / read.var() for out in (near, far))
    assert settled < 0.05
    assert unsettled_ > 0.2


def windows(path: Path, side: int = 24) -> list[np.ndarray]:
    image = cv2.resize(images.read(path), (240, 192), interpolation=cv2.INTER_AREA)
    return [
        image[y : y + side, x : x + side]
        for y in range(0, 192, side // 2)
        for x in range(0, 216, side // 2)
        if y + side <= 192
    ]


def test_reading_twice_gives_the_same_weights() -> None:
    one, two = (load_modules(folder.find("slim-float"))["detector"].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_state_dict_comes_first(exported: Made, tmp_path: Path) -> None:
    place = shutil.copytree(exported("mtcnn"), tmp_path / "both")
    module = part("mtcnn", "net").build("mtcnn")["pnet"]
    save_module(module, place / "pnet.pt")
    assert torch.equal(load_modules(place)["pnet"].conv1[0].weight, module.conv1[0].weight)


def test_files_that_are_refused(exported: Made, tmp_path: Path) -> None:
    net = part("mtcnn", "net")
    relu, prelu = exported("mtcnn-relu"), exported("mtcnn")
    with pytest.raises(FolderError, match=r"no weights of PNet: conv1\.1\.weight is missing"):
        from_onnx.read(net.build("mtcnn")["pnet"], relu / "pnet.onnx")
    with pytest.raises(FolderError, match=r"no weights of RNet: fc\.0\.weight is missing \(and \d+ more"):
        from_onnx.read(net.build("mtcnn")["rnet"], prelu / "pnet.onnx")
    wider = net.build("mtcnn")["pnet"]
    wider.face = nn.Conv2d(32, 3, 1)
    with pytest.raises(FolderError, match=r"face\.weight is \(2, 32, 1, 1\), in the network \(3, 32, 1, 1\)"):
        from_onnx.read(wider, prelu / "pnet.onnx")
    without = net.build("mtcnn")["pnet"]
    without.face = nn.Conv2d(32, 2, 1, bias=False)
    with pytest.raises(FolderError, match=r"there is a face\.bias that the network has not"):
        from_onnx.read(without, prelu / "pnet.onnx")
    with pytest.raises(FolderError, match="is quantized"):
        from_onnx.read(net.build("mtcnn-relu")["pnet"], folder.find("mtcnn-relu") / "pnet.onnx")
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(FolderError, match="no ONNX file"):
        from_onnx.read(net.build("mtcnn")["pnet"], tmp_path / "x.onnx")


def test_a_float_folder_goes_through_the_verbs(annotated: Path, data: Path, tmp_path: Path) -> None:
    """Quantize, train, be a teacher, be averaged, run in torch: from an embedded name, though it has no state dict."""
    name = "mtcnn-relu-float"
    int8 = verbs.quantize(name, annotated, tmp_path / "int8", images=2)
    assert verbs.sensitivity(int8, annotated, images=2).tables
    short = [f"stages.pnet.schedule.{number}" for number in ("epochs=1", "steps=2", "batch_size=16")]
    trained = verbs.train(
        name, data, tmp_path / "trained", stage="pnet", changes=short, teachers=[name], accelerator="cpu"
    )
    assert trained is not None
    mean = verbs.average([name, trained], tmp_path / "mean")
    for network in ("pnet", "rnet"):
        one, two, ours = (
            fold(load_modules(folder.find(place))[network]).state_dict() for place in (name, trained, mean)
        )
        for key, value in ours.items():
            torch.testing.assert_close(value, (one[key] + two[key]) / 2, rtol=0, atol=1e-6)
    image = verbs.samples()[0]
    found = [verbs.load(name, backend)(image, min_face=40) for backend in ("torch", "onnxruntime")]
    assert len(found[0]) == len(found[1]) > 0
    assert np.abs(found[0].xyxy - found[1].xyxy).max() < 0.01


def test_quantized_and_half_folders_want_their_state(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="of int8 weights nothing can be trained"):
        load_modules(folder.find("mtcnn-relu"))
    half = shutil.copytree(folder.find("mtcnn-relu-float"), tmp_path / "half")
    folder.write_info(half, folder.read_info(half) | {"precision": "half"})
    with pytest.raises(FolderError, match=r"pnet\.pt is missing"):
        load_modules(half)
    with pytest.raises(ValueError, match=r"no half weights back"):
        verbs.load(half, "torch")
