"""What does it cost as the work grows: more pixels, more faces, smaller faces, more images, more processes?

    python benchmarks/growth.py mtcnn-relu                       all questions; nothing else may run meanwhile
    python benchmarks/growth.py mtcnn-relu --questions memory    some of them

    pixels     ms for one image of growing size: a portrait, smallest face 20 pixels
    faces      ms for 1280x720 with 0 to 240 faces
    min face   ms for 640x480 with five faces, down to a smallest face of 12 pixels
    memory     MB of a process after so many images, each of another size
    processes  images a second of `octavo predict` over a folder of 640x480 photographs, in 1 and 2 processes

Milliseconds are medians on one thread; values of one question take turns. -> results/growth.csv and, of the first
four, docs/images/growth.png.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
import scenes

from octavo import folder, verbs
from octavo.evaluate import charts, record

WIDTHS = (160, 320, 640, 960, 1280, 1920, 2560)  # of 4:3 images
FACES = (0, 15, 30, 60, 120, 240)
MIN_FACES = (12, 16, 20, 30, 40, 60, 80)
EVERY = 500  # images between two looks at the memory
SIDES = (160, 480)  # pixels, of the images of the question of memory
FOLDER = 200  # images in the folder of the question of processes

Call = Callable[[], Any]


def pixels(model: verbs.Model) -> dict[float, Call]:
    sizes = [(width, width * 3 // 4) for width in WIDTHS]
    return {w * h / 1e6: partial(model, scenes.portrait((w, h)), min_face=20) for w, h in sizes}


def faces(model: verbs.Model) -> dict[float, Call]:
    return {count: partial(model, scenes.crowd(count), min_face=20) for count in FACES}


def min_face(model: verbs.Model) -> dict[float, Call]:
    return {side: partial(model, scenes.group(), min_face=side) for side in MIN_FACES}


TIMED = {"pixels": pixels, "faces": faces, "min face": min_face}
UNITS = {
    "pixels": "million pixels",
    "faces": "faces in 1280x720",
    "min face": "smallest face, pixels",
    "memory": "images",
    "processes": "processes",
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", help="embedded name or folder with .onnx files")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--questions", default=",".join(UNITS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000, help="of the question of memory")
    parser.add_argument("--plot", type=Path, default=common.ROOT / "docs/images/growth.png")
    options = parser.parse_args()
    for question in options.questions.split(","):
        for row in answers(question, options):
            write(question, row, options)
    charted = {question: shown(question, options) for question in list(UNITS)[:4]}
    if all(charted.values()):
        charts.growth(charted, {name: (UNITS[name], unit_of(name)) for name in charted}, options.plot)


def unit_of(question: str) -> str:
    return {"memory": "MB", "processes": "images/s"}.get(question, "ms")


def answers(question: str, options: Any) -> Iterator[Mapping[str, float]]:
    if question in TIMED:
        yield from timed(TIMED[question](verbs.load(options.model, options.backend)), options.repeats)
    elif question == "memory":
        yield from memory(options)
    else:
        yield from processes(options)


def timed(calls: Mapping[float, Call], repeats: int) -> Iterator[Mapping[str, float]]:
    """Every value once a round, in turn."""
    cv2.setNumThreads(1)
    found = {value: len(call()) for value, call in calls.items()}
    spent: dict[float, list[float]] = {value: [] for value in calls}
    for _ in range(repeats):
        for value, call in calls.items():
            started = time.perf_counter()
            call()
            spent[value].append(time.perf_counter() - started)
    for value, seconds in spent.items():
        yield {"value": value, "result": float(np.median(seconds)) * 1e3, "found": found[value]}


def memory(options: Any) -> Iterator[Mapping[str, float]]:
    """In a process of its own, from its first image on."""
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe(duplex=False)
    given = (options.model, options.backend, options.images, theirs)
    process = spawned.Process(target=watch, args=given)
    process.start()
    theirs.close()
    while True:
        try:
            yield ours.recv()
        except EOFError:
            break
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process whose memory is watched ended with {process.exitcode}")


def watch(model: str, backend: str, count: int, out: Any) -> None:
    opened, photo = verbs.load(model, backend), scenes.photographs()["group.jpg"]
    rng, found = np.random.default_rng(0), 0
    for number in range(1, count + 1):
        height, width = rng.integers(SIDES[0], min(SIDES[1], *photo.shape[:2]), 2)
        top, left = (int(rng.integers(0, s - d)) for s, d in zip(photo.shape, (height, width), strict=False))
        found += len(opened(np.ascontiguousarray(photo[top : top + height, left : left + width])))
        if number in (1, 10, 100) or number % EVERY == 0:
            out.send({"value": number, "result": resident(), "found": found})


def resident() -> float:
    """MB that this process holds now."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024 / 1e6


def processes(options: Any) -> Iterator[Mapping[str, float]]:
    """What the second process brings, in the middle of the work: the time of half the folder is taken off."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        cv2.imwrite(str(place / "0.jpg"), scenes.group()[:, :, ::-1])
        for number in range(1, FOLDER):
            shutil.copy(place / "0.jpg", place / f"{number}.jpg")
        paths = sorted(place.iterdir())
        for count in (1, 2):
            rates = []
            for _ in range(3):
                seconds = [spent(options, paths[:some], count) for some in (FOLDER // 2, FOLDER)]
                rates.append(FOLDER / 2 / (seconds[1] - seconds[0]))
            yield {"value": count, "result": float(np.median(rates)), "found": 0}


def spent(options: Any, paths: list[Path], count: int) -> float:
    started = time.perf_counter()
    for result in verbs.predict(options.model, paths, backend=options.backend, processes=count, min_face=20):
        assert not result.error
    return time.perf_counter() - started


def write(question: str, row: Mapping[str, float], options: Any) -> None:
    made = record.append(
        options.out / "growth.csv",
        {
            "weights": common.weights(folder.find(options.model)),
            "backend": options.backend,
            "question": question,
            "of": UNITS[question],
            "value": row["value"],
            "in": unit_of(question),
            "result": row["result"],
            "found": row["found"],
        },
        model=Path(options.model).name,
        data="shipped photographs",
        command=common.command(),
    )
    print(question, made["value"], made["of"], made["result"], made["in"], flush=True)


def shown(question: str, options: Any) -> dict[float, float]:
    """{value: result}, of the last rows of the file."""
    file = options.out / "growth.csv"
    wanted = {"question": question, "model": Path(options.model).name, "backend": options.backend}
    rows = [row for row in record.read(file) if wanted.items() <= row.items()] if file.is_file() else []
    return dict(sorted((float(row["value"]), float(row["result"])) for row in rows))


if __name__ == "__main__":
    main()
