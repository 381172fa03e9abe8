"""The command line: forms that scripts rely on, exit codes, and messages that say what to do.

Called in this process as `octavo ...` would be (cli.main), on a model with random weights: what is found is
nonsense, but how it is told is not.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import cli, folder, verbs
from octavo.cli import console
from octavo.cli.progress import progress_bar
from octavo.outputs import Detections

VERBS = (
    "ls",
    "data",
    "recipe",
    "import",
    "train",
    "average",
    "quantize",
    "sensitivity",
    "inspect",
    "export",
    "predict",
    "evaluate",
    "tune",
    "validate",
    "bench",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """stderr without the frames and line breaks of a box."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.err).split())


Octavo = Callable[..., Outcome]


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str]) -> Octavo:
    def call(*arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), printed.out, printed.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random state dicts; thresholds at which something is always found."""
    torch = pytest.importorskip("torch")
    from octavo.models.mtcnn.net import build

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "random"
    path.mkdir()
    for name, module in build("mtcnn").items():
        module.box.weight.data.zero_()  # boxes stay where the windows are: valid whatever the weights
        module.box.bias.data.zero_()
        torch.save(module.state_dict(), path / f"{name}.pt")
    info = {
        "format": 1,
        "family": "mtcnn",
        "variant": "mtcnn",
        "precision": "float",
        "networks": ["pnet", "rnet", "onet"],
        "preprocessing": {"color": "RGB", "offset": 128.0, "scale": 1 / 128},
        "settings": {"thresholds": [0.1, 0.1, 0.1]},
    }
    folder.write_info(path, info)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/: a.png, b.jpg that is no image, sub/a.png, notes.txt."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        cv2.imwrite(str(root / name), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    (root / "b.jpg").write_bytes(b"no image at all")
    (root / "notes.txt").write_text("not looked at")
    return root


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Help and usage


@pytest.mark.parametrize("name", VERBS)
def test_every_help_ends_with_two_examples_or_more(octavo: Octavo, name: str) -> None:
    shown = octavo(name, "--help")
    assert shown.code == 0
    assert shown.out.rstrip().count(f"\n octavo {name} ") >= 2
    assert shown.out.rindex(f"octavo {name} ") > shown.out.rindex("--help")


def test_version(octavo: Octavo) -> None:
    from octavo import __version__

    assert octavo("--version").out == f"octavo {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["predct"], "Did you mean 'predict'", id="verb"),
        pytest.param(["predict", "mtcnn-rell", "x.jpg"], "no model 'mtcnn-rell'", id="model"),
        pytest.param(["predict", "MODEL", "x.jpg", "--backend", "opnvino"], "mean openvino?", id="backend"),
        pytest.param(["predict", "MODEL", "x.jpg", "--treads", "2"], "--threads", id="option"),
        pytest.param(
            ["predict", "MODEL", "x.jpg", "--thresholds", "a,b"], "'a,b' is not numbers", id="numbers"
        ),
        pytest.param(["predict", "MODEL", "x.jpg", "--set", "nms"], "'nms' is not NAME=VALUE", id="setting"),
        pytest.param(["predict", "MODEL", "x.jpg", "--threads", "0"], "--threads", id="no threads"),
        pytest.param(["predict", "MODEL"], "PATH", id="no images given"),
        pytest.param(["predict", "MODEL", "x.jpg", "--resume"], "goes with --out", id="resume of what?"),
        pytest.param(["recipe", "mtcn-relu"], "Did you mean mtcnn-relu", id="variant"),
        pytest.param(
            ["recipe", "mtcnn", "--set", "stages.pnt.size=1"], "mean pnet?", id="number of a recipe"
        ),
        pytest.param(["recipe", "mtcnn", "--set", "stages.pnet.size=a"], "value of that type", id="its type"),
        pytest.param(
            ["train", "mtcnn", "--data", ".", "--out", "OUT", "--stage", "pnt"], "mean pnet", id="stage"
        ),
        pytest.param(
            ["quantize", "MODEL", "--data", ".", "--target", "cpuu"], "Did you mean cpu?", id="target"
        ),
        pytest.param(
            ["quantize", "MODEL", "--data", ".", "--calibrator", "entropi"], "mean entropy?", id="calibrator"
        ),
        pytest.param(["evaluate", "MODEL"], "give MODEL and --data", id="evaluate without data"),
        pytest.param(
            ["evaluate", "--predictions", "x"], "goes with --data or --ground-truth", id="without truth"
        ),
        pytest.param(["bench", "MODEL", "--size", "640"], "640x480", id="size"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_right(
    octavo: Octavo, model: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    outcome = octavo(*(places.get(a, a) for a in arguments))
    assert outcome.code == 2
    assert says in outcome.said
    assert not outcome.out
    assert not (tmp_path / "out").exists()


# Predict


def test_predict_goes_on_after_a_bad_file_and_fails_at_the_end(
    octavo: Octavo, model: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "faces.jsonl"
    outcome = octavo("predict", model, photos, tmp_path / "absent.png", "--jsonl", file)
    assert outcome.code == 1
    told = lines(file.read_text())
    assert [Path(t["image"]).relative_to(tmp_path).as_posix() for t in told] == [
        "photos/a.png",
        "photos/b.jpg",
        "photos/sub/a.png",
        "absent.png",
    ]
    assert ["error" in t for t in told] == [False, True, False, True]
    assert "not an image" in told[1]["error"]
    assert "no such file" in told[3]["error"]
    good = told[0]
    assert list(good) == ["image", "width", "height", "xyxy", "confidence", "class_id", "keypoints"]
    assert (good["width"], good["height"]) == (64, 48)
    n = len(good["xyxy"])
    assert n > 0
    assert (len(good["confidence"]), len(good["class_id"])) == (n, n)
    assert np.shape(good["keypoints"]) == (n, 5, 2)
    assert f"64x48  {n} found" in outcome.out
    assert "2 of 4 images failed" in outcome.err


def test_the_limit_of_pixels_can_be_changed(octavo: Octavo, model: Path, photos: Path) -> None:
    refused = octavo("predict", model, photos / "a.png", "--max-pixels", 64 * 48 - 1)
    assert refused.code == 1
    assert "(--max-pixels) to 3072" in refused.err
    assert octavo("predict", model, photos / "a.png", "--max-pixels", 64 * 48).code == 0


def test_json_leaves_stdout_to_json(octavo: Octavo, model: Path, photos: Path) -> None:
    outcome = octavo("predict", model, photos, "--json")
    assert ["error" in line for line in lines(outcome.out)] == [False, True, False]


def test_predict_agrees_with_python(octavo: Octavo, model: Path, photos: Path) -> None:
    found = verbs.load(model)(photos / "a.png", min_face=24)
    (told,) = lines(octavo("predict", model, photos / "a.png", "--json", "--min-face", "24").out)
    assert Detections.from_dict(told) == Detections.from_dict(found.to_dict())
    assert len(found) > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param([], {}, id="nothing given"),
        pytest.param(
            ["--confidence", ".7"], {"thresholds": (0.1, 0.1, 0.7)}, id="replaces the last threshold"
        ),
        pytest.param(
            ["--confidence", ".7", "--thresholds", ".2,.3,.4"],
            {"thresholds": (0.2, 0.3, 0.4), "confidence": 0.7},
            id="both count",
        ),
        pytest.param(
            ["--min-face", "12", "--factor", ".8", "--nms", ".4,.5,.6,.7"],
            {"min_face": 12, "factor": 0.8, "nms": (0.4, 0.5, 0.6, 0.7)},
            id="the others",
        ),
        pytest.param(
            ["--set", "min-face=13", "--set", "factor=.8", "--set", "nms=[0.1, 0.2, 0.3, 0.4]"],
            {"min_face": 13, "factor": 0.8, "nms": (0.1, 0.2, 0.3, 0.4)},
            id="by any name the model knows",
        ),
    ],
)
def test_settings_reach_the_model(
    octavo: Octavo,
    model: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: dict[str, Any],
) -> None:
    from octavo.models.mtcnn import predict

    seen = []

    def spy(image: np.ndarray, run: object, settings: predict.Settings) -> Detections:
        seen.append(settings.to_dict())
        return Detections.empty()

    stored = predict.Settings(thresholds=(0.1, 0.1, 0.1)).to_dict()
    monkeypatch.setattr(predict, "predict", spy)
    assert octavo("predict", model, photos / "a.png", *options).code == 0
    if "confidence" not in expected:
        seen[0].pop("confidence")
        stored.pop("confidence")
    assert seen == [stored | expected]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        pytest.param(["--min-face", "-1"], 2, "min_face", id="negative face"),
        pytest.param(["--set", "long_side=9"], 2, "no setting long_side; it has min_face", id="no such name"),
        pytest.param(["--thresholds", ".1,.2"], 2, "3 numbers from 0 to 1", id="too few thresholds"),
        pytest.param(["--backend", "onnxruntime"], 1, "octavo export", id="not exported yet"),
    ],
)
def test_settings_that_the_model_refuses(
    octavo: Octavo, model: Path, photos: Path, options: list[str], code: int, says: str
) -> None:
    outcome = octavo("predict", model, photos, *options)
    assert outcome.code == code
    assert outcome.err.startswith("Error: ")
    assert says in outcome.err
    assert not outcome.out  # said once, before the first image


def test_settings_that_were_stored_wrong_are_no_wrong_usage(
    octavo: Octavo, model: Path, photos: Path, tmp_path: Path
) -> None:
    info = folder.read_info(model) | {"settings": {"min_face": -1}}
    folder.write_info(tmp_path, info)
    for name in info["networks"]:
        (tmp_path / f"{name}.pt").write_bytes((model / f"{name}.pt").read_bytes())
    outcome = octavo("predict", tmp_path, photos)
    assert (outcome.code, "min_face" in outcome.err) == (1, True)


def test_a_folder_without_images_is_an_error(octavo: Octavo, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = octavo("predict", model, tmp_path / "empty", "--json")
    assert outcome.code == 1
    assert "no images" in lines(outcome.out)[0]["error"]


def test_saved_pictures_keep_their_folders(octavo: Octavo, model: Path, photos: Path, tmp_path: Path) -> None:
    octavo("predict", model, photos, "--save", tmp_path / "out")
    saved = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert saved == ["a.png", "sub/a.png"]
    before, after = (cv2.imread(str(p / "a.png")) for p in (photos, tmp_path / "out"))
    assert before.shape == after.shape
    assert (before != after).any()


def test_files_of_one_name_from_two_folders_do_not_collide(
    octavo: Octavo, model: Path, photos: Path, tmp_path: Path
) -> None:
    octavo("predict", model, photos / "a.png", photos / "sub" / "a.png", "--save", tmp_path / "out")
    assert (tmp_path / "out" / "a.png").is_file()
    assert (tmp_path / "out" / "sub" / "a.png").is_file()


def test_the_photographs_themselves_are_never_replaced(octavo: Octavo, model: Path, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    outcome = octavo("predict", model, photos / "a.png", "--save", photos, "--json")
    assert outcome.code == 1
    assert "would replace" in lines(outcome.out)[0]["error"]
    assert (photos / "a.png").read_bytes() == before


def test_a_file_name_that_is_not_text(octavo: Octavo, model: Path, photos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    try:
        (photos / "a.png").rename(odd)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    outcome = octavo("predict", model, odd, "--jsonl", tmp_path / "x.jsonl", "--save", tmp_path / "out")
    assert outcome.code == 0
    (told,) = lines((tmp_path / "x.jsonl").read_text())
    assert os.fsencode(told["image"]).endswith(b"/\xff\xfe.png")


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(lambda: signal.raise_signal(signal.SIGINT), id="Ctrl-C"),
        pytest.param(lambda: signal.raise_signal(signal.SIGTERM), id="SIGTERM"),
    ],
)
def test_a_stopped_run_keeps_what_is_done_and_goes_on(
    octavo: Octavo,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    stop: Callable[[], None],
) -> None:
    from octavo.models.mtcnn import predict

    # A shell starts background jobs, as CI may, with Ctrl-C ignored; Python then leaves it so.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    seen = 0

    def stopped_at_the_second(image: np.ndarray, run: object, settings: object) -> Detections:
        nonlocal seen
        seen += 1
        if seen == 2:
            stop()
        return Detections.empty()

    monkeypatch.setattr(predict, "predict", stopped_at_the_second)
    command = ("predict", model, photos / "a.png", photos / "sub" / "a.png", "--out", tmp_path / "x.jsonl")
    outcome = octavo(*command)
    assert outcome.code == 130
    assert "Stopped" in outcome.err
    assert [Path(t["image"]) for t in lines((tmp_path / "x.jsonl").read_text())] == [photos / "a.png"]
    assert octavo(*command, "--resume").code == 0
    assert seen == 3
    assert [Path(t["image"]).parent.name for t in lines((tmp_path / "x.jsonl").read_text())] == [
        "photos",
        "sub",
    ]
    again = octavo(*command, "--resume")
    assert (again.code, "Nothing was left" in again.err) == (0, True)


def test_the_bar_leaves_stdout_where_it_goes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("Looking") as progress:
        progress(1, 2)
        print('{"image": "a.png"}')
    assert capsys.readouterr().out == '{"image": "a.png"}\n'
    assert "Looking" in sys.stderr.getvalue()


# Errors


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(ValueError("give a better one"), "Error: give a better one\n", id="value"),
        pytest.param(
            OSError(errno.ENOSPC, "No space left", "x.json"), "Error: x.json: No space left\n", id="disk"
        ),
        pytest.param(
            ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x"),
            "pip install 'octavo[train]'",
            id="extra",
        ),
        pytest.param(MemoryError(), "Error: out of memory", id="memory"),
    ],
)
def test_an_error_is_a_message(
    octavo: Octavo, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    monkeypatch.delenv("OCTAVO_DEBUG", raising=False)
    monkeypatch.setattr(verbs, "ls", failing(error))
    outcome = octavo("ls")
    assert outcome.code == 1
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    monkeypatch.setattr(verbs, "ls", failing(ValueError("inside")))
    with pytest.raises(ValueError, match="inside"):
        cli.main(["ls"])


def test_a_broken_model_is_exit_code_1(octavo: Octavo, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"format": 1')
    outcome = octavo("predict", tmp_path, "x.jpg")
    assert outcome.code == 1
    assert "not JSON" in outcome.err


def test_a_model_of_an_unknown_family(octavo: Octavo, model: Path, tmp_path: Path) -> None:
    info = folder.read_info(model) | {"family": "mtcmn"}
    folder.write_info(tmp_path, info)
    outcome = octavo("predict", tmp_path, "x.jpg")
    assert outcome.code in (1, 2)
    assert "Did you mean mtcnn?" in outcome.err


def test_a_pipe_whose_reader_leaves_ends_quietly() -> None:
    command = f"{sys.executable} -c 'from octavo.cli import main; main()' recipe mtcnn-relu | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.stdout.startswith("stages.")
    assert "Traceback" not in run.stderr


# The other verbs


def test_ls(octavo: Octavo, model: Path) -> None:
    (mine,) = [m for m in json.loads(octavo("ls", model.parent, "--json").out) if m["name"] == str(model)]
    assert mine["variant"] == "mtcnn"
    assert mine["bytes"] == {".pt": sum(p.stat().st_size for p in model.glob("*.pt"))}
    assert str(model) in octavo("ls", model.parent).out


def test_ls_shows_a_broken_folder_as_such(octavo: Octavo, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    outcome = octavo("ls", tmp_path)
    assert outcome.code == 0
    assert "Warning" in outcome.err
    assert "lacks format" in outcome.err


def test_recipe_prints_the_paths_that_set_takes(octavo: Octavo) -> None:
    plain = dict(line.split(" = ") for line in octavo("recipe", "mtcnn-relu").out.splitlines())
    path = "stages.pnet.schedule.epochs"
    changed = octavo("recipe", "mtcnn-relu", "--set", f"{path}={int(plain[path]) + 1}", "--json")
    assert json.loads(changed.out)["stages"]["pnet"]["schedule"]["epochs"] == int(plain[path]) + 1


def test_import_says_which_variant_the_weights_fit(octavo: Octavo, model: Path, tmp_path: Path) -> None:
    outcome = octavo("import", "mtcnn-relu", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "is no file" in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_import_published_weights(octavo: Octavo, shared: Path, tmp_path: Path) -> None:
    wrong = octavo("import", "mtcnn-relu", shared / "weights" / "mtcnn", "--out", tmp_path / "wrong")
    assert wrong.code == 1
    assert "they fit mtcnn." in wrong.err
    assert not (tmp_path / "wrong").exists()
    outcome = octavo("import", "mtcnn", shared / "weights" / "mtcnn", "--out", tmp_path / "out", "--json")
    assert json.loads(outcome.out)["networks"] == ["pnet", "rnet", "onet"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.json",
        "onet.pt",
        "pnet.pt",
        "rnet.pt",
    ]


def test_embedded_and_quantized_models_are_not_quantized_again(
    octavo: Octavo, model: Path, tmp_path: Path
) -> None:
    info = folder.read_info(model) | {"precision": "int8", "target": "cpu", "scheme": {}}
    folder.write_info(tmp_path, info)
    outcome = octavo("quantize", tmp_path, "--data", tmp_path)
    assert outcome.code == 1
    assert "int8 already" in outcome.err


def test_a_float_model_has_no_target_to_export_for(octavo: Octavo, model: Path, tmp_path: Path) -> None:
    outcome = octavo("export", model, "--target", "cpu", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "octavo quantize" in outcome.err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_for_a_training_without_data(octavo: Octavo, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    outcome = octavo("train", "mtcnn", "--data", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "wider_face_split" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["explain", "tensor", "-0.52", "0.3", "1.7"], 0, "max-abs", id="explain a tensor"),
        pytest.param(
            ["explain", "fixedpoint", "2.71875", "--format", "10.5"],
            0,
            "0,0000000010,10111",
            id="fixed point",
        ),
        pytest.param(
            ["quantize", "m", "--data", ".", "--target", "cpuu"], 2, "mean cpu?", id="a wrong target"
        ),
        pytest.param(["quantize", "m", "--data", "."], 1, "pip install 'octavo[train]'", id="quantize"),
        pytest.param(["export", "mtcnn-relu"], 1, "pip install 'octavo[train]'", id="export"),
    ],
)
def test_without_torch(arguments: list[str], code: int, says: str) -> None:
    script = "import sys; sys.modules['torch'] = None; from octavo.cli import main; main(sys.argv[1:])"
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == code, run.stderr
    assert says in (run.stderr if code else run.stdout)


def test_data_says_what_was_expected(octavo: Octavo, tmp_path: Path) -> None:
    outcome = octavo("data", tmp_path)
    assert outcome.code == 1
    assert "wider_face_split" in outcome.err


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["bench", "m", "--json"], ["bench", "m", "--json", "-"]),
        (["evaluate", "--json", "--data", "d"], ["evaluate", "--json", "-", "--data", "d"]),
        (["evaluate", "--json", "f.json", "m"], ["evaluate", "--json", "f.json", "m"]),
        (["ls", "--json"], ["ls", "--json"]),
    ],
)
def test_json_without_a_file_means_stdout(given: list[str], passed: list[str]) -> None:
    assert cli._bare_json(given) == passed


def test_results_go_whole_or_not_at_all_into_a_file(octavo: Octavo, tmp_path: Path) -> None:
    console.write({"easy": float("nan"), "hard": np.float32(0.5)}, str(tmp_path / "r" / "x.json"))
    assert json.loads((tmp_path / "r" / "x.json").read_text()) == {"easy": None, "hard": 0.5}
