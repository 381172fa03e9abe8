"""octavo quantize by level and method, on a folder of random networks: what is written, what is refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from octavo import cli, folder, verbs
from octavo.models import load_modules

torch = pytest.importorskip("torch")

INPUTS = {"pnet": (2, 3, 60, 80), "rnet": (16, 3, 24, 24), "onet": (16, 3, 48, 48)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float folder. Channels are made large by one layer and small by the next: one scale per tensor suits ill."""
    from octavo.models.mtcnn.net import build

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "float"
    path.mkdir()
    for name, module in build("mtcnn-relu").items():
        for first, second in ((module.conv1, module.conv2), (module.conv2, module.conv3)):
            norm, layer = first[1], second[0]
            factor = torch.exp2(torch.empty(len(norm.weight)).uniform_(-3, 3))
            norm.weight.data.mul_(factor)
            norm.bias.data.mul_(factor)
            layer.weight.data.div_(factor[:, None, None])
        torch.save(module.state_dict(), path / f"{name}.pt")
    info = {
        "format": 1,
        "family": "mtcnn",
        "variant": "mtcnn-relu",
        "precision": "float",
        "networks": ["pnet", "rnet", "onet"],
        "preprocessing": verbs.PREPROCESSING,
        "settings": {"thresholds": [0.3, 0.3, 0.3]},
    }
    folder.write_info(path, info)
    return path


def decibels(made: Path, model: Path) -> dict[str, float]:
    """Signal to noise of each network's worst output, on smooth images that nobody has seen."""
    ours, floats, found = load_modules(made), load_modules(model), {}
    rng = torch.Generator().manual_seed(9)
    for name, shape in INPUTS.items():
        small = torch.rand(*shape[:2], shape[2] // 4, shape[3] // 4, generator=rng)
        smooth = torch.nn.functional.interpolate(small, shape[2:], mode="bilinear")
        x = ((smooth * 255).round() - 128) / 128
        with torch.no_grad():
            pairs = list(zip(ours[name](x), floats[name](x), strict=True))
        found[name] = min(
            10 * math.log10(float(b.square().sum() / (a - b).square().sum().clamp(min=1e-20)))
            for a, b in pairs
        )
    return found


def test_level_1_needs_no_data(model: Path, tmp_path: Path) -> None:
    made = verbs.quantize(model, out=tmp_path / "int8", level=1, images=20)
    info = folder.read_info(made)
    assert (info["precision"], info["calibration"]["data"], info["calibration"]["images"]) == (
        "int8",
        "synthetic",
        20,
    )
    assert min(decibels(made, model).values()) > 20
    again = verbs.quantize(model, out=tmp_path / "again", level=1, images=20)
    assert folder.read_info(again)["calibration"]["hash"] == info["calibration"]["hash"]


def test_equalization_helps_weights_of_one_scale(model: Path, tmp_path: Path) -> None:
    """Six bits and one scale per tensor, channels 64-fold apart: what Nagel et al. 2019 made it for."""

    def make(equalize: bool) -> dict[str, float]:
        options = {"weight_bits": 6, "weight_scales": "tensor", "images": 6, "equalize": equalize}
        return decibels(verbs.quantize(model, out=tmp_path / str(equalize), level=1, **options), model)

    plain, equalized = make(False), make(True)
    assert all(equalized[name] > plain[name] + 3 for name in INPUTS)
    assert folder.read_info(tmp_path / "True")["calibration"]["method"] == "max, equalize"


def test_rounding_and_biases_help_four_bits(model: Path, data: Path, tmp_path: Path) -> None:
    def make(name: str, **options: object) -> dict[str, float]:
        made = verbs.quantize(model, data, tmp_path / name, images=6, weight_bits=4, **options)
        return decibels(made, model)

    plain, rounded = make("plain"), make("rounded", rounding=True, correct_bias=True, weight_calibrator="mse")
    assert sum(rounded.values()) > sum(plain.values()) + 6
    scheme = folder.read_info(tmp_path / "rounded")["scheme"]
    assert (scheme["weight"]["bits"], scheme["weight_calibrator"]) == (4, "mse")


@pytest.mark.parametrize(
    ("level", "labels", "epochs", "assist"),
    [
        pytest.param(3, 0.0, 0.1, 0.0, id="short, no labels"),
        pytest.param(4, 1.0, 1.0, 0.1, id="the whole schedule"),
    ],
)
def test_levels_3_and_4_train_what_level_2_gives(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
    labels: float,
    epochs: float,
    assist: float,
) -> None:
    told = {}

    def train(start: Path, data: Path, out: Path, *, changes: list[str], progress: object) -> Path:
        told["info"], told["recipe"] = folder.read_info(start), verbs.recipe(start, changes)
        return out

    monkeypatch.setattr(sys.modules["octavo.verbs.quantize"], "train", train)
    out = tmp_path / "trained"
    changes = ["stages.onet.schedule.batch_size=8"]
    assert verbs.quantize(model, data, out, level=level, images=6, changes=changes) == out
    assert (told["info"]["precision"], told["info"]["calibration"]["data"]) == ("int8", str(data))
    qat, usual = told["recipe"].qat, verbs.recipe("mtcnn-relu").stages["onet"].schedule
    assert (qat.labels, qat.epochs, qat.assist) == (labels, epochs, assist)
    schedule = told["recipe"].stages["onet"].schedule
    assert schedule.epochs == max(1, round(usual.epochs * epochs))
    assert schedule.batch_size == 8


def test_half_precision_is_half_as_large_and_runs(model: Path, tmp_path: Path) -> None:
    """Against the float files of the same networks, in both runtimes."""
    pytest.importorskip("onnx")
    picture = tmp_path / "small.png"
    cv2.imwrite(str(picture), np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    made, parities, lowered = verbs.export(model, tmp_path / "half", half=True, images=[picture])
    floats, _, _ = verbs.export(model, tmp_path / "float", images=[picture])
    assert all(parity.ok for parity in parities.values())
    assert folder.read_info(made)["precision"] == "half"
    assert folder.size(made, ".onnx") < 0.52 * folder.size(floats, ".onnx")
    assert not lowered
    rng = np.random.default_rng(0)
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino")
        ours, theirs = verbs.load(made, backend), verbs.load(floats, "onnxruntime")
        for name, shape in INPUTS.items():
            pixels = rng.integers(0, 256, (1 if name == "pnet" else 5, *shape[1:]), dtype=np.uint8)
            for a, b in zip(ours.run[name](pixels), theirs.run[name](pixels), strict=True):
                assert a.dtype == np.float32
                assert np.linalg.norm(a - b) < 5e-3 * np.linalg.norm(b)


def test_half_precision_keeps_the_float_files(model: Path) -> None:
    for out in (None, model):
        with pytest.raises(ValueError, match="another folder"):
            verbs.export(model, out, half=True)
    assert not list(model.glob("*.onnx"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"level": 5}, "1 .* to 4", id="no such level"),
        pytest.param({"level": 2}, "level 2 needs images", id="no data"),
        pytest.param({"level": 1, "rounding": True}, "take level 2", id="rounding without data"),
        pytest.param(
            {"level": 1, "changes": ["qat.labels=1"]}, "does not train", id="changes without training"
        ),
        pytest.param({"level": 1, "weight_bits": 9}, "2 to 8 bits", id="bits"),
        pytest.param({"level": 1, "weight_scales": "row"}, "tensor, channel, group", id="scales"),
    ],
)
def test_refusals(model: Path, tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        verbs.quantize(model, out=tmp_path / "int8", **options)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--level", "2"], "--level 1 does without", id="no data"),
        pytest.param(["--level", "0"], "greater than or equal to 1", id="no such level"),
        pytest.param(["--level", "1", "--weight-calibrator", "mze"], "mean mse?", id="calibrator"),
        pytest.param(["--level", "1", "--weight-scales", "chanel"], "mean channel?", id="scales"),
    ],
)
def test_wrong_usage(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quantize", str(model), *arguments])
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", "").split())
