"""From torch to the lowered files: MTCNN's networks, quantized, exported and run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo import folder, run, verbs
from octavo.models import save_module
from octavo.verbs.float_model import float_info

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from octavo.models.mtcnn import net  # noqa: E402
from octavo.models.mtcnn.recipe import MTCNN, NETWORKS  # noqa: E402
from octavo.quantize import Scheme, calibrate, prepare  # noqa: E402
from octavo.run.on_onnxruntime import open_network  # noqa: E402

SHAPES = {
    "pnet": [(1, 3, 12, 12), (1, 3, 14, 50), (1, 3, 120, 94)],
    "rnet": [(1, 3, 24, 24), (2, 3, 24, 24), (17, 3, 24, 24)],
    "onet": [(1, 3, 48, 48), (5, 3, 48, 48)],
}
DONE = {  # at the start of what is said of each
    "pnet": (
        "channels padded: 10 to 16",
        "stem 3x3 as 2x2 on 12 channels of 2x2",
        "2 heads 1x1 as one integer product",
    ),
    "rnet": ("channels padded: 28 to 32", "stem 3x3 as 3x2 on 8 channels of column pairs"),
    "onet": ("stem 3x3 as 3x2 on 8 channels of column pairs",),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 folder with state dicts: random weights, calibrated on noise."""
    path = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    scheme = Scheme.for_target("cpu")
    for name, module in net.build("mtcnn-relu").items():
        shape = NETWORKS[name].shape
        model = prepare(module, scheme)
        calibrate(model, [(torch.randint(0, 256, shape) - 128.0) / 128 for _ in range(2)])
        save_module(model, path / f"{name}.pt")
    info = float_info("mtcnn-relu", list(SHAPES), MTCNN, "noise")
    folder.write_info(path, info | {"precision": "int8", "target": "cpu", "scheme": scheme.to_dict()})
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, because networks that know nothing let half of it through."""
    import cv2

    path = tmp_path_factory.mktemp("photo") / "noise.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    return path


def test_lowered_files_compute_what_the_plain_ones_do(quantized: Path, photo: Path) -> None:
    _, parities, lowered = verbs.export(quantized, images=[photo])
    assert {name: form.done for name, form in lowered.items()}.keys() == {f"{n}.onnxruntime" for n in SHAPES}
    for name, shapes in SHAPES.items():
        form = lowered[f"{name}.onnxruntime"]
        assert len(form.done) == len(DONE[name])
        assert all(said.startswith(start) for said, start in zip(form.done, DONE[name], strict=True))
        assert form.parity.verdict == parities[name].verdict
        path = run.file_for(quantized, name, "onnxruntime")
        assert path.name == f"{name}.onnxruntime.onnx"
        assert run.file_for(quantized, name, "openvino").name == f"{name}.onnx"
        ours, plain = open_network(path), open_network(quantized / f"{name}.onnx")
        assert (ours.inputs, ours.outputs) == (plain.inputs, plain.outputs)
        for shape in shapes:
            image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            for one, other in zip(ours(image), plain(image), strict=True):
                if name == "pnet":  # its heads end in another order of float32 sums
                    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.abs(other).max()))
                else:
                    np.testing.assert_array_equal(one, other)
    both = folder.size(quantized, ".onnx")
    plain_only = sum((quantized / f"{name}.onnx").stat().st_size for name in SHAPES)
    assert plain_only < both < 1.03 * plain_only


@pytest.mark.slow
def test_without_lowering_older_forms_go(quantized: Path, photo: Path) -> None:
    for name in SHAPES:
        (quantized / f"{name}.onnxruntime.onnx").touch()
    verbs.export(quantized, images=[photo], lower=False)
    assert sorted(path.name for path in quantized.glob("*.onnx")) == ["onet.onnx", "pnet.onnx", "rnet.onnx"]
    assert run.file_for(quantized, "pnet", "onnxruntime").name == "pnet.onnx"
