"""octavo sensitivity and octavo inspect on a quantized folder of random networks: files, budgets, messages."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import cli, folder, verbs
from octavo.data.widerface import Entry, read
from octavo.models import load_modules, scheme_for
from octavo.outputs import Detections

torch = pytest.importorskip("torch")

LAYERS = {
    "pnet": ["conv1.0", "conv2.0", "conv3.0", "face", "box"],
    "rnet": ["conv1.0", "conv2.0", "conv3.0", "fc.0", "face", "box"],
    "onet": ["conv1.0", "conv2.0", "conv3.0", "conv4.0", "fc.0", "face", "box", "landmarks"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An INT8 folder; thresholds at which something is always found. Beside it, `float` is what it was made of."""
    from octavo.models.mtcnn.net import build

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "float"
    path.mkdir()
    for name, module in build("mtcnn-relu").items():
        for layer in module.modules():
            if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                torch.nn.init.uniform_(layer.weight, 1, 2)
        module.box.weight.data.zero_()  # boxes stay where the windows are: valid whatever the weights
        module.box.bias.data.fill_(0.01)
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
    return verbs.quantize(path, data, path.parent / "int8", images=4)


Octavo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str]) -> Octavo:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.err).split())
        return int(stopped.value.code or 0), printed.out, said

    return call


def test_sensitivity_finds_and_writes_a_mixed_model(
    octavo: Octavo, model: Path, data: Path, tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    plain = verbs.sensitivity(model, data, images=2)
    assert {name: sorted(r.layer for r in t.rows) for name, t in plain.tables.items()} == {
        name: sorted(layers) for name, layers in LAYERS.items()
    }
    assert plain.tables["onet"].outputs == ("face", "box", "landmarks")
    budget = max(min(t.quantized) for t in plain.tables.values()) + 0.5  # no network reaches that as it is

    options = ["--budget", budget, "--out", tmp_path / "mixed", "--json", tmp_path / "s.json"]
    code, out, said = octavo("sensitivity", model, "--data", data, "--images", 2, *options)
    assert code == 0, said
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["tables"]["rnet"] == json.loads(json.dumps(plain.tables["rnet"].to_dict()))
    kept = told["mixed"]["kept"]
    assert {pattern.split("/")[0] for pattern in kept} == set(LAYERS)
    assert "conv1.0" in out
    assert str(tmp_path / "mixed") in out

    info = folder.read_info(tmp_path / "mixed")
    assert info["scheme"]["skip"] == kept
    assert info["calibration"] == folder.read_info(model)["calibration"]
    again = verbs.sensitivity(tmp_path / "mixed", data, images=2)
    for name, table in again.tables.items():
        in_float = {p.split("/")[1] for p in kept if p.startswith(f"{name}/")}
        assert {row.layer for row in table.rows} == set(LAYERS[name]) - in_float
        # measured on what the networks before let through, which the mixed ones changed a little
        assert min(table.quantized) == pytest.approx(told["mixed"]["score"][name], abs=1.5)
        assert told["mixed"]["score"][name] >= budget


def test_by_ap_is_of_held_out_images_with_the_other_networks_in_float(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.evaluate import faces

    seen: list[str] = []

    def confidence(entries: Sequence[Entry], found: Mapping[str, Detections]) -> dict[str, Any]:
        seen.extend(entry.name for entry in entries)
        return {"ap": {"all": float(np.mean([d.confidence.sum() for d in found.values()]))}}

    monkeypatch.setattr(faces, "measure", confidence)
    steps: list[str] = []
    result = verbs.sensitivity(
        model, data, by="ap", images=2, budget=1.0, progress=lambda what, done, total: steps.append(what)
    )
    names = [entry.name for entry in read(data, "train")]
    assert len(set(seen)) == 2
    assert set(seen) < set(names[:3])
    float_model = verbs.load(model.parent / "float", "torch")
    expected = np.mean(
        [
            float_model(entry.path, confidence=0.02).confidence.sum()
            for entry in read(data, "train")
            if entry.name in seen
        ]
    )
    assert expected > 0.1
    for name, table in result.tables.items():
        assert table.reference == pytest.approx((expected,), rel=1e-4)
        assert table.quantized != table.reference
        assert len({row.alone for row in table.rows}) > 1  # each variant is another network
        assert {row.layer for row in table.rows} == set(LAYERS[name])
    assert result.kept == () or len(result.kept or ()) < 19
    assert result.score is not None
    assert result.score["ap"] >= expected - 1.0 - 1e-3
    assert list(dict.fromkeys(steps)) == ["pnet", "rnet", "onet", "mixed precision"]


def test_inspect_writes_tables_and_pictures(octavo: Octavo, model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, said = octavo("inspect", model, "--data", data, "--out", tmp_path / "in", "--images", 2)
    assert code == 0, said
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == sorted(
        ["tensors.csv", "histograms.csv"]
        + [f"{name}_{picture}.png" for name in LAYERS for picture in ("histograms", "sqnr")]
    )
    rows = list(csv.DictReader((tmp_path / "in" / "tensors.csv").read_text().splitlines()))
    weights = [(row["network"], row["layer"]) for row in rows if row["kind"] == "weight"]
    assert sorted(weights) == sorted((name, layer) for name, layers in LAYERS.items() for layer in layers)
    bins = list(csv.DictReader((tmp_path / "in" / "histograms.csv").read_text().splitlines()))
    for row in rows:
        own = [b for b in bins if all(b[k] == row[k] for k in ("network", "layer", "kind"))]
        assert sum(int(b["float"]) for b in own) == int(row["values"])
    assert "conv1.0 weight" in out
    for picture in (tmp_path / "in").glob("*.png"):
        image = cv2.imread(str(picture))
        assert image.shape[0] > 100
        assert image.std() > 10  # something is drawn


def test_charts_of_sensitivity(model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = [verbs.sensitivity(model, data, images=2, chart=tmp_path / run / "s.png").charts for run in "ab"]
    assert [p.name for p in drawn[0]] == ["s_pnet.png", "s_rnet.png", "s_onet.png"]
    for one, two in zip(*drawn, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.stat().st_size < 60_000


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["sensitivity", "FLOAT", "--data", "DATA"], 1, "is float", id="float folder"),
        pytest.param(["inspect", "FLOAT", "--data", "DATA", "--out", "OUT"], 1, "is float", id="of inspect"),
        pytest.param(["sensitivity", "BARE", "--data", "DATA"], 1, "pnet.pt is missing", id="no .pt files"),
        pytest.param(["sensitivity", "INT8", "--data", "OUT"], 1, "OUT", id="no data"),
        pytest.param(["sensitivity", "INT8", "--data", "DATA", "--by", "app"], 2, "mean ap?", id="yardstick"),
        pytest.param(
            ["sensitivity", "INT8", "--data", "DATA", "--out", "OUT"], 2, "needs --budget", id="no budget"
        ),
        pytest.param(
            ["sensitivity", "INT8", "--data", "DATA", "--by", "ap", "--budget", "30"],
            1,
            "0 to 1",
            id="dB for AP",
        ),
        pytest.param(
            ["sensitivity", "INT8", "--data", "DATA", "--chart", "x.pdf"], 1, "ends in .png", id="no PNG"
        ),
    ],
)
def test_what_cannot_be(
    octavo: Octavo, model: Path, data: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    shutil.copytree(model, tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*.pt"):
        path.unlink()
    places = {"FLOAT": model.parent / "float", "INT8": model, "BARE": tmp_path / "bare", "DATA": data}
    places["OUT"] = tmp_path / "OUT"
    found, out, said = octavo(*(places.get(a, a) for a in arguments))
    assert (found, out) == (code, "")
    assert says in said
    assert not (tmp_path / "OUT").exists()


def test_no_held_out_image_is_said(model: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "faces")
    annotation = tmp_path / "faces" / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    annotation.write_text("\n".join(annotation.read_text().splitlines()[9:]) + "\n")
    with pytest.raises(ValueError, match="AP needs more images"):
        verbs.sensitivity(model, tmp_path / "faces", by="ap")


def test_charts_without_matplotlib(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.evaluate import charts

    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    for call in (
        lambda: verbs.sensitivity(model, data, chart="x.png"),
        lambda: verbs.inspect(model, data, "x"),
    ):
        with pytest.raises(ImportError, match=r"octavo\[report\]"):
            call()
    assert verbs.inspect(model, data, images=1)  # numbers need none


def test_a_pattern_with_a_network_is_about_that_one(model: Path, data: Path, tmp_path: Path) -> None:
    from octavo.quantize import Grid, Scheme, layers

    out = verbs.quantize(
        model.parent / "float", data, tmp_path / "q", images=1, keep_float=["pnet/conv*", "face"]
    )
    found = {name: set(LAYERS[name]) - set(layers(module)) for name, module in load_modules(out).items()}
    assert found == {"pnet": {"conv1.0", "conv2.0", "conv3.0", "face"}, "rnet": {"face"}, "onet": {"face"}}
    scheme = Scheme(overrides=(("rnet/fc*", {"weight": Grid(bits=4)}), ("*", {})))
    assert [p for p, _ in scheme_for(scheme, "rnet").overrides] == ["fc*", "*"]
    assert [p for p, _ in scheme_for(scheme, "pnet").overrides] == ["*"]


def test_infinite_numbers_are_null(model: Path, data: Path) -> None:
    told = verbs.sensitivity(model, data, images=1).to_dict()
    assert told["tables"]["pnet"]["reference"] == [None, None]
    assert all(math.isfinite(v) for v in told["tables"]["pnet"]["quantized"] if v is not None)
