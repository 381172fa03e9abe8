"""Many images: videos frame by frame, lines that a stopped run goes on from, processes that change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from octavo import images, verbs
from octavo.verbs import lines, sources, workers
from octavo.verbs.predict import Result, predict

RATE = 10.0
FRAMES = 20


@pytest.fixture(scope="module")
def model() -> verbs.Model:
    return verbs.load("mtcnn-relu", backend="onnxruntime")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """(96, 96, 3) uint8 RGB: a photographed face."""
    (path,) = [path for path in verbs.samples() if path.name == "hopper.jpg"]
    picture = images.read(path)
    side = min(picture.shape[:2])
    return cv2.resize(picture[:side, :side], (96, 96), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, face: np.ndarray) -> Path:
    """a.png and c.png; b.png, which is no image; clip.avi, a face that moves; cut.avi, the first third of its bytes."""
    root = tmp_path_factory.mktemp("given")
    for name, picture in (("a.png", face), ("c.png", face[:, ::-1])):
        cv2.imwrite(str(root / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    (root / "b.png").write_bytes(b"no image at all")
    writer = cv2.VideoWriter(str(root / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (144, 112))
    assert writer.isOpened()
    for number in range(FRAMES):
        frame = np.full((112, 144, 3), 90, np.uint8)
        frame[8:104, 2 * number : 2 * number + 96] = face
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    whole = (root / "clip.avi").read_bytes()
    (root / "cut.avi").write_bytes(whole[: len(whole) // 3])
    (root / "junk.avi").write_bytes(b"no video at all")
    return root


# Videos


def test_frames_with_their_number_and_time(model: verbs.Model, given: Path) -> None:
    results = list(predict(model, [given / "clip.avi"], every=3, min_face=40))
    assert [r.frame for r in results] == list(range(0, FRAMES, 3))
    assert [r.time for r in results] == pytest.approx([n / RATE for n in range(0, FRAMES, 3)])
    capture = cv2.VideoCapture(str(given / "clip.avi"))
    decoded = [capture.read()[1] for _ in range(FRAMES)]
    capture.release()
    for result in results:
        assert result.frame is not None
        assert result.found == model(cv2.cvtColor(decoded[result.frame], cv2.COLOR_BGR2RGB), min_face=40)
    told = results[1].to_dict()
    assert list(told)[:5] == ["image", "frame", "time", "width", "height"]
    assert (told["width"], told["height"]) == (144, 112)
    lefts = [float(r.found.xyxy[0, 0]) for r in results if r.found]
    assert np.diff(lefts) == pytest.approx([6] * (len(lefts) - 1), abs=4)  # the face moves 2 pixels a frame


def test_a_cut_video_ends_with_what_was_readable(model: verbs.Model, given: Path) -> None:
    *frames, end, after = predict(model, [given / "cut.avi", given / "a.png"], min_face=40)
    assert 0 < len(frames) < FRAMES
    assert all(r.found is not None for r in frames)
    assert f"ends after {len(frames)} of {FRAMES} frames" in (end.error or "")
    assert (after.error, after.frame) == (None, None)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("junk.avi", "not a video", id="something else"),
        pytest.param("absent.mp4", "no such file", id="nothing"),
        pytest.param("camera:97", "this camera can't be opened", id="camera"),
    ],
)
def test_what_is_no_video(model: verbs.Model, given: Path, path: str, says: str) -> None:
    (result,) = predict(model, [path if ":" in path else given / path])
    assert says in (result.error or "")
    assert result.to_dict().keys() == {"image", "error"}


def test_a_video_of_too_many_pixels(model: verbs.Model, given: Path) -> None:
    (result,) = predict(model, [given / "clip.avi"], max_pixels=144 * 112 - 1)
    assert "144x112" in (result.error or "")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("0", 0, id="number"),
        pytest.param("camera:2", 2, id="by word"),
        pytest.param("7", None, id="a file of that name"),
        pytest.param("camera:7", 7, id="the camera all the same"),
        pytest.param("0.jpg", None, id="image"),
        pytest.param("-1", None, id="negative"),
    ],
)
def test_cameras_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").touch()
    assert sources.camera(name) == number


def test_a_camera_gives_frames_until_it_stops(
    model: verbs.Model, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = cv2.VideoCapture
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda number: opened(str(given / "clip.avi")) if number == 3 else None
    )
    with pytest.raises(ValueError, match="resume"):
        predict(model, ["camera:3"], out=tmp_path / "x.jsonl", resume=True)
    *frames, end = predict(model, ["camera:3"], every=10, save=tmp_path / "out")
    assert [f.frame for f in frames] == [0, 10]
    assert frames[0].time is not None
    assert 0 <= frames[0].time < 10  # of the clock
    assert f"no more frames after {FRAMES}" in (end.error or "")
    saved = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.jpg"))
    assert saved == ["camera-3/000000.jpg", "camera-3/000010.jpg"]


# Going on


def some(given: Path) -> list[Path]:
    return [given / name for name in ("a.png", "b.png", "clip.avi", "c.png")]


@pytest.mark.parametrize("taken", [0, 1, 2, 4, 9])
def test_a_run_goes_on_as_if_never_stopped(
    model: verbs.Model, given: Path, tmp_path: Path, taken: int
) -> None:
    how: dict[str, Any] = {"every": 4, "min_face": 40}
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert len(list(predict(model, some(given), out=whole, **how))) == 2 + FRAMES // 4 + 1
    stopped = predict(model, some(given), out=parts, **how)
    assert len(list(islice(stopped, taken))) == min(taken, 8)
    stopped.close()  # type: ignore[attr-defined]
    with parts.open("a") as file:
        file.write('{"image": "cut off in the mid')
    rest = list(predict(model, some(given), out=parts, resume=True, **how))
    assert len(rest) == 8 - min(taken, 8)
    assert parts.read_bytes() == whole.read_bytes()
    assert json.loads(whole.read_text().splitlines()[1])["error"]


def test_paths_may_be_spelt_otherwise(
    model: verbs.Model, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    assert len(list(predict(model, ["a.png"], out=tmp_path / "x.jsonl"))) == 1
    monkeypatch.chdir(tmp_path)
    (rest,) = predict(model, [given / "a.png", given / "c.png"], out="x.jsonl", resume=True)
    assert Path(rest.image).name == "c.png"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"min_face": 41}, "min_face 40.0, not 41", id="setting"),
        pytest.param({"every": 2}, "every 1, not 2", id="every"),
        pytest.param({"model": "mtcnn-relu-float"}, 'model "mtcnn-relu", not "mtcnn-relu-float"', id="model"),
        pytest.param({"max_pixels": 10**6}, "max_pixels", id="limit"),
    ],
)
def test_only_with_what_it_was_begun_with(
    given: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    file = tmp_path / "x.jsonl"
    how = {"model": "mtcnn-relu", "backend": "onnxruntime", "min_face": 40.0}
    list(predict(paths=[given / "a.png"], out=file, **how))  # type: ignore[arg-type]
    before = file.read_bytes()
    with pytest.raises(lines.LinesError, match=says):
        predict(paths=[given / "c.png"], out=file, resume=True, **{**how, **change})  # type: ignore[arg-type]
    assert file.read_bytes() == before


def test_other_networks_under_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    lines.begin(file, {"networks": {"pnet.onnx": "a" * 64}})
    file.write_text('{"image": "a.png"}\n')
    with pytest.raises(lines.LinesError, match=r"begun with other networks: pnet.onnx\."):
        lines.go_on(file, {"networks": {"pnet.onnx": "b" * 64}})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda f: Path(f"{f}.run.json").unlink(), "x.jsonl.run.json.*is missing", id="no run"),
        pytest.param(lambda f: Path(f"{f}.run.json").write_text("[]"), "missing or broken", id="broken run"),
        pytest.param(lambda f: f.write_text('{"image": "a"}\nx\n'), "line 2 is none", id="foreign line"),
    ],
)
def test_files_that_no_run_can_go_on_with(tmp_path: Path, spoil: Any, says: str) -> None:
    file = tmp_path / "x.jsonl"
    lines.begin(file, {"every": 1})
    file.write_text('{"image": "a.png"}\n')
    spoil(file)
    with pytest.raises(lines.LinesError, match=says):
        lines.go_on(file, {"every": 1})


def test_what_counts_as_done(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    lines.begin(file, {})
    told = [
        {"image": "a.png"},
        {"image": "b.png", "error": "broken"},
        {"image": "c.avi", "frame": 0},
        {"image": "c.avi", "frame": 5},
        {"image": "d.avi", "frame": 0},
        {"image": "d.avi", "error": "ends after 1 of 9 frames"},
        {"image": "e.avi", "frame": 0},
        {"image": "e.avi", "frame": 5, "error": "this frame only"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in told) + '{"image": "f.p')
    done = lines.go_on(file, {})
    assert {Path(path).name: n for path, n in done.items()} == {
        **dict.fromkeys(("a.png", "b.png", "c.avi", "d.avi"), lines.DONE),
        "e.avi": 6,
    }
    assert len(file.read_text().splitlines()) == len(told)


# Several processes


def test_two_processes_change_nothing(model: verbs.Model, given: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    runs: dict[int, list[Result]] = {}
    for count in (1, 2):
        out = {"out": tmp_path / f"{count}.jsonl", "save": tmp_path / str(count)}
        runs[count] = list(
            predict(
                model,
                some(given),
                processes=count,
                every=4,
                min_face=40,
                progress=lambda *n: told.append(n),
                **out,
            )
        )
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert [r.found for r in runs[1]] == [r.found for r in runs[2]]
    assert sum(len(r.found or ()) for r in runs[1]) >= FRAMES // 4
    saved = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()}
        for n in ("1", "2")
    ]
    assert saved[0] == saved[1]
    assert {p.as_posix() for p in saved[0]} >= {"a.png", "clip.avi/000004.jpg"}
    assert told == [(n, 8) for n in range(1, 9)] * 2


CALC = partial(partial, eval)  # what a process opens: a function that is there in every interpreter


def test_the_order_stays_and_few_are_under_way() -> None:
    taken = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield f"__import__('time').sleep(0.3 * ({number} == 0)) or {number}"

    results = workers.in_order(CALC, items(), 2, str)
    assert next(results) == 0
    assert taken <= 2 * workers.AHEAD
    assert list(results) == list(range(1, 40))
    assert taken == 40


def test_a_process_that_dies_is_an_error_that_says_where() -> None:
    items = ["0", "1", "__import__('os').kill(__import__('os').getpid(), 9)", *["3"] * 20]
    results = workers.in_order(CALC, items, 1, lambda item: f"<{item[:14]}>")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(
        workers.WorkerDied, match=r"died .* at one of: <__import__\('os>, <3>, <3> and 1 more.*kept"
    ):
        list(results)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_processes_end_with_their_parent() -> None:
    script = """
from functools import partial
from octavo.verbs.workers import in_order
if __name__ == "__main__":
    for _ in in_order(partial(partial, eval), ["1", "__import__('time').sleep(600)"], 1, str):
        print("begun", flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    parent.kill()
    parent.communicate(timeout=60)  # the pipe ends when the last process that has it is gone


@pytest.mark.parametrize(
    ("images", "threads", "cores", "expected"),
    [
        pytest.param(0, 1, 8, 1, id="a camera"),
        pytest.param(99, 1, 8, 1, id="few"),
        pytest.param(150, 1, 8, 3, id="some"),
        pytest.param(10_000, 1, 8, 8, id="many"),
        pytest.param(10_000, 4, 8, 2, id="threads share the cores"),
        pytest.param(10_000, 16, 8, 1, id="more threads than cores"),
    ],
)
def test_processes_that_pay(
    monkeypatch: pytest.MonkeyPatch, images: int, threads: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert workers.worth(images, threads) == expected


def test_counts_below_one() -> None:
    for wrong in ({"every": 0}, {"processes": 0}):
        with pytest.raises(ValueError, match="from 1 up"):
            predict("mtcnn-relu", [], **wrong)  # type: ignore[arg-type]
